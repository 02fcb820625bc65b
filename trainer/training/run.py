"""A run: everything that training needs, put together and with its place in time."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.base.precision import LossScale
from trainer.configuration.blueprint import Blueprint
from trainer.metrics import Meter
from trainer.parallelism.strategy import Strategy
from trainer.reporting.report import Report
from trainer.storage.checkpoint import CheckpointWriter
from trainer.storage.run_folder import Lock
from trainer.training.batches import TrainingBatches
from trainer.training.gradients import GradientGuard
from trainer.training.objective import Closure
from trainer.training.throughput import Throughput

_EVALUATION_BYTES = 4 << 20


def _read(images: Any, shares: list[Tensor]) -> Iterator[Tensor]:
    """Those images of a tensor, or of photographs, which are read ahead."""
    if isinstance(images, Tensor):
        return (images[share[0] : share[-1] + 1] if len(share) else images[:0] for share in shares)
    found: Iterator[Tensor] = images.read((share, None) for share in shares)
    return found


@dataclass
class Best:
    """The evaluation that counts: of the weights in `best.pt`."""

    step: int
    epoch: float
    metrics: dict[str, float]


@dataclass
class Run:
    """What `fit` works with. `step` optimizer steps are done; the place in the data is (epoch, samples seen)."""

    blueprint: Blueprint
    device: torch.device
    strategy: Strategy
    splits: Any
    preprocessing: nn.Module
    model: nn.Module
    num_parameters: int
    optimizer: torch.optim.Optimizer
    base_lrs: list[float]
    loss_scale: LossScale | None
    guard: GradientGuard
    meter: Meter
    closure: Closure
    batches: TrainingBatches
    diagnostics: Any
    channels_last: bool
    replica: Callable[[], "Run"]
    step: int = 0
    epoch: int = 0
    samples_seen: int = 0
    rollbacks: int = 0
    best: Best | None = None
    initial_loss: Tensor | None = None
    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    throughput: Throughput = field(default_factory=Throughput)
    is_trial: bool = False
    folder: Path | None = None
    lock: Lock | None = None
    report: Report | None = None
    checkpoints: CheckpointWriter | None = None
    profiler: Any = None

    @property
    def epochs_done(self) -> float:
        """Epochs as a fraction, for people and charts."""
        return self.epoch + self.samples_seen / self.batches.num_samples

    @property
    def seconds(self) -> float:
        """Wall time over all sittings."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group in the step before."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_learning_rate(self) -> None:
        """What the schedule says for this step; halved at each roll-back."""
        factor = self.blueprint.schedule.factor(self.step) * 0.5**self.rollbacks
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def advance(self, count: int) -> None:
        """One step further, over `count` samples."""
        self.step += 1
        self.samples_seen += count
        self.throughput.samples += count
        if self.samples_seen >= self.batches.num_samples:
            self.epoch, self.samples_seen = self.epoch + 1, 0
            self.batches.end_epoch(self.strategy.sum)

    def evaluation_batches(self, part: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of a part of the data, preprocessed, about 4 MB of images at a time (or a batch)."""
        for images, targets in self.raw_evaluation_batches(part):
            yield self.prepared(images), targets

    def raw_evaluation_batches(self, part: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """The same images as they are stored, on the device."""
        shares = self.evaluation_shares(part)
        for share, image in zip(shares, _read(part.images_NCHW, shares), strict=True):
            yield image.to(self.device), part.targets_N[share].to(self.device)

    def evaluation_shares(self, part: Any) -> list[Tensor]:
        """Which samples those are, batch by batch: int64 indices on the CPU, one after the other; or none."""
        size = max(self.closure.micro_batch, _EVALUATION_BYTES // max(1, math.prod(part.images_NCHW.shape[1:]) * 4))
        if self.closure.micro_batch < self.blueprint.batch_size:  # memory is short
            size = self.closure.micro_batch
        chunks = torch.arange(len(part.targets_N)).split(size * self.strategy.data_size)
        return [chunk[self.strategy.share(len(chunk))] for chunk in chunks]

    def prepared(self, images: Tensor) -> Tensor:
        """Images as the model takes them: preprocessed, in its memory layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        ready: Tensor = self.preprocessing(images)
        return ready.contiguous(memory_format=layout)

    def close(self) -> None:
        """Let go of files and folder; safe to call again."""
        profiler, self.profiler = self.profiler, None
        if profiler is not None and profiler.current_action is not torch.profiler.ProfilerAction.WARMUP:
            profiler.stop()  # in its warm-up torch 2.11 would crash
        if self.report is not None:
            self.report.close()
        if self.lock is not None:
            self.lock.release()
        self.strategy.close()
