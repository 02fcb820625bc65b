"""Tables, counts and sizes as text for a person."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

# on a pipe nothing is folded: lines are as long as they are
_PIPE_WIDTH, _PLOT_SIZE = 10_000, (76, 12)


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _show(console: Console, title: str, body: RenderableType) -> None:
    """A titled section; lines end where their text ends."""
    with console.capture() as captured:
        console.print(Group(Text(title, style="bold"), body))
    for line in captured.get().splitlines():
        print(line.rstrip())
    print()


def _grid(rows: Iterable[Sequence[str]]) -> Table:
    """Words side by side; the last column takes the room there is."""
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*(Text(f"  {cell}" if place == 0 else cell) for place, cell in enumerate(row)))
    return grid


def _table(*right: str, left: Sequence[str]) -> Table:
    """The first of `right` stands on the left all the same: it names the row."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(right):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for name in left:
        table.add_column(name, overflow="fold")
    return table


def _some(names: Sequence[str], most: int) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _time(seconds: float) -> str:
    for limit, unit, name in ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "h"), (120, 60, "min"), (1, 1, "s")):
        if seconds >= limit:
            return f"{_two_digits(seconds / unit)} {name}"
    return f"{_two_digits(seconds * 1e3)} ms"


def _size(count: int) -> str:
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= limit:
            return f"{_two_digits(count / limit)} {unit}"
    return f"{count} B"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"
