"""A run: everything that training needs, assembled, and its progress."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.averaging.averaging import Averaging
from trainer.base.capabilities import evaluation_weights_of
from trainer.base.precision import LossScale
from trainer.base.stateful import Stateful
from trainer.configuration.blueprint import Blueprint
from trainer.contracts import Diagnostics, Preprocessing
from trainer.data.facts import Splits
from trainer.metrics import Meter
from trainer.optimizers.parameter_groups import entries_of
from trainer.parallelism.strategy import Strategy
from trainer.regularizers.regularizer import Regularizer
from trainer.reporting.initial_outputs import FirstOutputs
from trainer.reporting.report import Report
from trainer.storage.checkpoint import CheckpointWriter
from trainer.storage.identity import Identity
from trainer.storage.run_folder import Lock
from trainer.training.batches import TrainingBatches
from trainer.training.freezing import Freezing
from trainer.training.gradients import GradientGuard
from trainer.training.objective import Objective
from trainer.training.progress import Progress
from trainer.training.pruning import Pruning
from trainer.training.throughput import Throughput


@dataclass(repr=False)
class Run:
    """All objects of a run, as `fit` takes them. Checkpoints contain everything in `stateful` under its name."""

    blueprint: Blueprint
    device: torch.device
    strategy: Strategy
    splits: Splits
    preprocessing: Preprocessing
    model: nn.Module
    optimizer: torch.optim.Optimizer
    needs_closure: bool
    converges: Callable[[], bool] | None
    averaging: Averaging | None
    freezing: Freezing | None
    pruning: Pruning | None
    base_lrs: list[float]
    loss_scale: LossScale | None
    guard: GradientGuard
    meter: Meter
    objective: Objective
    regularizer: Regularizer | None
    batches: TrainingBatches
    diagnostics: Diagnostics | None
    channels_last: bool
    replica: Callable[[], "Run"]
    set_up: Callable[[], None]  # sets torch's settings for this run, of which another one may have been assembled since
    stateful: Mapping[str, Stateful]
    progress: Progress
    notices: list[str]  # for the user, from the assembly
    throughput: Throughput = field(default_factory=Throughput)
    is_trial: bool = False
    folder: Path | None = None
    lock: Lock | None = None
    identity: Identity | None = None  # on the main rank of a run with a folder
    report: Report | None = None
    checkpoints: CheckpointWriter | None = None
    profiler: torch.profiler.profile | None = None
    first_outputs: FirstOutputs | None = None  # of the first step, until they are written
    has_ended: bool = False
    knows_frozen: bool = False  # the objective knows the frozen parameters of the current step
    holds_best: bool = False  # the model has the weights of best.pt
    batch_norm: tuple[int, list[torch.Tensor]] = (-1, [])  # a step, and the buffers estimated for the averaged weights
    restore_settings: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        choices = self.blueprint.config["choices"]
        chosen = ", ".join(str(choices[group]) for group in ("data", "model", "optimizer") if group in choices)
        where = "" if self.folder is None else f", {self.folder}"
        return f"<Run: {chosen}, step {self.step} of {self.blueprint.total_steps}, {self.device}{where}>"

    @property
    def averaged(self) -> Callable[[], Iterable[tuple[Tensor, Tensor]]] | None:
        """Yields the weights to evaluate, if they are not those that are trained."""
        averaging = self.averaging
        return evaluation_weights_of(self.optimizer) if averaging is None else averaging.evaluation_weights

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return self.progress.step

    @property
    def epochs_done(self) -> float:
        """Number of epochs done, with the fraction of the current one."""
        return self.progress.epoch + self.progress.samples_seen / self.batches.num_samples

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group in the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def lrs(self) -> dict[str, float]:
        """Learning rates of the last step: `lr` of the first group, and `lr/<name>` of those of `parameter_groups`."""
        named = {f"lr/{entry.name}" for entry in entries_of(self.blueprint.config)}
        groups = {f"lr/{group['name'].removesuffix('/no_decay')}": group["lr"] for group in self.optimizer.param_groups}
        return {"lr": self.lr, **{name: float(lr) for name, lr in groups.items() if name in named}}

    @property
    def lr_factor(self) -> float:
        """Factor on all learning rates in the next step: the schedule's, halved for each rollback."""
        return self.blueprint.factor(self.progress.step) * 0.5**self.progress.rollbacks

    @property
    def skips_nonfinite(self) -> bool:
        """Whether steps that are not finite are skipped."""
        return bool(self.blueprint.config["on_nonfinite"] == "skip")

    @property
    def keeps_undo(self) -> bool:
        """Whether a closure optimizer's step may have to be undone, which needs a copy of weights and state."""
        return self.skips_nonfinite or bool(self.blueprint.config["micro_batch"] == "auto")

    def set_learning_rate(self) -> None:
        """Set the learning rates of this step."""
        factor = self.lr_factor
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def set_micro_batch(self, step: int) -> None:
        """Set the size of the micro-batches of a step, for which memory may have been short."""
        size, most = self.blueprint.timeline.phase(step).micro_batch, self.objective.most_at_once
        self.objective.micro_batch = size if most is None else min(size, most)

    def advance(self, count: int) -> None:
        """Count a step over `count` samples."""
        self.throughput.samples += count
        if self.progress.advance(count, self.batches.num_samples):
            self.batches.end_epoch(self.strategy.sum)

    def say(self, text: str) -> None:
        """Print a message to the user, on the main rank."""
        if self.report is not None:
            self.report.message(text)

    def close(self) -> None:
        """Release files and the run folder; idempotent."""
        self.has_ended = True
        profiler, self.profiler = self.profiler, None
        if profiler is not None and profiler.current_action is not torch.profiler.ProfilerAction.WARMUP:
            profiler.stop()  # during warm-up, stop() crashes in torch 2.11
        if self.report is not None:
            self.report.close()
        if self.lock is not None:
            self.lock.release()
        self.strategy.close()
