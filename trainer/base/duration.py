"""Durations such as `5ep`, `500step`, `10%`, which are converted to optimizer steps once."""

import math
import re
from dataclasses import dataclass

_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ep|epochs?|steps?|%)\s*")


@dataclass(frozen=True)
class Duration:
    """An amount of training: `unit` is one of "ep" (epochs), "step" (optimizer steps), "%" (of the run)."""

    amount: float
    unit: str

    def steps(self, steps_per_epoch: int, total_steps: int) -> int:
        """Return the nearest number of optimizer steps (a half rounds up), at least one unless the amount is zero."""
        if self.amount == 0:
            return 0
        length = {"ep": float(steps_per_epoch), "step": 1.0, "%": total_steps / 100}[self.unit]
        # the small addend absorbs binary fractions such as 0.29 * 100 = 28.999999999999996
        return max(1, math.floor(self.amount * length + 0.5 + 1e-9))


def parse_duration(text: object) -> Duration:
    """Parse a duration such as "5ep", "0.5 epochs", "500step", "10%".

    Raises ValueError if it has no unit or no number, or if it exceeds 100 %.
    """
    match = _PATTERN.fullmatch(str(text))
    if match is None:
        raise ValueError("must be a duration with a unit: 5ep, 500step or 10%")
    amount, unit = float(match[1]), {"e": "ep", "s": "step", "%": "%"}[match[2][0]]
    if unit == "%" and amount > 100:
        raise ValueError("a share of the run must be at most 100%")
    if unit == "step" and amount != int(amount):
        raise ValueError("steps must be a whole number, such as 500step")
    return Duration(amount, unit)


def steps_of(name: str, text: str, steps_per_epoch: int, total_steps: int, *, least: int = 0) -> int:
    """Convert the duration given as the argument `name` to steps. Raises ValueError, with its name, if it is none, and
    if it is shorter than `least` = 1 step."""
    try:
        steps = parse_duration(text).steps(steps_per_epoch, total_steps)
    except ValueError as error:
        raise ValueError(f"{name}={text}: {error}") from error
    if steps < least:
        raise ValueError(f"{name}={text}: must be at least one step")
    return steps


def is_time(step: int, every: int, total: int) -> bool:
    """Whether an action with period `every` is due after `step` steps; always true after the last step."""
    return step == total or (every > 0 and step % every == 0)
