"""Schedules with cycles."""

import math
from bisect import bisect_right
from collections.abc import Iterator

from trainer.base.checks import check_number, check_that, check_whole
from trainer.base.duration import steps_of
from trainer.contracts import Schedule
from trainer.schedules.time import SHARE, half_cosine

_MOST = 1000  # cycles, and times that each is as long as the one before


class Sgdr(Schedule):
    """Cosine decay with warm restarts: factor = f + (max(f, p^i) - f) (1 + cos(pi t_i / T_i)) / 2 in cycle i.

    i = 0, 1, ...; t_i are the steps since the restart, and T_i = T_0 m^i is the length of the cycle. `multiply`: whole
    number m in [1, 1000]; `cycle`: duration T_0, or None for `cycles` in [1, 1000] whole cycles in the schedule
    (rounded to steps); `peak`: p in (0, 1], by which the peaks fall from cycle to cycle; `final`: f in [0, 1], at the
    end of each cycle. Source: CUHK ELEG 5491; Loshchilov & Hutter 2017. Raises ValueError for other values.
    """

    def __init__(
        self,
        cycles: int = 3,
        cycle: str | None = None,
        multiply: int = 2,
        peak: float = 1.0,
        final: float = 0.0,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.multiply = check_whole("multiply", multiply, 1, _MOST)
        self.peak = check_number("peak", peak, 0, 1, above=True)
        self.final = check_number("final", final, 0, 1, must=SHARE)
        self.cycle = None if cycle is None else steps_of("cycle", cycle, steps_per_epoch, total_steps, least=1)
        self.tail = None if cycle is None else self._tail()
        self.starts = self._starts(check_whole("cycles", cycles, 1, _MOST), total_steps)

    def _tail(self) -> float:
        """The exponent of the envelope: the peak is p^i at a time that grows as m^i."""
        if self.final > 0 or self.peak == 1:
            return 0.0
        return math.inf if self.multiply == 1 else -math.log(self.peak) / math.log(self.multiply)

    def _starts(self, cycles: int, total_steps: int) -> list[int]:
        """The first step of each of `cycles` whole cycles, and the end of the last."""
        if self.multiply == 1:
            return [round(total_steps * i / cycles) for i in range(cycles + 1)]
        whole = self.multiply**cycles - 1
        return [round(total_steps * (self.multiply**i - 1) / whole) for i in range(cycles + 1)]

    def place(self, step: int) -> tuple[int, int, int]:
        """Return the number of the cycle, the steps since its start and its length."""
        if self.cycle is None:
            number = bisect_right(self.starts, step) - 1
            start, end = self.starts[number : number + 2]
            return number, step - start, end - start
        if self.multiply == 1:
            return step // self.cycle, step % self.cycle, self.cycle
        number, length = 0, self.cycle
        while step >= length:
            number, step, length = number + 1, step - length, length * self.multiply
        return number, step, length

    def factor(self, step: int) -> float:
        number, since, length = self.place(step)
        peak = max(self.final, float(self.peak**number))
        return self.final + (peak - self.final) * half_cosine(since / length)

    def cycle_ends(self, total_steps: int) -> tuple[int, ...]:
        if self.cycle is None:
            return tuple(sorted({end for end in self.starts[1:] if 0 < end <= total_steps}))
        ends, length = [self.cycle], self.cycle
        while ends[-1] <= total_steps:
            length *= self.multiply
            ends.append(ends[-1] + length)
        return tuple(ends[:-1])

    def notices(self, total_steps: int) -> Iterator[str]:
        if self.cycle is None:
            return
        number, since, length = self.place(total_steps)
        if since:
            yield (
                f"the schedule of {total_steps:,} steps ends {since / length:.0%} into cycle {number + 1}; "
                f"lengths with whole cycles: {total_steps - since:,} and {total_steps - since + length:,} steps"
            )


class OneCycle(Schedule):
    """Half a cosine from s up to 1 in the first R steps, then half a cosine down to f in the last step.

    `rise`: duration R, shorter than the schedule; `start`: s and `final`: f in [0, 1]. torch's OneCycleLR without its
    cycle of the momentum; final = 4e-6 there. Source: Smith & Topin 2019. Raises ValueError for other values.
    """

    def __init__(
        self,
        rise: str = "30%",
        start: float = 0.04,
        final: float = 4e-6,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.rise = steps_of("rise", rise, steps_per_epoch, total_steps, least=1)
        if rise.endswith("%") and rise != "100%":  # rounding up must not make it as long as a short run
            self.rise = min(self.rise, total_steps - 1)
        check_that(self.rise < total_steps, "rise", rise, f"shorter than the schedule of {total_steps:,} steps")
        self.start = check_number("start", start, 0, 1, must=SHARE)
        self.final = check_number("final", final, 0, 1, must=SHARE)
        self.total_steps = total_steps

    def factor(self, step: int) -> float:
        top = self.rise - 1
        if step < top:
            return 1 + (self.start - 1) * half_cosine(step / top)
        return self.final + (1 - self.final) * half_cosine((step - top) / (self.total_steps - 1 - top))
