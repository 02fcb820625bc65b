"""Times of steps: their spread, their growth with the samples, and whether other programs disturbed them."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_SCHEDULER = Path("/proc/self/schedstat")  # ns on a processor, ns of waiting for one, number of times


class Spread(NamedTuple):
    """Seconds: the median, and the range of most measurements (from ten on, without the tenth at either end)."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> "Spread":
        return Spread(factor * self.median, factor * self.low, factor * self.high)

    def plus(self, other: "Spread") -> "Spread":
        return Spread(self.median + other.median, self.low + other.low, self.high + other.high)


def spread(seconds: Sequence[float]) -> Spread:
    ordered = sorted(seconds)
    cut = len(ordered) // 10
    return Spread(statistics.median(ordered), ordered[cut], ordered[-1 - cut])


def scaled(small: tuple[int, float], large: tuple[int, Spread], count: int) -> Spread:
    """Return the time of `count` samples, as a + b count, from times of two smaller numbers of samples.

    Neither a nor b is negative: noise could have it so.
    """
    (few, of_few), (many, of_many) = small, large
    if count == many:
        return of_many
    slope = (of_many.median - of_few) / (many - few) if many > few else of_many.median / many
    slope = min(max(slope, 0.0), of_many.median / many)
    constant = of_many.median - slope * many
    return of_many.times((constant + slope * count) / of_many.median) if of_many.median else of_many


class Waiting:
    """The fraction of time, since it was made, that this process waited for a processor that others had."""

    def __init__(self) -> None:
        self._before = _scheduled()

    def fraction(self) -> float:
        """Where the system does not tell, it is estimated from the number of processes that want a processor."""
        now = _scheduled()
        if now is None or self._before is None:
            return max(0.0, 1 - len(os.sched_getaffinity(0)) / max(1e-9, os.getloadavg()[0]))
        ran, waited = (after - before for after, before in zip(now, self._before, strict=True))
        return waited / max(1, ran + waited)


def _scheduled() -> tuple[int, int] | None:
    try:
        ran, waited, _ = _SCHEDULER.read_text().split()
    except (OSError, ValueError):
        return None
    return (int(ran), int(waited)) if int(ran) else None
