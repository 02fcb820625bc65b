"""What several schedules use."""

import math

SHARE = "in [0, 1]"


def half_cosine(progress: float) -> float:
    """From 1 at progress 0 to 0 at progress 1."""
    return (1 + math.cos(math.pi * progress)) / 2
