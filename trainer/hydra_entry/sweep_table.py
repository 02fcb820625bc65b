"""The table of trials at the end of a sweep."""

import re
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from trainer.base.errors import DataError
from trainer.reporting.console import ignore_broken_pipe
from trainer.reporting.tables import make_console, wrap
from trainer.storage import run_folder
from trainer.storage.run_folder import shown

_LONGEST = 100  # rows; of a larger sweep, the first ones


@dataclass(frozen=True)
class Trial:
    """A trial of a sweep: its number, what was typed for it, and what came of it."""

    name: str
    words: tuple[str, ...]
    status: str
    monitor: str | None
    value: float | None


def print_trials(folder: Path, console: Console | None = None) -> None:
    """Print what each trial in the folder of a sweep has in its own, how it ended, and its best value."""
    trials = read_trials(folder)
    if len(trials) < 2:
        return
    ignore_broken_pipe()
    console = console or make_console()
    left = f"; the first {_LONGEST} of {len(trials):,} trials" if len(trials) > _LONGEST else ""
    where = wrap(f"sweep folder: {shown(folder)}, with a run folder per trial{left}", console.width)
    console.print(Text("\n".join([*table_of(trials[:_LONGEST], console.width), *where])))


def table_of(trials: list[Trial], width: int) -> list[str]:
    """Return the lines of the table: a row for each trial, with the overrides that not all have, in the trials' order.

    The overrides are beside the other columns, or below them if there is no room for the longest.
    """
    monitors = list(dict.fromkeys(trial.monitor for trial in trials if trial.monitor is not None))
    rows = [["trial", *monitors, "status"], *(_cells(trial, monitors) for trial in trials)]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_padded(row, sizes)) for row in rows]
    same = set.intersection(*(set(trial.words) for trial in trials))
    own = [[word for word in trial.words if word not in same] for trial in trials]
    indent = len(lines[0]) + 2
    if indent + max((len(word) for words in own for word in words), default=0) > width:
        indent = 4
    found = [f"{lines[0]}  overrides" if indent > 4 else lines[0]]
    for line, words in zip(lines[1:], own, strict=True):
        text = wrap(" ".join(words), width - indent, "") if words else []
        beside = text.pop(0) if text and indent > 4 else ""
        found += [f"{line}  {beside}", *(" " * indent + more for more in text)]
    return [line.rstrip() for line in found]


def _cells(trial: Trial, monitors: list[str]) -> list[str]:
    values = ("" if name != trial.monitor or trial.value is None else _spelt(trial.value) for name in monitors)
    return [trial.name, *values, trial.status]


def _padded(row: list[str], sizes: list[int]) -> list[str]:
    """Align the first and last columns left, the values right."""
    last = len(row) - 1
    return [
        cell.rjust(size) if 0 < place < last else cell.ljust(size)
        for place, (cell, size) in enumerate(zip(row, sizes, strict=True))
    ]


def read_trials(folder: Path) -> list[Trial]:
    """Read the trials of a sweep, in the order in which they were started."""
    found = [path for path in folder.iterdir() if (path / run_folder.CONFIG).is_file()] if folder.is_dir() else []
    found.sort(key=lambda path: (_number(path.name), path.name))
    return [_read(path, place) for place, path in enumerate(found)]


def _number(name: str) -> int:
    match = re.match(r"\d+", name)
    return int(match[0]) if match else 0


def _read(path: Path, place: int) -> Trial:
    words: list[str] = []
    status, monitor, value = "not ended", None, None
    try:
        words = run_folder.read_overrides(path)
        if (result := run_folder.read_result(path)) is not None:
            status, monitor = result["status"], result["monitor"]
            best = result["best"]
            value = None if best is None else float(best["metrics"][monitor])
    except (DataError, LookupError, TypeError, ValueError):
        status = "damaged"
    match = re.match(r"\d+(?=_|$)", path.name)  # Hydra's number, unless `hydra.sweep.subdir` names folders otherwise
    return Trial(match[0] if match else str(place), tuple(words), status, monitor, value)


def _spelt(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"
