"""One update of the weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.base.errors import OutOfMemory
from trainer.regularizers.regularizer import Regularizer
from trainer.training.batches import Batch
from trainer.training.run import Run


def train_step(run: Run, batch: Batch) -> None:
    """Update the weights once, from one batch; on running out of memory, retry with smaller micro-batches."""
    run.set_learning_rate()
    run.set_micro_batch(run.step)
    if run.freezing is not None and (run.step in run.freezing.changes or not run.knows_frozen):
        run.objective.frozen, run.knows_frozen = run.freezing.frozen(run.step), True
        run.guard.restart()
    while True:
        run.objective.begin(run.step, batch)
        try:
            update(run)
            break
        except torch.OutOfMemoryError as error:
            refuse_or_halve(run, len(batch.targets), error)
        # after the except block, the error no longer references the frames that hold the attempt's tensors
        free_memory(run)
    if run.step == 0:
        run.progress.initial_loss = first_mean_loss(run)
    if run.pruning is not None:
        run.pruning.apply()
    run.strategy.stepped(run.model, run.step + 1)
    if run.regularizer is not None:
        run.regularizer.stepped()
    if run.averaging is not None:
        run.averaging.stepped(run.blueprint.timeline.reached(run.step + 1))


def update(run: Run) -> None:
    """Compute the gradient and step; optimizers that need a closure evaluate the objective themselves."""
    if run.needs_closure:
        update_by_closure(run)
    else:
        run.objective.compute_gradient(leave_to_kernel=run.guard.leaves_to_kernel)
        if run.regularizer is not None and run.regularizer.decoupled:
            shrink(run, run.regularizer)
        run.guard.step()


def update_by_closure(run: Run) -> None:
    """Step with the objective as closure. Undo the step if it is to be skipped, or if it runs out of memory."""
    undo = snapshot(run) if run.keeps_undo else None
    optimizer: Any = run.optimizer
    try:
        optimizer.step(run.objective)
    except torch.OutOfMemoryError:
        if undo is not None:
            undo()
        raise
    run.guard.end()
    if run.skips_nonfinite and undo is not None and run.guard.is_nonfinite():
        undo()


def shrink(run: Run, regularizer: Regularizer) -> None:
    """Make a regularizer's decoupled step, unless the step is going to be skipped as not finite."""
    rates = {id(weight): group["lr"] for group in run.optimizer.param_groups for weight in group["params"]}
    may_skip = run.skips_nonfinite or run.loss_scale is not None
    regularizer.shrink(lambda weight: float(rates[id(weight)]), run.guard.applied if may_skip else None)


def snapshot(run: Run) -> Callable[[], None]:
    """Copy weights, buffers and the optimizer's `state_dict`; returns a function that restores them."""
    tensors = [*run.model.parameters(), *run.model.buffers()]
    saved = [tensor.detach().clone() for tensor in tensors]
    state = copy.deepcopy(run.optimizer.state_dict())

    @torch.no_grad()
    def undo() -> None:
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)
        run.optimizer.load_state_dict(state)

    return undo


def first_mean_loss(run: Run) -> torch.Tensor | None:
    """Return the mean loss of the step's first evaluation, or None if the optimizer evaluated nothing."""
    total = run.objective.first_loss
    return None if total is None else total / run.strategy.sum(torch.full_like(total, run.objective.num_seen))


def _less_memory(run: Run, size: int) -> str:
    """How to compute fewer samples at a time."""
    config = run.blueprint.config
    if size == 1:
        return "a smaller model needs less"
    if config["micro_batch"] is not None:
        return f"set micro_batch={size // 2}"
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in run.model.modules())
    may_halve = config["accumulate"] == 1 and run.strategy.world_size == 1 and not has_batch_norm
    return f"set accumulate={2 * config['accumulate']}" + (", or micro_batch=auto" if may_halve else "")


def refuse_or_halve(run: Run, batch_size: int, error: torch.OutOfMemoryError) -> None:
    """Halve the micro-batch size. Raises OutOfMemory if it is 1 or `micro_batch` is not `auto`."""
    size = min(run.objective.micro_batch, batch_size)
    if run.blueprint.config["micro_batch"] != "auto" or size == 1:
        raise OutOfMemory(f"out of memory with {size} samples at a time; {_less_memory(run, size)}") from error
    run.objective.micro_batch = run.objective.most_at_once = size // 2


def free_memory(run: Run) -> None:
    """Release the tensors of a step that ran out of memory, and tell the user."""
    run.objective.forget()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    run.say(f"out of memory: computing {run.objective.micro_batch} samples at a time from step {run.step} on")
