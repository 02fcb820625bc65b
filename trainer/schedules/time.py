"""Durations and curves that several schedules use."""

import math

from trainer.base.checks import check_that
from trainer.base.duration import parse_duration

SHARE = "in [0, 1]"


def steps_of(name: str, text: str, steps_per_epoch: int, total_steps: int) -> int:
    """Convert a duration of at least one step. Raises ValueError, with the argument's name, for others."""
    try:
        steps = parse_duration(text).steps(steps_per_epoch, total_steps)
    except ValueError as error:
        raise ValueError(f"{name}={text}: {error}") from error
    check_that(steps >= 1, name, text, "at least one step")
    return steps


def half_cosine(progress: float) -> float:
    """From 1 at progress 0 to 0 at progress 1."""
    return (1 + math.cos(math.pi * progress)) / 2
