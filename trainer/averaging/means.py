"""Exponential and plain means of the weights."""

from trainer.averaging.averaging import Averaging
from trainer.base.checks import check_number, check_that, check_whole
from trainer.base.duration import steps_of


class EMA(Averaging):
    """Exponential moving average: a <- d_n a + (1 - d_n) w after each step (Polyak & Juditsky 1992; Tarvainen & Valpola
    2017).

    `decay`: d in [0, 1). With `warmup`, d_n = min(d, (1 + n) / (10 + n)) for the n-th update, so that the first weights
    are soon forgotten. Raises ValueError for other values.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        self.decay = check_number("decay", decay, 0, 1, below=True)
        self.warmup = warmup

    def share(self, step: int, count: int) -> float | None:
        decay = min(self.decay, (1 + count) / (10 + count)) if self.warmup else self.decay
        return 1 - decay


class Mean(Averaging):
    """Mean of the weights from step `start` on, taken `every` duration: a <- a + (w - a) / n.

    After every step it is Polyak-Ruppert averaging (Polyak & Juditsky 1992); at the end of epochs, with the statistics
    of batch norm estimated from `batch_norm_samples` >= 0 training samples, stochastic weight averaging (Izmailov et
    al. 2018). `start`: duration, before the end of the run; `every`: duration. Raises ValueError for other values.
    """

    def __init__(
        self,
        start: str = "50%",
        every: str = "1step",
        batch_norm_samples: int = 0,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.start = steps_of("start", start, steps_per_epoch, total_steps)
        if str(start).endswith("%") and str(start) != "100%":
            self.start = min(self.start, total_steps - 1)  # rounding up must not make it as late as a short run's end
        check_that(self.start < total_steps, "start", start, f"before the end of the run of {total_steps:,} steps")
        self.every = steps_of("every", every, steps_per_epoch, total_steps, least=1)
        self.batch_norm_samples = check_whole("batch_norm_samples", batch_norm_samples, 0)

    def notice(self, moments: int) -> str | None:
        first = self.start + self.every
        if first <= moments:
            return None
        return (
            f"takes no average: the first weights would be those of step {first:,}, and the run has {moments:,}; set "
            f"averaging.every={moments - self.start}step, or less"
        )

    def share(self, step: int, count: int) -> float | None:
        since = step - self.start
        return 1 / (count + 1) if since > 0 and since % self.every == 0 else None
