"""Checks of constructor arguments that several operations share."""

import math
from collections.abc import Sequence


def check_range(
    name: str, values: Sequence[float], low: float, high: float = math.inf, *, above: bool = False
) -> tuple[float, float]:
    """The two bounds as they are. Raises ValueError unless low <= first <= second <= high (low < first with
    `above`), and both are finite."""
    is_pair = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 2
    first, second = values if is_pair else (math.nan, math.nan)
    if not (low <= first <= second <= high and second < math.inf) or (above and first == low):
        from_low = f"above {low:g}" if above else f"of at least {low:g}"
        until = f"from {low:g} to {high:g}" if high < math.inf and not above else from_low
        raise ValueError(
            f"{name}={list(values) if is_pair else values}: must be two numbers {until}, the smaller first"
        )
    return first, second


def check_number(name: str, value: float, low: float, high: float = math.inf) -> float:
    """The number as it is. Raises ValueError unless low <= value <= high, and it is finite."""
    if not (low <= value <= high and value < math.inf):
        until = f"from {low} to {high}" if high < math.inf else f"at least {low}"
        raise ValueError(f"{name}={value}: must be {until}")
    return value


def check_whole(name: str, value: float, low: int, high: float = math.inf) -> int:
    """The number as it is. Raises ValueError unless it is whole and low <= value <= high."""
    if check_number(name, value, low, high) != int(value):
        raise ValueError(f"{name}={value}: must be a whole number")
    return int(value)
