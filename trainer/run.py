"""A run: everything that training needs, put together and with its place in time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.batches import TrainingBatches
from trainer.blueprint import Blueprint
from trainer.checkpoint import CheckpointWriter
from trainer.closure import Closure
from trainer.gradients import GradientGuard
from trainer.metrics import Meter
from trainer.parallelism.strategy import Strategy
from trainer.precision import LossScale
from trainer.report import Report
from trainer.run_folder import Lock

_EVALUATION_BYTES = 4 << 20


@dataclass
class Best:
    """The evaluation that counts: of the weights in `best.pt`."""

    step: int
    epoch: float
    metrics: dict[str, float]


@dataclass
class Throughput:
    """Samples a second and the share of time spent waiting for data, since the last reading."""

    samples: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        values = {
            "throughput/samples_per_second": self.samples / elapsed,
            "throughput/data_wait_share": self.waited / elapsed,
        }
        self.samples, self.waited, self.since = 0, 0.0, time.perf_counter()
        return values


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

    def evaluation_batches(self, part: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of a part of the data, preprocessed, about 4 MB of images at a time (or a batch)."""
        images, targets = part.images_NCHW, part.targets_N
        size = max(self.closure.micro_batch, _EVALUATION_BYTES // max(1, images[0].numel() * 4))
        if self.closure.micro_batch < self.blueprint.batch_size:  # memory is short
            size = self.closure.micro_batch
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        size *= self.strategy.data_size
        for image, target in zip(images.split(size), targets.split(size), strict=True):
            share = self.strategy.share(len(target))
            ready = self.preprocessing(image[share].to(self.device)).contiguous(memory_format=layout)
            yield ready, target[share].to(self.device)

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
