"""Samples a second, and the share of the time spent waiting for data."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.training.batches import Batch

_MOST_WAITING, _LONG_ENOUGH = 0.2, 2.0  # share of the time, and seconds


@dataclass
class Throughput:
    """Samples a second and the share of time spent waiting for data, since the last reading."""

    samples: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    total_waited: float = 0.0  # seconds since the first reading,
    total: float | None = None  # and of how many; None before it
    told: bool = False
    began: float | None = None  # when the first batch was there, and
    waited_in_all: float = 0.0  # seconds since

    def await_next(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch; the wait for it counts."""
        start = time.perf_counter()
        batch = next(batches, None)
        now = time.perf_counter()
        self.waited += now - start
        if self.began is None:
            self.began = now
        else:
            self.waited_in_all += now - start
        return batch

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        values = {
            "throughput/samples_per_second": self.samples / elapsed,
            "throughput/data_wait_share": self.waited / elapsed,
        }
        if self.total is None:
            self.total = 0.0
        else:
            self.total_waited, self.total = self.total_waited + self.waited, self.total + elapsed
        self.samples, self.waited, self.since = 0, 0.0, time.perf_counter()
        return values

    def too_long(self, *, at_end: bool = False) -> float | None:
        """The share of time spent waiting so far, said once: when it is above 20 % of two seconds or more. What
        came before the first reading does not count: workers start then, and kernels are chosen; `at_end` all
        counts but the wait for the first batch, as there may have been no other reading."""
        waited, total = self.total_waited, self.total or 0.0
        if at_end:
            waited, total = self.waited_in_all, 0.0 if self.began is None else time.perf_counter() - self.began
        if self.told or total < _LONG_ENOUGH or waited <= _MOST_WAITING * total:
            return None
        self.told = True
        return waited / total
