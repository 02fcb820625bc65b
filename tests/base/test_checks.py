"""Each check on both sides of its bounds, and the message of each error."""

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.augmentation import operation, ranges
from trainer.base import checks
from trainer.base.checks import (
    check_choice,
    check_count_or_auto,
    check_fraction,
    check_number,
    check_one_of,
    check_probability,
    check_range,
    check_seed,
    check_that,
    check_whole,
    check_whole_range,
    check_wholes,
    refuse,
)
from trainer.models import parts

INF, NAN = math.inf, math.nan
BIG = 10**400  # too large for a float
TRAINER = Path(__file__).parents[2] / "trainer"
MOST_RAISES = 94

ACCEPTED: list[tuple[Callable[[], Any], Any]] = [
    (lambda: check_number("x", 0, 0), 0),
    (lambda: check_number("x", 1e308, 0), 1e308),
    (lambda: check_number("x", BIG, 0), BIG),
    (lambda: check_number("x", -5.5), -5.5),
    (lambda: check_number("x", 2.0, 1, 2), 2.0),
    (lambda: check_number("x", math.nextafter(0, 1), 0, above=True), math.nextafter(0, 1)),
    (lambda: check_number("x", math.nextafter(1, 0), 0, 1, below=True), math.nextafter(1, 0)),
    (lambda: check_number("x", 1, 0, 1, above=True), 1),
    (lambda: check_number("x", 0, 0, 1, below=True), 0),
    (lambda: check_number("x", 3, high=3), 3),
    (lambda: check_whole("x", 1, 1), 1),
    (lambda: check_whole("x", 4, 1, 4), 4),
    (lambda: check_whole("x", 3.0, 1, 4), 3),
    (lambda: check_whole("x", BIG, 1), BIG),
    (lambda: check_range("x", (0, 0), 0), (0, 0)),
    (lambda: check_range("x", [0.0, 1], 0, 1), (0.0, 1)),
    (lambda: check_range("x", [0.1, 0.1], 0, 1, above=True), (0.1, 0.1)),
    (lambda: check_whole_range("x", (0, 8.0), 0, 8), (0, 8)),  # type: ignore[arg-type]
    (lambda: check_probability(0), 0),
    (lambda: check_probability(1.0), 1.0),
    (lambda: check_fraction("x", math.nextafter(0, 1)), math.nextafter(0, 1)),
    (lambda: check_fraction("x", math.nextafter(1, 0)), math.nextafter(1, 0)),
    (lambda: check_seed("x", 0), 0),
    (lambda: check_seed("x", 2**63 - 1), 2**63 - 1),
    (lambda: check_one_of("x", "b", ("a", "b")), "b"),
    (lambda: check_one_of("x", 2, ("e", 2)), 2),
    (lambda: check_choice("x", "relu", {"relu": 1, "tanh": 2}), "relu"),
    (lambda: check_wholes("x", [1, 5], 1, least=2), [1, 5]),
    (lambda: check_wholes("x", [], 1), []),
    (lambda: check_count_or_auto("x", "auto"), "auto"),
    (lambda: check_count_or_auto("x", 1), 1),
]

