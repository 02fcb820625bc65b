"""Plots of curves as text, for the terminal."""

import math
import sys
from collections.abc import Sequence

# bits of a braille character's dots, 4 rows of 2 (Unicode block U+2800)
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

Dots = set[tuple[int, int]]


def plot(
    values: Sequence[float],
    width: int,
    height: int,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    encoding: str | None = None,
) -> str:
    """Plot `values`, evenly spaced over `x_range` (default: their indices), in `height` lines of at most `width`.

    The y axis begins at 0 unless there are negative values. If there are more values than columns, a column covers
    the range from its minimum to its maximum. Values that are not finite are gaps. Uses braille characters, or ASCII
    if `encoding` (default: that of stdout) does not have them.

    Raises ValueError if the plot would be smaller than 30 x 6, or if no value is finite.
    """
    if width < 30 or height < 6:
        raise ValueError(f"width={width}, height={height}: must be at least 30 and 6")
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise ValueError("values: must contain at least one finite number")
    low, high = min(0.0, *finite), max(finite)
    if low == high:
        high = low + 1.0
    rows = height - 3
    ticks = {row: _tick(high, low, row / (rows - 1)) for row in (0, rows // 2, rows - 1)}
    margin = max(map(len, ticks.values()))
    columns = width - margin - 2
    braille = _can_encode(encoding or sys.stdout.encoding or "ascii")
    across, down = (2, 4) if braille else (1, 1)
    dots = _dots(values, columns * across, rows * down, low, high)
    draw = _braille_row if braille else _ascii_row
    tick, bar, corner, floor = "┤│└─" if braille else "+|+-"
    lines = [y_label]
    for row in range(rows):
        axis = f"{ticks.get(row, ''):>{margin}} {tick if row in ticks else bar}"
        lines.append((axis + draw(dots, row, columns)).rstrip())
    lines.append(" " * (margin + 1) + corner + floor * columns)
    start, end = (_short(x) for x in x_range or (0, len(values) - 1))
    middle = x_label.center(columns - len(start) - len(end))
    lines.append(" " * (margin + 2) + start + middle + end)
    return "\n".join(lines)


def _tick(high: float, low: float, part: float) -> str:
    value = high - (high - low) * part
    return f"{0.0 if abs(value) < 1e-9 * (high - low) else value:.3g}"


def _dots(values: Sequence[float], columns: int, rows: int, low: float, high: float) -> Dots:
    """The (row, column) of every dot. Neighbouring columns share their border value, so the line connects."""
    dots = set()
    last = len(values) - 1
    for column in range(columns):
        left, right = column * last / columns, (column + 1) * last / columns
        inside = values[math.ceil(left) : math.floor(right) + 1]
        seen = [value for value in (_at(values, left), *inside, _at(values, right)) if math.isfinite(value)]
        if seen:
            top, bottom = (round((high - value) / (high - low) * (rows - 1)) for value in (max(seen), min(seen)))
            dots |= {(row, column) for row in range(top, bottom + 1)}
    return dots


def _at(values: Sequence[float], position: float) -> float:
    """Linear interpolation between two values."""
    index = int(position)
    part = position - index
    return values[index] if part == 0 else values[index] * (1 - part) + values[index + 1] * part


def _braille_row(dots: Dots, row: int, columns: int) -> str:
    def character(column: int) -> str:
        bits = sum(
            bit
            for y, pair in enumerate(_BRAILLE)
            for x, bit in enumerate(pair)
            if (4 * row + y, 2 * column + x) in dots
        )
        return chr(0x2800 + bits) if bits else " "

    return "".join(map(character, range(columns)))


def _ascii_row(dots: Dots, row: int, columns: int) -> str:
    return "".join("*" if (row, column) in dots else " " for column in range(columns))


def _can_encode(encoding: str) -> bool:
    try:
        "⠿┤└".encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _short(x: float) -> str:
    return f"{x:,.0f}" if x == int(x) else f"{x:.3g}"
