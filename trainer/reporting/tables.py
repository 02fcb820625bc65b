"""Tables, and formatting of counts, times and sizes, for the terminal."""

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from math import isclose, nan

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

# lines are not wrapped if the output is not a terminal
_PIPE_WIDTH, PLOT_SIZE = 10_000, (76, 12)


def make_console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def print_section(console: Console, title: str, body: RenderableType) -> None:
    """Print a section with a title, without trailing spaces."""
    with console.capture() as captured:
        console.print(Group(Text(title, style="bold"), body))
    for line in captured.get().splitlines():
        print(line.rstrip())
    print()


def make_grid(rows: Iterable[Sequence[str]]) -> Table:
    """Make a table without headers; the last column takes the remaining width."""
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*(Text(f"  {cell}" if column == 0 else cell) for column, cell in enumerate(row)))
    return grid


def make_table(*right: str, left: Sequence[str]) -> Table:
    """Make a table with right-aligned and left-aligned columns; the first of `right`, which names the row, is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, name in enumerate(right):
        table.add_column(name, justify="right" if column else "left", no_wrap=True)
    for name in left:
        table.add_column(name, overflow="fold")
    return table


_NO_BREAK = "\u00a0"


def unbroken(text: str) -> str:
    """Mark a text that `wrap` does not break at its spaces, such as a command to copy."""
    return text.replace(" ", _NO_BREAK)


def breakable(text: str) -> str:
    """Remove the marks of `unbroken`."""
    return text.replace(_NO_BREAK, " ")


def wrap(text: str, width: int, indent: str = "  ") -> list[str]:
    """Break a line at spaces, and paths longer than a line after slashes; `indent` begins all lines but the first.

    What is marked by `unbroken` stays whole even if it is longer, so that it can be copied from a terminal.
    """
    lines = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [piece for line in lines or [""] for piece in _at_slashes(line, width, indent)]


def _at_slashes(line: str, width: int, indent: str) -> list[str]:
    if len(line) <= width or _NO_BREAK in line:
        return [line]
    pieces = [""]
    for part in re.findall(r"[^/]*/|[^/]+", line):
        if pieces[-1].strip() and len(pieces[-1]) + len(part) > width:
            pieces.append(indent)
        pieces[-1] += part
    return pieces


def without_repetition(values: Mapping[str, float], keep: str | None = None) -> dict[str, float]:
    """Return the metrics to show: without a cross entropy, other than `keep`, that equals the loss of its split."""
    return {
        name: value for name, value in values.items()
        if name == keep or not name.endswith("/cross_entropy")
        or not isclose(value, values.get(name.replace("cross_entropy", "loss"), nan), rel_tol=1e-4)
    }  # fmt: skip


def format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_time(seconds: float) -> str:
    for limit, unit, name in ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "h"), (120, 60, "min"), (1, 1, "s")):
        if seconds >= limit:
            return f"{two_digits(seconds / unit)} {name}"
    return f"{two_digits(seconds * 1e3)} ms"


def format_size(count: int) -> str:
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= limit:
            return f"{two_digits(count / limit)} {unit}"
    return f"{count} B"


def two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"