BOUNDED = "must be from 1 to 4"
PAIR = "must be two numbers from 0 to 1, the smaller first"
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: check_number("x", math.nextafter(0, -1), 0), "x=-5e-324: must be at least 0"),
    (lambda: check_number("x", INF, 0), "x=inf: must be at least 0"),
    (lambda: check_number("x", NAN, 0), "x=nan: must be at least 0"),
    (lambda: check_number("x", True, 0), "x=true: must be at least 0"),
    (lambda: check_number("x", "1", 0), "x=1: must be at least 0"),  # type: ignore[arg-type]
    (lambda: check_number("x", None, 0), "x=null: must be at least 0"),  # type: ignore[arg-type]
    (lambda: check_number("x", 0, 0, above=True), "x=0: must be above 0"),
    (lambda: check_number("x", -INF), "x=-inf: must be a finite number"),
    (lambda: check_number("x", NAN), "x=nan: must be a finite number"),
    (lambda: check_number("x", 4, high=3), "x=4: must be at most 3"),
    (lambda: check_number("x", -INF, high=3), "x=-inf: must be at most 3"),
    (lambda: check_number("x", math.nextafter(2, 3), 1, 2), "x=2.0000000000000004: must be from 1 to 2"),
    (lambda: check_number("x", 0.5, 1, 2), "x=0.5: must be from 1 to 2"),
    (lambda: check_number("x", 1.0, 0, 1, below=True), "x=1.0: must be in [0, 1)"),
    (lambda: check_number("x", 0, 0, 1, above=True), "x=0: must be in (0, 1]"),
    (lambda: check_number("x", 1, 0, 1, above=True, below=True), "x=1: must be in (0, 1)"),
    (lambda: check_number("x", 0, 1, must="1 s or more"), "x=0: must be 1 s or more"),
    (lambda: check_whole("x", 0, 1), "x=0: must be at least 1"),
    (lambda: check_whole("x", 0, 1, 4), f"x=0: {BOUNDED}"),
    (lambda: check_whole("x", 5, 1, 4), f"x=5: {BOUNDED}"),
    (lambda: check_whole("x", 2.5, 1, 4), "x=2.5: must be a whole number"),
    (lambda: check_whole("x", 2.5, 1, must="1 pixel or more"), "x=2.5: must be 1 pixel or more"),
    (lambda: check_whole("x", True, 1, 4), f"x=true: {BOUNDED}"),
    (lambda: check_whole("x", NAN, 1, 4), f"x=nan: {BOUNDED}"),
    (lambda: check_whole("x", INF, 1), "x=inf: must be at least 1"),
    (lambda: check_whole("x", "2", 1, 4), f"x=2: {BOUNDED}"),  # type: ignore[arg-type]
    (lambda: check_range("x", (-0.1, 1), 0, 1), f"x=[-0.1, 1]: {PAIR}"),
    (lambda: check_range("x", (0, 1.1), 0, 1), f"x=[0, 1.1]: {PAIR}"),
    (lambda: check_range("x", (0.6, 0.5), 0, 1), f"x=[0.6, 0.5]: {PAIR}"),
    (lambda: check_range("x", (0, NAN), 0, 1), f"x=[0, nan]: {PAIR}"),
    (lambda: check_range("x", (False, 1), 0, 1), f"x=[false, 1]: {PAIR}"),
    (lambda: check_range("x", ("0", "1"), 0, 1), f"x=[0, 1]: {PAIR}"),  # type: ignore[arg-type]
    (lambda: check_range("x", (0, 0.5, 1), 0, 1), f"x=[0, 0.5, 1]: {PAIR}"),
    (lambda: check_range("x", 0.5, 0, 1), f"x=0.5: {PAIR}"),  # type: ignore[arg-type]
    (lambda: check_range("x", "01", 0, 1), f"x=01: {PAIR}"),  # type: ignore[arg-type]
    (lambda: check_range("x", (0, INF), 0), "x=[0, inf]: must be two numbers of at least 0, the smaller first"),
    (lambda: check_range("x", (0, 1), 0, above=True), "x=[0, 1]: must be two numbers above 0, the smaller first"),
    (lambda: check_whole_range("x", (0, 1.5), 0, 8), "x=[0, 1.5]: must be two whole numbers"),  # type: ignore[arg-type]
    (lambda: check_whole_range("x", (0, 9), 0, 8), "x=[0, 9]: must be two numbers from 0 to 8, the smaller first"),
    (lambda: check_probability(1.1), "probability=1.1: must be between 0 and 1"),
    (lambda: check_probability(-0.1, "rate"), "rate=-0.1: must be between 0 and 1"),
    (lambda: check_probability(NAN), "probability=nan: must be between 0 and 1"),
    (lambda: check_fraction("x", 0), "x=0: must be between 0 and 1"),
    (lambda: check_fraction("x", 1.0), "x=1.0: must be between 0 and 1"),
    (lambda: check_seed("x", -1), "x=-1: must be between 0 and 2^63 - 1"),
    (lambda: check_seed("x", 2**63), f"x={2**63}: must be between 0 and 2^63 - 1"),
    (lambda: check_one_of("x", "c", ("a", "b")), "x=c: must be a or b"),
    (lambda: check_one_of("x", "d", ("a", "b", "c")), "x=d: must be a, b or c"),
    (lambda: check_one_of("x", True, ("e", 1)), "x=true: must be e or 1"),
    (lambda: check_one_of("x", 10, ("e", 2), must="e (nats) or 2 (bits)"), "x=10: must be e (nats) or 2 (bits)"),
    (lambda: check_choice("x", "rleu", ("relu", "tanh")), "x=rleu: must be one of relu, tanh; did you mean relu?"),
    (lambda: check_choice("x", "zzz", ("relu", "tanh")), "x=zzz: must be one of relu, tanh"),
    (lambda: check_wholes("x", [2, 0], 1), "x=[2, 0]: must be a list of whole numbers >= 1"),
    (lambda: check_wholes("x", [2.0], 1), "x=[2.0]: must be a list of whole numbers >= 1"),  # type: ignore[list-item]
    (lambda: check_wholes("x", [True], 1), "x=[true]: must be a list of whole numbers >= 1"),
    (lambda: check_wholes("x", (1,), 1, least=2), "x=[1]: must be a list of at least 2 of whole numbers >= 1"),
    (lambda: check_count_or_auto("x", 0), "x=0: must be auto or at least 1"),
    (lambda: check_count_or_auto("x", "two"), "x=two: must be auto or at least 1"),
    (lambda: check_count_or_auto("x", True), "x=true: must be auto or at least 1"),
    (lambda: check_that(False, "x", [None], "full"), "x=[null]: must be full"),
    (lambda: refuse("x", "much", "auto or a number"), "x=much: must be auto or a number"),
]


@pytest.mark.parametrize(("call", "value"), ACCEPTED)
def test_what_is_allowed_is_returned(call: Callable[[], Any], value: Any) -> None:
    found = call()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[sentence[:60] for _, sentence in REFUSED])
def test_what_is_not_allowed_is_refused_in_one_sentence(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == sentence


def test_what_holds_passes() -> None:
    check_that(True, "x", 1, "anything")


def test_the_names_that_users_import_are_the_same_functions() -> None:
    assert ranges.check_range is checks.check_range
    assert ranges.check_whole is checks.check_whole
    assert ranges.check_number is checks.check_number
    assert operation.check_probability is checks.check_probability
    assert parts.check_choice is checks.check_choice


def test_copies_of_the_checks_do_not_come_back() -> None:
    """The remaining `raise ValueError` outside `trainer/base` concern one class each, or damaged data."""
    raises = [
        f"{path.relative_to(TRAINER)}:{node.lineno}"
        for path in sorted(TRAINER.rglob("*.py"))
        if path.parent != TRAINER / "base"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc).startswith("ValueError(")
    ]
    assert len(raises) <= MOST_RAISES, "use trainer.base.checks, or lower what is left elsewhere"


def test_one_module_looks_for_similar_names() -> None:
    users = [path for path in TRAINER.rglob("*.py") if "get_close_matches" in path.read_text()]
    assert users == [TRAINER / "base" / "text.py"]
