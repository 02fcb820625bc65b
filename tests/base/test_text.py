"""Formatting of values in messages, and suggestions."""

import pytest

from trainer.base.text import NAME, SENTENCE, alternatives, did_you_mean, nearest, written


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (False, "false"), (5, "5"), (5.0, "5.0"), (-0.1, "-0.1"), (1e-6, "1e-06"),
     (1e10, "1e+10"), (1e6, "1e+06"),
     (999999.0, "999999.0"), (1234567.0, "1234567.0"), (10**10, "10000000000"),
     (float("nan"), "nan"), (float("-inf"), "-inf"), ("relu", "relu"), ("it's", "it's"), ("", ""), ([], "[]"),
     ([1, 2.5, True, None], "[1, 2.5, true, null]"), ((1, [None]), "[1, [null]]"),
     ({"a": 1, "b": {"c": [False]}}, "{a: 1, b: {c: [false]}}"), (10**400, str(10**400))],
)  # fmt: skip
def test_values_are_written_as_they_would_be_typed(value: object, text: str) -> None:
    assert written(value) == text


def test_alternatives_are_joined_by_or() -> None:
    assert alternatives(["a"]) == "a"
    assert alternatives(["a", None]) == "a or null"
    assert alternatives(["a", "b", 2]) == "a, b or 2"


def test_the_nearest_name_is_found_from_a_ratio_of_0_6() -> None:
    # difflib's ratio is 2 * matching / total characters
    assert nearest("abcxy", ["zzz", "abcuv"]) == "abcuv"  # 6 / 10
    assert nearest("abcxyz", ["abcuvw"]) is None  # 6 / 12
    assert nearest("lr", []) is None
    assert nearest("rleu", ["gelu", "relu"]) == "relu"


def test_one_suggestion_in_three_forms() -> None:
    assert did_you_mean("rleu", ["relu", "tanh"]) == "; did you mean relu?"
    assert did_you_mean("rleu", ["relu", "tanh"], NAME) == " Did you mean 'relu'?"
    assert did_you_mean("rleu", ["relu", "tanh"], SENTENCE) == ". Did you mean relu?"
    assert did_you_mean(7, ["relu"]) == "" and did_you_mean(12, [123, 9]) == "; did you mean 123?"
