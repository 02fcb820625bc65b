"""Checks of constructor arguments that several operations share."""

import math


def check_range(name: str, values: tuple[float, float], low: float, high: float = math.inf) -> tuple[float, float]:
    """The two bounds as they are. Raises ValueError unless low <= first <= second <= high, and both are finite."""
    first, second = values
    if not (low <= first <= second <= high and second < math.inf):
        until = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise ValueError(f"{name}={list(values)}: must be two numbers {until}, the smaller one first")
    return first, second


def check_number(name: str, value: float, low: float, high: float = math.inf) -> float:
    """The number as it is. Raises ValueError unless low <= value <= high, and it is finite."""
    if not (low <= value <= high and value < math.inf):
        until = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise ValueError(f"{name}={value}: must be {until}")
    return value
