"""Learning-rate schedules: pure functions of the step.

`factor(step)` multiplies each learning rate in optimizer step `step` (0, 1, ...): `lr(step) = lr * factor(step)`. A
schedule that depends on validation metrics (`Plateau`) also has `observe`, `state_dict` and `load_state_dict`.
Durations are given as text; converting them needs `steps_per_epoch` and `total_steps`.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

from trainer.base.checks import check_number, check_that, check_whole
from trainer.base.duration import parse_duration
from trainer.base.improvement import Improvement
from trainer.base.stateful import State
from trainer.contracts import Schedule

_SHARE = "in [0, 1]"


class Constant(Schedule):
    """factor(t) = 1."""

    def factor(self, step: int) -> float:
        return 1.0


class Step(Schedule):
    """factor(t) = f^floor(t / d): a drop every d steps (CUHK ELEG 5491: divided by 10 whenever mod(t, d) = 0).

    `every`: duration d; `factor`: f in (0, 1). Raises ValueError for other values.
    """

    def __init__(self, every: str, factor: float = 0.1, *, steps_per_epoch: int, total_steps: int) -> None:
        self.every = parse_duration(every).steps(steps_per_epoch, total_steps)
        check_that(self.every >= 1, "every", every, "at least one step")
        self.drop = check_number("factor", factor, 0, 1, above=True, below=True)

    def factor(self, step: int) -> float:
        return float(self.drop ** (step // self.every))


class Cosine(Schedule):
    """factor(t) = f + (1 - f) (1 + cos(pi t / T)) / 2 over the T steps of the run.

    `final`: f in [0, 1], reached at step T. Source: Loshchilov & Hutter 2017, with one cycle. Raises ValueError for
    other values.
    """

    def __init__(self, final: float = 0.0, *, total_steps: int) -> None:
        self.final = check_number("final", final, 0, 1, must=_SHARE)
        self.total_steps = total_steps

    def factor(self, step: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / self.total_steps)) / 2


class _Warmup(Schedule):
    """factor(t) = s + (1 - s) (t + 1) / W for t < W, then f + (1 - f) `decay`(p), p = (t - W) / (T - W).

    `warmup`: duration W; `start`: s and `final`: f, in [0, 1]. The first step already has a factor above 0, s + (1 -
    s) / W, and step W - 1 has the full rate; the figures of CUHK ELEG 5491 leave the end points open. Raises
    ValueError if the warm-up is not shorter than the run, or if s or f is outside [0, 1].
    """

    def __init__(self, warmup: str, start: float, final: float, *, steps_per_epoch: int, total_steps: int) -> None:
        duration = parse_duration(warmup)
        self.warmup = duration.steps(steps_per_epoch, total_steps)
        if duration.unit == "%" and duration.amount < 100:
            self.warmup = min(self.warmup, total_steps - 1)  # rounding up must not make it as long as a short run
        if self.warmup >= total_steps:
            raise ValueError(
                f"warmup={warmup}: is {self.warmup} steps, must be shorter than the run of {total_steps} steps"
            )
        self.start = check_number("start", start, 0, 1, must=_SHARE)
        self.final = check_number("final", final, 0, 1, must=_SHARE)
        self.total_steps = total_steps

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (1 - self.start) * (step + 1) / self.warmup
        progress = (step - self.warmup) / (self.total_steps - self.warmup)
        return self.final + (1 - self.final) * self.decay(progress)

    def decay(self, progress: float) -> float:
        raise AssertionError("subclasses define the decay")


class LinearWarmup(_Warmup):
    """Linear warm-up, then linear decay: decay(p) = 1 - p."""

    def decay(self, progress: float) -> float:
        return 1 - progress


class CosineWarmup(_Warmup):
    """Linear warm-up, then cosine decay: decay(p) = (1 + cos(pi p)) / 2."""

    def decay(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


class Plateau(Schedule):
    """factor = max(floor, f^k), where k counts how often the monitored metric stalled for more than `patience`
    evaluations.

    Like torch's ReduceLROnPlateau with an absolute threshold and no cooldown (UVic PHYS 555: divided by 10 when
    validation stalls). `factor`: f in (0, 1); `patience` >= 0 evaluations; `min_delta` >= 0; `floor` in [0, 1].
    `directions` are those that the loss declares, for `mode="auto"`.
    """

    monitor: str

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: str = "auto",
        factor: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        floor: float = 0.0,
        *,
        directions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.monitor = monitor
        self.drop = check_number("factor", factor, 0, 1, above=True, below=True)
        self.patience = check_whole("patience", patience, 0)
        self.floor = check_number("floor", floor, 0, 1, must=_SHARE)
        self.improvement = Improvement(monitor, mode, min_delta, directions, "schedule.")
        self.drops = self.stalled = 0

    def factor(self, step: int) -> float:
        return max(self.floor, float(self.drop**self.drops))

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an evaluation."""
        self.stalled = 0 if self.improvement.observe(metrics[self.monitor]) else self.stalled + 1
        if self.stalled > self.patience:
            self.drops, self.stalled = self.drops + 1, 0

    def state_dict(self) -> State:
        return {"drops": self.drops, "stalled": self.stalled, "best": self.improvement.best}

    def load_state_dict(self, state: State) -> None:
        self.drops, self.stalled = state["drops"], state["stalled"]
        self.improvement.best = state["best"]
