"""The blueprint of a run: a checked configuration with everything that can be derived before data are loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from trainer import metrics
from trainer.base.config import Component, Config
from trainer.base.duration import is_time, parse_duration
from trainer.base.errors import ConfigurationError
from trainer.base.improvement import Improvement
from trainer.base.timeline import Timeline
from trainer.configuration.build import build
from trainer.configuration.components import node_of
from trainer.configuration.probe import check_finite_number, key_of
from trainer.contracts import Loss, Schedule
from trainer.data.facts import DataFacts, DataSet
from trainer.early_stopping import EarlyStopping
from trainer.optimizers.parameter_groups import freeze
from trainer.parallelism.strategy import Strategy


@dataclass(frozen=True)
class Blueprint:
    """A checked configuration with its components.

    Durations are moments of the timeline: optimizer steps, of the first batch size if the batch grows. `batch_size` and
    `micro_batch` are the first ones.

    `others` contains the components of groups that the assembly does not know, by the group's name.
    """

    config: Config
    data: DataSet
    facts: DataFacts
    loss: Loss
    schedule: Schedule
    strategy: Strategy
    device: torch.device
    dtype: torch.dtype | None
    metrics: dict[str, metrics.Sum]
    batch_size: int
    micro_batch: int
    timeline: Timeline
    schedule_steps: int
    every_log: int
    log_restarts: int
    every_evaluate: int
    every_checkpoint: int
    monitor: str
    best: Improvement
    early_stopping: EarlyStopping | None
    others: Mapping[str, Component]

    @property
    def lr_scale(self) -> float:
        """Factor on all learning rates for this batch size, b / r or sqrt(b / r) of a reference batch r."""
        ratio = self.batch_size / self.config["reference_batch"]
        scales: dict[str, float] = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
        return scales[self.config["lr_scaling"]]

    def factor(self, step: int) -> float:
        """Return the factor on the learning rates in a step: that of the batch size times that of the schedule, which
        beyond its length is that of its last step."""
        asked = min(self.timeline.moment(step), self.schedule_steps - 1)
        factor = self.schedule.factor(asked)
        if type(factor) is not float or not 0 <= factor < math.inf:
            where = key_of(self.config, "schedule")
            factor = check_finite_number(where, f"factor({asked})", factor, low=0.0)
        return self.lr_scale * factor

    @property
    def for_averaging(self) -> dict[str, object]:
        """Arguments that the constructor of an average receives."""
        length = self.timeline.moments
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": length,
            "cycle_ends": tuple(self.schedule.cycle_ends(min(self.schedule_steps, length))),
        }

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps."""
        return self.timeline.total_steps

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of the first batch size in an epoch."""
        return self.timeline.moments_per_epoch

    def step_at(self, duration: str) -> int:
        """Return the number of optimizer steps after which a duration has passed."""
        moment = parse_duration(duration).steps(self.timeline.moments_per_epoch, self.timeline.moments)
        return self.timeline.step_at(moment)

    def is_time(self, step: int, every: int) -> bool:
        """Whether an action with period `every` is due after `step` steps; always true after the last step."""
        return any(is_time(moment, every, self.timeline.moments) for moment in self.timeline.reached(step))

    def at_largest_batch(self) -> "Blueprint":
        """Return a blueprint whose batches have the size of the largest, for estimates."""
        largest = self.timeline.largest
        return replace(self, batch_size=largest.batch_size, micro_batch=largest.micro_batch)

    def epochs_at(self, step: int) -> float:
        """Return the number of epochs done after `step` steps."""
        epoch, sample = self.timeline.position(step)
        return epoch + sample / self.timeline.num_samples

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the model. Raises ConfigurationError if the loss does not support the data."""
        try:
            return self.loss.num_outputs(self.facts.num_outputs)
        except ValueError as error:
            raise ConfigurationError(f"loss.{error}") from error

    def logs_at(self, step: int) -> bool:
        """Whether training metrics are logged after `step` steps; they are also read at each evaluation."""
        if step == self.total_steps:
            return True
        since_restart = ((moment - 1) % self.log_restarts + 1 for moment in self.timeline.reached(step))
        return any(is_time(since, self.every_log, self.log_restarts) for since in since_restart)

    def build_model(self) -> nn.Module:
        """Build the model on torch's current default device."""
        shape = tuple(self.facts.input_shape)
        model: nn.Module = build(self.config["model"], "model", input_shape=shape, num_outputs=self.num_outputs)
        if isinstance(model, nn.Module):  # else a check tells
            _initialize_lazy(model, shape)
            freeze(model, self.config)
            if self.config["parameter_groups"] and not any(p.requires_grad for p in model.parameters()):
                raise ConfigurationError(
                    "parameter_groups: all parameters are frozen, so that there is nothing to train"
                )
        return model

    def build_optimizer(self, params: ParamsT) -> torch.optim.Optimizer:
        """Build the optimizer for parameters or parameter groups."""
        optimizer: torch.optim.Optimizer = build(node_of(self.config, "optimizer"), "optimizer", params=params)
        return optimizer


def _initialize_lazy(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Let lazily built layers take their shapes from two samples of zeros."""
    if not any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    is_training = model.training
    model.eval()  # the statistics of batch norm are those of real samples
    with torch.no_grad():
        model(torch.zeros(2, *shape))
    model.train(is_training)


def micro_batch_size(config: Config, batch_size: int) -> int:
    """Return the number of samples of a micro-batch."""
    micro_batch = config["micro_batch"]
    if isinstance(micro_batch, int):
        return min(batch_size, micro_batch)
    accumulate: int = config["accumulate"]
    return -(-batch_size // accumulate)


def advised_size(samples: int) -> str:
    """Return which batch sizes a small set allows: all of it, or, if there are enough, a size that leaves no single
    sample for the last step of an epoch."""
    sizes = (size for size in (32, 16, 8, 4, 2) if 2 * size <= samples and samples % size != 1)
    size = next(sizes, None)
    return "batch_size=full takes all in each step" + ("" if size is None else f", batch_size={size} a part of them")
