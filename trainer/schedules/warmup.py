"""The warm-up that can precede any schedule."""

from collections.abc import Iterable, Mapping
from typing import Literal

from trainer.base.checks import check_choice, check_number, check_that
from trainer.base.duration import parse_duration
from trainer.base.stateful import State
from trainer.contracts import Schedule
from trainer.schedules.time import SHARE


class Warmup:
    """Rise of the learning rate in the first W steps: linear, s + (1 - s) (t + 1) / W, or constant, s.

    `warmup`: duration W, shorter than the schedule; `warmup_start`: s in [0, 1]; `warmup_shape`: linear or constant.
    The first step of a linear warm-up already has a factor above 0, and step W - 1 has the full rate; the figures of
    CUHK ELEG 5491 leave the end points open. Constant: He et al. 2015, section 4.2; linear: Goyal et al. 2017. Raises
    ValueError for other values.
    """

    def __init__(
        self,
        warmup: str,
        warmup_start: float = 0.0,
        warmup_shape: Literal["linear", "constant"] = "linear",
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        duration = parse_duration(warmup)
        self.steps = duration.steps(steps_per_epoch, total_steps)
        if duration.unit == "%" and duration.amount < 100:
            self.steps = min(self.steps, total_steps - 1)  # rounding up must not make it as long as a short run
        if self.steps >= total_steps:
            raise ValueError(
                f"warmup={warmup}: is {self.steps} steps, must be shorter than the run of {total_steps} steps"
            )
        self.start = check_number("warmup_start", warmup_start, 0, 1, must=SHARE)
        self.shape = check_choice("warmup_shape", warmup_shape, ("linear", "constant"))
        check_that(self.start > 0 or self.shape == "linear", "warmup_start", warmup_start, "above 0 if it is constant")

    def factor(self, step: int) -> float:
        """Return the factor for step t < W."""
        return self.start if self.shape == "constant" else self.start + (1 - self.start) * (step + 1) / self.steps


class Warmed(Schedule):
    """A schedule that begins at the end of a warm-up: its step 0 is step W of the run, as with torch's SequentialLR.

    Its durations count from there, and its length is that of the run without the warm-up.
    """

    def __init__(self, warmup: Warmup, after: Schedule) -> None:
        self.rise, self.after = warmup, after
        self.warmup, self.monitor, self.tail = warmup.steps, after.monitor, after.tail
        self.batch_sizes = [(self.warmup + moment, size) for moment, size in after.batch_sizes]

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return self.rise.factor(step) * self.after.factor(0)
        return self.after.factor(step - self.warmup)

    @property
    def listens(self) -> bool:
        return self.after.listens

    def observe(self, metrics: Mapping[str, float]) -> None:
        self.after.observe(metrics)

    def notices(self, total_steps: int) -> Iterable[str]:
        return self.after.notices(total_steps - self.warmup)

    def cycle_ends(self, total_steps: int) -> tuple[int, ...]:
        return tuple(self.warmup + end for end in self.after.cycle_ends(total_steps - self.warmup))

    def state_dict(self) -> State:
        return self.after.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.after.load_state_dict(state)
