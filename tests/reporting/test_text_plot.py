"""Compares the drawn dots with the curve; braille is decoded by its Unicode definition."""

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from trainer.reporting.text_plot import plot


def decode(text: str) -> np.ndarray:
    """Convert braille lines to an array of dots, by the dot numbers in the official character names."""
    positions = {1: (0, 0), 2: (1, 0), 3: (2, 0), 7: (3, 0), 4: (0, 1), 5: (1, 1), 6: (2, 1), 8: (3, 1)}
    lines = [line[line.index(next(c for c in line if c in "┤│")) + 1 :] for line in text.splitlines()[1:-2]]
    width = len(text.splitlines()[-2].lstrip()) - 1
    dots = np.zeros((4 * len(lines), 2 * width), dtype=bool)
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            if character != " ":
                numbers = unicodedata.name(character).rpartition("-")[2]
                for number in map(int, numbers):
                    y, x = positions[number]
                    dots[4 * row + y, 2 * column + x] = True
    return dots


def curve(values: Sequence[float], num_columns: int) -> np.ndarray:
    positions = (np.arange(num_columns) + 0.5) / num_columns * (len(values) - 1)
    return np.interp(positions, np.arange(len(values)), values)


COSINE = [0.5 * (1 + math.cos(math.pi * step / 999)) * 1e-3 for step in range(1000)]


@pytest.mark.parametrize("values", [COSINE, [0.0, 1.0], [3.0, 1.0, 2.0], [-1.0, 1.0], [0.1, 0.1]])
def test_every_column_lies_on_the_curve(values: list[float]) -> None:
    dots = decode(plot(values, 70, 15, "step", "learning rate", encoding="utf-8"))
    low, high = min(0.0, *values), max(values)
    rows, columns = dots.shape
    assert dots.any(axis=0).all()
    centres = np.array([np.flatnonzero(column).mean() for column in dots.T])
    expected = (high - curve(values, columns)) / (high - low) * (rows - 1)
    assert np.abs(centres - expected).max() <= 1.0


def test_a_jump_is_connected() -> None:
    dots = decode(plot([1.0] * 500 + [0.1] * 500, 60, 12, "step", "lr", encoding="utf-8"))
    reach = [(np.flatnonzero(column).min(), np.flatnonzero(column).max()) for column in dots.T]
    assert all(a[1] >= b[0] and b[1] >= a[0] for a, b in pairwise(reach))
    assert reach[0] == (0, 0)
    assert reach[-1] == (round(0.9 * (dots.shape[0] - 1)),) * 2


def test_a_spike_between_two_columns_is_not_lost() -> None:
    values = [0.0] * 100_000
    values[77_777] = 1.0
    dots = decode(plot(values, 60, 12, "step", "lr", encoding="utf-8"))
    assert dots[0].sum() == 1
    assert np.flatnonzero(dots[0])[0] == int(77_777 / 99_999 * dots.shape[1])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize(("width", "height"), [(30, 6), (80, 14)])
def test_it_has_the_size_asked_for(encoding: str, width: int, height: int) -> None:
    text = plot(COSINE, width, height, "step", "learning rate", encoding=encoding)
    lines = text.splitlines()
    assert len(lines) == height
    assert max(map(len, lines)) == width
    assert text.isascii() == (encoding != "utf-8")
    text.encode(encoding)


def test_axes_are_labelled() -> None:
    lines = plot(COSINE, 60, 10, "step", "learning rate", encoding="utf-8").splitlines()
    assert lines[0] == "learning rate"
    assert [line.split()[0] for line in lines[1:-2] if "┤" in line] == ["0.001", "0.0005", "0"]
    assert lines[-1].split() == ["0", "step", "999"]
    ranged = plot(COSINE, 60, 10, "epoch", "lr", x_range=(0, 2.5), encoding="utf-8")
    assert ranged.splitlines()[-1].split() == ["0", "epoch", "2.5"]


def test_ascii_of_a_falling_line() -> None:
    text = plot([3.0, 2.0, 1.0, 0.0], 30, 6, "x", "y", encoding="ascii")
    assert text.splitlines() == [
        "y",
        # 25 columns over x = 0..3; the rows meet at x = 0.75 and 2.25, in columns 6 and 18
        "  3 +*******",
        "1.5 +      *************",
        "  0 +                  *******",
        "    +" + "-" * 25,
        "     0           x           3",
    ]


def test_values_that_are_not_finite_are_gaps() -> None:
    dots = decode(plot([1.0] * 40 + [math.nan] * 20 + [1.0] * 40, 60, 12, "step", "lr", encoding="utf-8"))
    empty = np.flatnonzero(~dots.any(axis=0)) / dots.shape[1]
    assert empty.min() == pytest.approx(0.4, abs=0.02)
    assert empty.max() == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("num_values", [1, 2, 3, 7, 99, 100, 101, 12_345])
def test_any_number_of_values(num_values: int) -> None:
    dots = decode(plot([0.1 * 3] * num_values, 61, 9, "step", "lr", encoding="utf-8"))
    assert dots[0].all()
    assert not dots[1:].any()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="width=29, height=6: must be at least 30 and 6"):
        plot([1.0], 29, 6, "x", "y")
    with pytest.raises(ValueError, match="values: must contain at least one finite number"):
        plot([math.nan], 30, 6, "x", "y")
