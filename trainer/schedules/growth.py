"""A batch that grows where a schedule would have dropped the learning rate."""

from collections.abc import Iterator
from typing import Literal

from trainer.base.checks import check_that, check_whole
from trainer.contracts import Schedule

_LARGEST_SHARE = 10  # Smith et al. 2018 let the batch grow up to a tenth of the training set


class Growth:
    """How far a batch of `batch_size` samples grows.

    `max_batch`: whole number of samples, at least `batch_size` and at most the training set of `num_train`; "auto": a
    tenth of the training set. Raises ValueError for other values.
    """

    def __init__(self, max_batch: int | Literal["auto"], *, batch_size: int, num_train: int) -> None:
        largest = max(batch_size, num_train // _LARGEST_SHARE) if max_batch == "auto" else max_batch
        must = f"null, auto or a whole number from {batch_size} (batch_size) to {num_train} (the training samples)"
        self.batch_size, self.max_batch = (
            batch_size,
            check_whole("max_batch", largest, batch_size, num_train, must=must),
        )


class Grown(Schedule):
    """A schedule whose drops let the batch grow instead, up to a largest one, after which the rate drops again.

        B(t) = min(B_max, round(B / f(t))),  factor(t) = f(t) B(t) / B

    f is the factor of the schedule and B the first batch size: the ratio of rate and batch size, on which the noise of
    the gradient depends, is f(t) / B as with the schedule alone, with fewer updates. t counts steps of the first batch
    size, so that the drops come after as many samples as with it.

    Source: UVic PHYS 555; Smith, Kindermans, Ying & Le 2018, "Don't Decay the Learning Rate, Increase the Batch Size".
    Raises ValueError for a schedule that has no drops.
    """

    def __init__(self, growth: Growth, after: Schedule) -> None:
        check_that(
            after.drop_moments is not None,
            "max_batch",
            growth.max_batch,
            "null for a schedule whose rate does not drop at moments known beforehand, as those of step, multistep, "
            "halve and multiply do",
        )
        self.after, self.growth, self.tail = after, growth, after.tail
        sizes = [(moment, self._size(moment)) for moment in after.drop_moments or ()]
        before = [growth.batch_size, *(size for _, size in sizes)]
        self.batch_sizes = [(moment, size) for (moment, size), last in zip(sizes, before, strict=False) if size > last]

    def factor(self, step: int) -> float:
        return self.after.factor(step) * self._size(step) / self.growth.batch_size

    def notices(self, total_steps: int) -> Iterator[str]:
        yield from self.after.notices(total_steps)
        if not self.batch_sizes:
            yield f"schedule.max_batch={self.growth.max_batch:,}: the batch does not grow during the schedule"

    def _size(self, step: int) -> int:
        wanted = self.growth.batch_size * self.after.factor(0) / max(self.after.factor(step), 1e-300)
        return min(self.growth.max_batch, round(min(wanted, self.growth.max_batch)))
