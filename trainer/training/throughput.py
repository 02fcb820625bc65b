"""Samples per second, and the fraction of time spent waiting for data."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.training.batches import Batch

_MAX_WAIT_FRACTION, _MIN_SECONDS = 0.2, 2.0


@dataclass
class Throughput:
    """Samples per second and the fraction of time spent waiting for data, since the last `read`."""

    samples: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    total_waited: float = 0.0  # seconds waited since the first reading
    total: float | None = None  # seconds since the first reading; None before it
    has_warned: bool = False
    began: float | None = None  # time at which the first batch arrived
    waited_in_all: float = 0.0  # seconds waited since then

    def await_next(self, batches: Iterator[Batch]) -> Batch | None:
        """Return the next batch, or None at the end, and record the wait for it."""
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

    def excessive_wait(self, *, at_end: bool = False) -> float | None:
        """Return the fraction of time spent waiting, once, if it exceeds 20 % of at least two seconds; else None.

        The time before the first reading does not count, because workers start and kernels are selected then. With
        `at_end`, everything counts except the wait for the first batch, as there may have been no other reading.
        """
        waited, total = self.total_waited, self.total or 0.0
        if at_end:
            waited, total = self.waited_in_all, 0.0 if self.began is None else time.perf_counter() - self.began
        if self.has_warned or total < _MIN_SECONDS or waited <= _MAX_WAIT_FRACTION * total:
            return None
        self.has_warned = True
        return waited / total
