"""The rule for improvements, shared by early stopping, best checkpoints and the plateau schedule."""

import math

from trainer.base.checks import check_number, check_one_of
from trainer.base.stateful import State

# metrics for which less is better, by the last component of their names
_FALLING = ("loss", "error", "mae", "rmse", "mse", "penalty")


def direction(monitor: str, mode: str) -> str:
    """Return "min" or "max"; `auto` means min for a loss or an error and max otherwise.

    Raises ValueError for any other mode.
    """
    check_one_of("mode", mode, ("min", "max", "auto"))
    if mode != "auto":
        return mode
    return "min" if monitor.rpartition("/")[2].startswith(_FALLING) else "max"


class Improvement:
    """Tracks the best value; a value is an improvement if it exceeds the best by more than `min_delta` >= 0.

    NaN is never an improvement. Raises ValueError for a negative `min_delta`.
    """

    def __init__(self, monitor: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        check_number("min_delta", min_delta, 0)
        self.sign = -1.0 if direction(monitor, mode) == "min" else 1.0
        self.min_delta = min_delta
        self.best: float | None = None

    def observe(self, value: float) -> bool:
        """Record `value`; returns whether it is an improvement."""
        if math.isnan(value):
            return False
        # no subtraction: inf - inf is nan
        if self.best is not None and not self.sign * value > self.sign * self.best + self.min_delta:
            return False
        self.best = value
        return True

    def state_dict(self) -> State:
        return {"best": self.best}

    def load_state_dict(self, state: State) -> None:
        self.best = state["best"]
