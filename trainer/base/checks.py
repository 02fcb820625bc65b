"""Checks of constructor arguments. Each returns the argument, or raises ValueError: `name=value: must be ...`.

`must` replaces the text after "must be", for example to give a unit or a meaning. NaN is always refused; a bool is
not a number.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Literal, NoReturn, TypeGuard, TypeVar

from trainer.base.text import alternatives, did_you_mean, written

T = TypeVar("T")


def refuse(name: str, value: object, must: str) -> NoReturn:
    """Raise ValueError: `name=value: must be ...`."""
    raise ValueError(f"{name}={written(value)}: must be {must}")


def check_that(holds: bool, name: str, value: object, must: str) -> None:
    """Raise ValueError unless `holds`; for conditions without a check of their own."""
    if not holds:
        refuse(name, value, must)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number, not a bool and not NaN."""
    return isinstance(value, Real) and not isinstance(value, bool) and value == value


def check_number(
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    must: str | None = None,
) -> float:
    """A finite number, low <= value <= high; low < value with `above`, value < high with `below`."""
    fine = is_number(value) and low <= value <= high and abs(value) != math.inf
    if not fine or (above and value == low) or (below and value == high):
        refuse(name, value, must or _bounds(low, high, above, below))
    return value


def check_whole(name: str, value: float, low: float, high: float = math.inf, *, must: str | None = None) -> int:
    """A whole number, low <= value <= high, as an int; a float without a fraction is one."""
    if check_number(name, value, low, high, must=must) != int(value):
        refuse(name, value, must or "a whole number")
    return int(value)


def check_range(
    name: str, values: Sequence[float], low: float, high: float = math.inf, *, above: bool = False
) -> tuple[float, float]:
    """Two finite numbers, low <= first <= second <= high; low < first with `above`."""
    is_pair = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 2
    first, second = values if is_pair else (math.nan, math.nan)
    fine = is_number(first) and is_number(second) and low <= first <= second <= high
    if not fine or second == math.inf or first == -math.inf or (above and first == low):
        from_low = f"above {low:g}" if above else f"of at least {low:g}"
        until = f"from {low:g} to {high:g}" if high < math.inf and not above else from_low
        refuse(name, values, f"two numbers {until}, the smaller first")
    return first, second


def check_whole_range(name: str, values: Sequence[int], low: int, high: int) -> tuple[int, int]:
    """As `check_range`, of two whole numbers."""
    first, second = check_range(name, values, low, high)
    if first != int(first) or second != int(second):
        refuse(name, values, "two whole numbers")
    return int(first), int(second)


def check_probability(probability: float, name: str = "probability") -> float:
    """A number from 0 to 1."""
    return check_number(name, probability, 0, 1, must="between 0 and 1")


def check_fraction(name: str, fraction: float) -> float:
    """A number above 0 and below 1, such as a part of a data set."""
    return check_number(name, fraction, 0, 1, above=True, below=True, must="between 0 and 1")


def check_seed(name: str, seed: int) -> int:
    """A seed that torch's generators take."""
    return check_whole(name, seed, 0, 2**63 - 1, must="between 0 and 2^63 - 1")


def check_one_of(name: str, value: T, allowed: Iterable[object], *, must: str | None = None) -> T:
    """One of a few values; the message lists them: `a, b or c`."""
    values = list(allowed)
    if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values):
        refuse(name, value, must or alternatives(values))
    return value


def check_choice(name: str, value: T, allowed: Iterable[str]) -> T:
    """One of several names; the message lists them and suggests the most similar one."""
    names = list(allowed)
    if value not in names:
        refuse(name, value, f"one of {', '.join(names)}{did_you_mean(value, names)}")
    return value


def check_wholes(
    name: str, values: Sequence[int], low: int, *, least: int = 0, must: str | None = None
) -> Sequence[int]:
    """At least `least` ints, each at least `low`; floats are refused, even whole ones."""
    fine = len(values) >= least and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= low for value in values
    )
    if not fine:
        some = f" of at least {least}" if least else ""
        refuse(name, values, must or f"a list{some} of whole numbers >= {low}")
    return values


def check_count_or_auto(name: str, value: int | str) -> int | Literal["auto"]:
    """`auto`, or a whole number of at least 1."""
    if value == "auto":
        return "auto"
    must = "auto or at least 1"
    return refuse(name, value, must) if isinstance(value, str) else check_whole(name, value, 1, must=must)


def _bounds(low: float, high: float, above: bool, below: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "a finite number"
    if high == math.inf:
        return f"above {low}" if above else f"at least {low}"
    if above or below:
        return f"in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    return f"at most {high}" if low == -math.inf else f"from {low} to {high}"
