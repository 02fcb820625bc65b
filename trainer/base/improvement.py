"""The rule for improvements, shared by early stopping, best checkpoints and the plateau schedule."""

import math
from collections.abc import Mapping

from trainer.base.checks import check_number, check_one_of
from trainer.base.stateful import State

# which values of Gearshift's own metrics are better; names say nothing reliable about those of others
_OWN = {"loss": "min", "accuracy": "max", "accuracy_top5": "max", "cross_entropy": "min", "mae": "min"}
_NONE: Mapping[str, str] = {}


def direction(monitor: str, mode: str, declared: Mapping[str, str] = _NONE, *, section: str = "") -> str:
    """Return "min" or "max", whichever values of the metric are better.

    `auto` is what the loss declares for the metric (`Loss.directions`), or what is known of Gearshift's own. `section`
    precedes the setting in advice, as in `early_stopping.mode=min`. Raises ValueError for another mode, and for `auto`
    if the direction is not known: a guess could keep the worst weights.
    """
    check_one_of("mode", mode, ("min", "max", "auto"))
    if mode != "auto":
        return mode
    name = monitor.rpartition("/")[2]
    found = declared.get(name, _OWN.get(name))
    if found not in ("min", "max"):
        raise ValueError(
            f"mode=auto: whether a lower or a higher {monitor} is better is not known; set {section}mode=min or "
            f'{section}mode=max, or declare it in the loss: directions = {{"{name}": "min"}}'
        )
    return found


class Improvement:
    """Tracks the best value; a value is an improvement if it exceeds the best by more than `min_delta` >= 0.

    NaN is never an improvement. `mode`, `directions` and `section`: see `direction`, which also says when ValueError is
    raised; a negative `min_delta` raises it, too.
    """

    def __init__(
        self,
        monitor: str,
        mode: str = "auto",
        min_delta: float = 0.0,
        directions: Mapping[str, str] = _NONE,
        section: str = "",
    ) -> None:
        check_number("min_delta", min_delta, 0)
        self.mode = direction(monitor, mode, directions, section=section)
        self.sign = -1.0 if self.mode == "min" else 1.0
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
