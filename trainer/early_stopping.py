"""Early stopping: stop when the monitored metric has not improved for `patience` evaluations."""

from trainer.base.checks import check_whole
from trainer.base.improvement import Improvement
from trainer.base.stateful import State


class EarlyStopping:
    """Counts evaluations without improvement; the training loop asks `should_stop` after each.

    `patience` >= 1 evaluations; `min_delta` >= 0, the smallest change that counts as an improvement; evaluations at or
    before step `after_step` can set the best value but never count against patience. Raises ValueError for other
    values.
    """

    def __init__(self, monitor: str, mode: str, patience: int, min_delta: float, after_step: int = 0) -> None:
        check_whole("patience", patience, 1)
        self.patience, self.after_step = patience, after_step
        self.improvement = Improvement(monitor, mode, min_delta)
        self.waited = 0

    def should_stop(self, value: float, step: int) -> bool:
        """Record the evaluation after `step` steps; return whether patience is exhausted."""
        if self.improvement.observe(value) or step <= self.after_step:
            self.waited = 0
        else:
            self.waited += 1
        return self.has_stopped

    @property
    def has_stopped(self) -> bool:
        """Whether patience is exhausted."""
        return self.waited >= self.patience

    def state_dict(self) -> State:
        return {"waited": self.waited, "best": self.improvement.best}

    def load_state_dict(self, state: State) -> None:
        self.waited, self.improvement.best = state["waited"], state["best"]
