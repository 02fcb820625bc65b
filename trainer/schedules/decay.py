"""Schedules without cycles: constant, in drops, and smooth decays."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from trainer.base.checks import check_choice, check_number, check_that
from trainer.base.duration import steps_of
from trainer.contracts import Schedule
from trainer.schedules.time import SHARE, half_cosine


class Constant(Schedule):
    """factor(t) = 1."""

    tail = 0.0

    def factor(self, step: int) -> float:
        return 1.0


class Step(Schedule):
    """factor(t) = max(floor, f^floor(t / d)): a drop every d steps.

    `every`: duration d; `factor`: f in (0, 1); `floor` in [0, 1]. Divided by 10 whenever mod(t, d) = 0: CUHK ELEG
    5491; halved until precision limits are reached (gear shifting): UIUC ECE 598. Raises ValueError for other values.
    """

    def __init__(
        self, every: str, factor: float = 0.1, floor: float = 0.0, *, steps_per_epoch: int, total_steps: int
    ) -> None:
        self.every = steps_of("every", every, steps_per_epoch, total_steps, least=1)
        self.drop = check_number("factor", factor, 0, 1, above=True, below=True)
        self.floor = check_number("floor", floor, 0, 1, must=SHARE)
        self.tail = 0.0 if floor > 0 else math.inf
        self.drop_moments = range(self.every, total_steps, self.every)
        self.named = str(every)

    def factor(self, step: int) -> float:
        return max(self.floor, float(self.drop ** (step // self.every)))

    def notices(self, total_steps: int) -> Iterator[str]:
        if self.every >= total_steps:
            yield f"no drop: every {self.named} is {self.every:,} steps; the schedule has {total_steps:,}"


class MultiStep(Schedule):
    """factor(t) = f^k, where k counts the milestones that are <= t.

    `milestones`: durations, each longer than the one before; `factor`: f in (0, 1). Source: He et al. 2015, section
    4.2: divided by 10 after 32k and 48k of 64k steps. Raises ValueError for other values.
    """

    tail = 0.0

    def __init__(
        self, milestones: Sequence[str], factor: float = 0.1, *, steps_per_epoch: int, total_steps: int
    ) -> None:
        self.milestones = [steps_of("milestones", each, steps_per_epoch, total_steps, least=1) for each in milestones]
        rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        check_that(bool(milestones) and rising, "milestones", milestones, "durations, each longer than the one before")
        self.drop = check_number("factor", factor, 0, 1, above=True, below=True)
        self.named = dict(zip(self.milestones, map(str, milestones), strict=True))
        self.drop_moments = [milestone for milestone in self.milestones if milestone < total_steps]

    def factor(self, step: int) -> float:
        return float(self.drop ** sum(milestone <= step for milestone in self.milestones))

    def notices(self, total_steps: int) -> Iterator[str]:
        late = [f"{text} (step {step:,})" for step, text in self.named.items() if step >= total_steps]
        if late:
            yield f"not reached: {', '.join(late)}; the schedule has {total_steps:,} steps"


class InverseTime(Schedule):
    """factor(t) = 1 / (1 + k t / d). `k` > 0; `unit`: duration d, in which k is given.

    Source: UVic PHYS 555 (1/t decay). Raises ValueError for other values.

    Slide: CUHK ELEG 5491 multiplies the last rate by lr_0 / (1 + k t) in every step, which is near 0 after a few; here
    the first rate is divided by 1 + k t.
    """

    tail = 1.0

    def __init__(self, k: float = 1.0, unit: str = "1ep", *, steps_per_epoch: int, total_steps: int) -> None:
        self.k = check_number("k", k, 0, above=True)
        self.unit = steps_of("unit", unit, steps_per_epoch, total_steps, least=1)

    def factor(self, step: int) -> float:
        return 1 / (1 + self.k * step / self.unit)


class InverseSqrt(Schedule):
    """factor(t) = 1 / sqrt(1 + t / k). `k`: duration after which the factor is sqrt(1/2).

    With a warm-up of k steps, the schedule of Vaswani et al. 2017: sqrt(k / t) after it. Raises ValueError if k is
    zero.
    """

    tail = 0.5

    def __init__(self, k: str = "1ep", *, steps_per_epoch: int, total_steps: int) -> None:
        self.k = steps_of("k", k, steps_per_epoch, total_steps, least=1)

    def factor(self, step: int) -> float:
        return 1 / math.sqrt(1 + step / self.k)


class Exponential(Schedule):
    """factor(t) = exp(-k t / d). `k` > 0; `unit`: duration d, in which k is given.

    Source: CUHK ELEG 5491; UVic PHYS 555. Raises ValueError for other values.

    Slide: CUHK ELEG 5491 counts t in iterations; here, `unit` says in what. UVic PHYS 555 prints the formula of
    `linear` under this name, too.
    """

    tail = math.inf

    def __init__(self, k: float = 0.1, unit: str = "1ep", *, steps_per_epoch: int, total_steps: int) -> None:
        self.k = check_number("k", k, 0, above=True)
        self.unit = steps_of("unit", unit, steps_per_epoch, total_steps, least=1)

    def factor(self, step: int) -> float:
        return math.exp(-self.k * step / self.unit)


class Polynomial(Schedule):
    """factor(t) = f + (1 - f) (1 - t / T)^p over the T steps of the schedule.

    `power`: p > 0, 1 for a straight line (UVic PHYS 555); `final`: f in [0, 1], reached at step T. Raises ValueError
    for other values.
    """

    def __init__(self, power: float = 1.0, final: float = 0.0, *, total_steps: int) -> None:
        self.power = check_number("power", power, 0, above=True)
        self.final = check_number("final", final, 0, 1, must=SHARE)
        self.total_steps = total_steps

    def factor(self, step: int) -> float:
        return self.final + (1 - self.final) * float((1 - step / self.total_steps) ** self.power)


class Cosine(Schedule):
    """factor(t) = f + (1 - f) (1 + cos(pi t / T)) / 2 over the T steps of the schedule.

    `final`: f in [0, 1], reached at step T. Source: Loshchilov & Hutter 2017, with one cycle. Raises ValueError for
    other values.
    """

    def __init__(self, final: float = 0.0, *, total_steps: int) -> None:
        self.final = check_number("final", final, 0, 1, must=SHARE)
        self.total_steps = total_steps

    def factor(self, step: int) -> float:
        return self.final + (1 - self.final) * half_cosine(step / self.total_steps)


class WarmupStableDecay(Schedule):
    """factor(t) = 1, then f + (1 - f) d(q) in the last D steps, q = (t - (T - D)) / D.

    `decay`: duration D, at most the schedule; `shape`: linear d = 1 - q, cosine d = (1 + cos(pi q)) / 2 or sqrt
    d = 1 - sqrt(q); `final`: f in [0, 1]. The warm-up is that of every schedule. Source: Hu et al. 2024 (MiniCPM);
    Hägele et al. 2024 for sqrt. Raises ValueError for other values.
    """

    def __init__(
        self,
        decay: str = "20%",
        shape: Literal["linear", "cosine", "sqrt"] = "sqrt",
        final: float = 0.0,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        length = steps_of("decay", decay, steps_per_epoch, total_steps, least=1)
        check_that(length <= total_steps, "decay", decay, f"at most the schedule of {total_steps:,} steps")
        self.shape = check_choice("shape", shape, ("linear", "cosine", "sqrt"))
        self.final = check_number("final", final, 0, 1, must=SHARE)
        self.begin, self.length = total_steps - length, length

    def factor(self, step: int) -> float:
        if step <= self.begin:
            return 1.0
        progress = (step - self.begin) / self.length
        fall = {"linear": 1 - progress, "cosine": half_cosine(progress), "sqrt": 1 - math.sqrt(progress)}
        return self.final + (1 - self.final) * fall[self.shape]
