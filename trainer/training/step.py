"""One update of the weights."""

from typing import Any

import torch

from trainer.base.errors import OutOfMemory
from trainer.training.batches import Batch
from trainer.training.run import Run


def train_step(run: Run, batch: Batch) -> None:
    """One update of the weights from one batch."""
    run.set_learning_rate()
    while True:
        run.closure.begin(run.step, batch)
        try:
            _update(run)
            return run.strategy.stepped(run.model, run.step + 1)
        except torch.OutOfMemoryError as error:
            refuse_or_halve(run, len(batch.targets), error)
        # only here the error is gone, and with it the frames that hold what the attempt computed
        free_memory(run)


def _update(run: Run) -> None:
    optimizer: Any = run.optimizer
    if getattr(optimizer, "needs_closure", False):
        optimizer.step(run.closure)
        return
    loss_sum = run.closure.backward()
    run.guard.step(run.closure.gradients(), loss_sum)
    if run.step == 0:
        count = torch.full_like(loss_sum, run.closure.num_seen)
        total, seen = run.strategy.sum(torch.stack([loss_sum, count]))
        run.initial_loss = total / seen


def refuse_or_halve(run: Run, batch_size: int, error: torch.OutOfMemoryError) -> None:
    """`micro_batch=auto`: compute a step in smaller parts from now on. Raises OutOfMemory where it may not."""
    size = min(run.closure.micro_batch, batch_size)
    if run.blueprint.config["micro_batch"] != "auto" or size == 1:
        raise OutOfMemory(
            f"out of memory with {size} samples at a time; set accumulate=2 or more, or micro_batch=auto"
        ) from error
    run.closure.micro_batch = size // 2


def free_memory(run: Run) -> None:
    """Let go of what a step that ran out of memory had computed."""
    run.closure.forget()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    if run.report is not None:
        size = run.closure.micro_batch
        run.report.message(f"out of memory: computing {size} samples at a time from step {run.step} on")
