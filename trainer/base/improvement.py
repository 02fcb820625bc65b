"""What counts as better: one rule for early stopping, best checkpoints and the plateau schedule."""

import math

from trainer.base.checks import check_number, check_one_of
from trainer.base.stateful import State

# metrics where less is better, by the last part of their name
_FALLING = ("loss", "error", "mae", "rmse", "mse", "penalty")


def direction(monitor: str, mode: str) -> str:
    """ "min" or "max"; `auto` means min for a loss or an error and max for anything else.

    Raises ValueError for another mode.
    """
    check_one_of("mode", mode, ("min", "max", "auto"))
    if mode != "auto":
        return mode
    return "min" if monitor.rpartition("/")[2].startswith(_FALLING) else "max"


class Improvement:
    """Remembers the best value; a value is better when it passes the best by more than `min_delta` >= 0.

    A value that is not a number is never better. Raises ValueError for a negative `min_delta`.
    """

    def __init__(self, monitor: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        check_number("min_delta", min_delta, 0)
        self.sign = -1.0 if direction(monitor, mode) == "min" else 1.0
        self.min_delta = min_delta
        self.best: float | None = None

    def observe(self, value: float) -> bool:
        """Whether `value` is better than all before it."""
        if math.isnan(value):
            return False
        # compared, not subtracted: inf - inf is not a number
        if self.best is not None and not self.sign * value > self.sign * self.best + self.min_delta:
            return False
        self.best = value
        return True

    def state_dict(self) -> State:
        return {"best": self.best}

    def load_state_dict(self, state: State) -> None:
        self.best = state["best"]
