"""The steps of a run: how many samples each takes, and where in the data it begins."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Position(NamedTuple):
    """A place in the data: `sample` samples of epoch `epoch` have been used."""

    epoch: int
    sample: int


@dataclass(frozen=True)
class Phase:
    """Consecutive steps of one batch size: from step `step`, which begins at `start`."""

    step: int
    start: Position
    batch_size: int
    micro_batch: int


class Segment(NamedTuple):
    """Samples `start` to `end` of an epoch, used in batches of `batch_size`, in micro-batches of `micro_batch`."""

    start: int
    end: int
    batch_size: int
    micro_batch: int


class Timeline:
    """The steps of a run, whose batch may grow.

    A moment is a point of the run in units of a step of the first batch size. Durations are moments, and schedules are
    functions of them, so that they mean the same number of samples for every batch size. If the batch does not grow,
    moments are steps.

    `num_samples`: samples in an epoch; `moments`: length of the run; `growth`: from which moment on a batch has how
    many samples. A batch belongs to one epoch, and has the size that applies where it begins. `micro_batch` gives the
    size of micro-batches from that of the batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        moments: int,
        growth: Iterable[tuple[int, int]] = (),
        micro_batch: Callable[[int], int] = lambda batch_size: batch_size,
    ) -> None:
        self.num_samples, self.moments, self._unit = num_samples, moments, batch_size
        self.moments_per_epoch = -(-num_samples // batch_size)
        self.phases = [Phase(0, Position(0, 0), batch_size, micro_batch(batch_size))]
        for moment, size in growth:
            step = self.step_at(moment)
            self.phases.append(Phase(step, self.position(step), size, micro_batch(size)))
        self._first_steps = [phase.step for phase in self.phases]
        self.total_steps = self.step_at(moments)

    @property
    def grows(self) -> bool:
        return len(self.phases) > 1

    @property
    def largest(self) -> Phase:
        """The phase with the most samples in a step."""
        return max(self.phases, key=lambda phase: phase.batch_size)

    def phase(self, step: int) -> Phase:
        """Return the phase of step `step` (0, 1, ...)."""
        return self.phases[bisect_right(self._first_steps, step) - 1] if self.grows else self.phases[0]

    def position(self, step: int) -> Position:
        """Return the position in the data after `step` steps, where step number `step` begins."""
        phase = next(phase for phase in reversed(self.phases) if phase.step <= step)
        since, (epoch, sample), size = step - phase.step, phase.start, phase.batch_size
        in_first = -(-(self.num_samples - sample) // size)
        if since < in_first:
            return Position(epoch, sample + since * size)
        epochs, since = divmod(since - in_first, self._steps_per_epoch(size))
        return Position(epoch + 1 + epochs, since * size)

    def step_at(self, moment: int) -> int:
        """Return the number of steps after which `moment` is reached."""
        epoch, of_epoch = divmod(moment, self.moments_per_epoch)
        wanted = Position(epoch, of_epoch * self._unit)
        ends = [phase.step for phase in self.phases[1:]]
        for phase, end in zip(self.phases, [*ends, None], strict=True):
            step = phase.step + self._steps_between(phase, wanted)
            if end is None or step <= end:
                return step
        raise AssertionError("the last phase has no end")

    def moment(self, step: int) -> int:
        """Return the moment that is reached after `step` steps."""
        if not self.grows:
            return step
        epoch, sample = self.position(step)
        return epoch * self.moments_per_epoch + sample // self._unit

    def reached(self, step: int) -> range:
        """Return the moments that the last of `step` steps reached."""
        return range(self.moment(step - 1) + 1, self.moment(step) + 1)

    def segments(self, epoch: int) -> Iterator[Segment]:
        """Yield the parts of an epoch that have one batch size each."""
        ends = [*(phase.start for phase in self.phases[1:]), Position(epoch + 1, 0)]
        for phase, end in zip(self.phases, ends, strict=True):
            first, last = max(phase.start, Position(epoch, 0)), min(end, Position(epoch + 1, 0))
            if first < last:
                stop = last.sample if last.epoch == epoch else self.num_samples
                yield Segment(first.sample, stop, phase.batch_size, phase.micro_batch)

    def _steps_per_epoch(self, batch_size: int) -> int:
        return -(-self.num_samples // batch_size)

    def _steps_between(self, phase: Phase, wanted: Position) -> int:
        """Return the number of steps of a phase until a position is reached."""
        if wanted <= phase.start:
            return 0
        size, (epoch, sample) = phase.batch_size, phase.start
        if wanted.epoch == epoch:
            return -(-(wanted.sample - sample) // size)
        in_first = -(-(self.num_samples - sample) // size)
        whole = (wanted.epoch - epoch - 1) * self._steps_per_epoch(size)
        return in_first + whole - (-wanted.sample // size)
