"""Output of a run on stdout: a live table and progress bar on a terminal or in a notebook, plain lines otherwise."""

import atexit
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

from rich import get_console
from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from trainer.reporting.console import despite_lost_terminal
from trainer.reporting.notebook import Notebook, in_notebook
from trainer.reporting.tables import breakable, without_repetition, wrap

_PRINT_SECONDS = 0.1  # between two printed evaluations
_REFRESH_SECONDS = 0.2  # of the live display, which takes 2 ms: 1 % of the time
_TABLE_SECONDS = 0.5
_MAX_ROWS = 8
_FINAL_ROWS = 20  # of the table that stays on the screen
_ROWS_IN_MEMORY = 400
_BAR_WIDTH = (8, 40)
# rich's own fallback without Unicode draws a full grid
_ASCII_HEAD = Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
_USUAL = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
_ARROWS = {"min": " ↓", "max": " ↑"}


def interactive(console: Console) -> bool:
    """Whether a live display can be shown: on a capable terminal, and not in a CI log."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


class Terminal:
    """Header, live progress and one row per evaluation, on stdout.

    Without a capable terminal, each evaluation is one plain line. At most ten evaluations per second are printed,
    including the best and the last one; `metrics.jsonl` contains all.

    `monitor` is the metric whose best row is marked; `mode`, min or max, says which of its values are better.
    `console` is rich's shared console by default, or in a notebook one output of the cell.
    """

    def __init__(
        self,
        total_steps: int,
        epochs_at: Callable[[int], float],
        monitor: str | None,
        mode: str,
        console: Console | None = None,
    ) -> None:
        self._notebook = Notebook() if console is None and in_notebook() else None
        self._console = self._notebook.console if self._notebook else console or get_console()
        self._on_screen = self._notebook is not None or interactive(self._console)
        self._live: Live | Notebook | None = None
        self._next_refresh = 0.0 if self._on_screen else math.inf
        self._next_row = 0.0
        self._rows: list[_Row] = []
        self._history = _History()
        self._unprinted: list[_Row] = []
        self._monitor = monitor
        self._arrow = _ARROWS[mode] if monitor else ""
        self._table = _Cached(self._draw_table)
        self._total_steps, self._epochs_at = total_steps, epochs_at
        self._start: tuple[float, int] | None = None
        self._step = 0
        self._loss: float | None = None
        self._samples_per_second: float | None = None

    def header(self, facts: Mapping[str, str]) -> None:
        """Print names and values, in two columns on a terminal, as `name: value` lines otherwise."""
        if not self._on_screen:
            self._print(f"{name}: {value}" for name, value in facts.items())
            return
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        room = max(1, self._console.width - max(map(len, facts)) - 2)
        for name, value in facts.items():
            table.add_row(Text(name), Text("\n".join(wrap(value, room, indent=""))))
        with self._printing():
            self._console.print(table, Text())

    def tick(self, step: int, loss: float | None = None, samples_per_second: float | None = None) -> None:
        """Update the progress after a step; None keeps the number shown. Redraws at most five times per second."""
        if loss is not None:
            self._loss = loss
        if samples_per_second is not None:
            self._samples_per_second = samples_per_second
        if (now := perf_counter()) >= self._next_refresh:
            self._start = self._start or (now, step)
            self._step = step
            self._refresh()

    def row(self, step: int, epoch: float, values: Mapping[str, float], best: bool) -> None:
        """Show an evaluation; `best` marks the best one so far."""
        row = _Row(step, epoch, without_repetition(values, self._monitor), best)
        if self._on_screen:
            self._step = step
            self._history.add(row)
            self._keep(row)
        else:
            self._unprinted = [row] if best else [*(old for old in self._unprinted if old.best), row]
        if perf_counter() >= self._next_row:
            if self._on_screen:
                self._refresh()
            else:
                self._print_rows()
            self._next_row = perf_counter() + (_REFRESH_SECONDS if self._on_screen else _PRINT_SECONDS)

    def message(self, text: str) -> None:
        """Print a message above the live display."""
        self._print([text])

    def finish(self, lines: Sequence[str]) -> None:
        """End the live display, replace its table by one of the whole session, and print `lines` below it.

        On a terminal, long lines are broken at spaces, except those marked by `unbroken`.
        """
        self.close()
        self._print(["", *lines] if self._on_screen else lines)

    def close(self) -> None:
        """End the live display and show the cursor; idempotent."""
        self._print_rows()
        self._next_refresh = self._next_row = math.inf
        live, self._live = self._live, None
        if live is not None:
            atexit.unregister(self.close)
            table = Group(self._final_table(), *self._note_on_rows()) if self._rows else Group()
            with despite_lost_terminal():
                live.update(table)
                live.stop()

    @contextmanager
    def _printing(self) -> Iterator[None]:
        with despite_lost_terminal():
            yield
            if self._notebook is not None:
                self._notebook.show()

    def _print(self, lines: Iterable[str]) -> None:
        with self._printing():
            for line in lines:
                if self._on_screen:
                    line = "\n".join(wrap(line, self._console.width))
                self._console.print(breakable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _print_rows(self) -> None:
        rows, self._unprinted = self._unprinted, []
        for row in rows:
            names = _worth_showing(row.values, self._monitor)
            parts = [f"epoch {row.epoch:.2f}", f"step {row.step}"]
            parts += [f"{name} {_number(name, row.values[name])}" for name in names]
            self._print(["  ".join(parts + ["*"] * row.best)])

    def _refresh(self) -> None:
        parts = [self._table, self._progress()] if self._rows else [self._progress()]
        with despite_lost_terminal():
            if self._live is None:
                self._live = self._notebook or Live(console=self._console, auto_refresh=False)
                atexit.register(self.close)
                self._live.start()
            self._live.update(Group(*parts), refresh=True)
        self._next_refresh = perf_counter() + _REFRESH_SECONDS

    def _keep(self, row: "_Row") -> None:
        """Add a row; keep the last ones, and the best one."""
        if row.best:
            self._rows = [_Row(old.step, old.epoch, old.values, False) for old in self._rows]
        self._rows.append(row)
        self._trim(_MAX_ROWS)
        self._table.outdated = True

    def _trim(self, room: int) -> None:
        while len(self._rows) > room:
            del self._rows[1 if self._rows[0].best else 0]

    def _final_table(self) -> Table:
        return self._table_of(self._history.thinned(_FINAL_ROWS), self._console.width)

    def _note_on_rows(self) -> Iterator[Text]:
        shown, count = len(self._history.thinned(_FINAL_ROWS)), self._history.count
        if shown < count:
            yield Text("\n".join(wrap(f"{shown} of {count:,} evaluations; metrics.jsonl has all", self._console.width)))

    def _draw_table(self, width: int) -> Table:
        self._trim(max(2, self._console.height - 6))  # only here: the height is asked of the system
        return self._table_of(self._rows, width)

    def _table_of(self, rows: "Sequence[_Row]", width: int) -> Table:
        unicode = not self._console.options.ascii_only
        star = "★" if unicode else "*"
        columns = {
            name: [_title(name) + (self._arrow if unicode and name == self._monitor else "")]
            + [_number(name, row.values[name]) if name in row.values else "" for row in rows]
            for name in _worth_showing((name for row in rows for name in row.values), self._monitor)
        }
        epochs = ["\nepoch", *(f"{row.epoch:.2f}" for row in rows)]
        marks = ["", *(star if row.best else " " for row in rows)]
        fitting = _fitting(columns, self._monitor, width - _width(epochs) - 2 - 1)
        titles, *lines = zip(epochs, *(columns[name] for name in fitting), marks, strict=True)
        box = SIMPLE_HEAD if unicode else _ASCII_HEAD
        table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for title in titles:
            table.add_column(Text(title), justify="right", no_wrap=True)
        for row, line in zip(rows, lines, strict=True):
            table.add_row(*map(Text, line), style="bold green" if row.best else None)
        return table

    def _progress(self) -> "_Progress":
        texts = {
            "step": f"{self._step:,}/{self._total_steps:,}",
            "epoch": f"epoch {self._epochs_at(self._step):.1f}",
        }
        if self._loss is not None:
            texts["loss"] = f"loss {_number('loss', self._loss)}"
        if self._samples_per_second is not None:
            texts["rate"] = f"{_short(self._samples_per_second)} samples/s"
        if (left := self._seconds_left()) is not None:
            texts["left"] = f"{_clock(left)} left"
        return _Progress(self._step, self._total_steps, texts)

    def _seconds_left(self) -> float | None:
        """Estimate the remaining time from the mean pace since the first step of this session, with evaluations."""
        if self._start is None or self._step <= self._start[1]:
            return None
        seconds, steps = perf_counter() - self._start[0], self._step - self._start[1]
        return (self._total_steps - self._step) * seconds / steps


@dataclass(frozen=True)
class _Row:
    step: int
    epoch: float
    values: Mapping[str, float]
    best: bool


class _History:
    """The evaluations of a session. Beyond `_ROWS_IN_MEMORY`, only every second one is kept, then every fourth, ..."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[_Row] = []
        self._every = 1
        self._best: _Row | None = None
        self._last: _Row | None = None

    def add(self, row: _Row) -> None:
        self._last, self._best = row, row if row.best else self._best
        if self.count % self._every == 0:
            self._rows.append(row)
        self.count += 1
        if len(self._rows) > _ROWS_IN_MEMORY:
            self._rows, self._every = self._rows[::2], 2 * self._every

    def thinned(self, most: int) -> list[_Row]:
        """Return at most `most` rows: evenly spaced ones, with the best and the last."""
        room = most - 2 if len(self._rows) > most else most
        last = len(self._rows) - 1
        even = self._rows if last < room else [self._rows[round(i * last / (room - 1))] for i in range(room)]
        kept = {row.step: row for row in (*even, self._best, self._last) if row is not None}
        best = None if self._best is None else self._best.step
        return [replace(kept[step], best=step == best) for step in sorted(kept)]


class _Cached:
    """Caches a rendered table until the width changes, or it changes and has been shown for half a second.

    Rendering takes 4 ms, which would be 2 % of the time if it were repeated in each refresh.
    """

    def __init__(self, draw: Callable[[int], RenderableType]) -> None:
        self._draw, self._width = draw, 0
        self._segments: list[Segment] = []
        self.outdated = True
        self.not_before = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_due = self.outdated and perf_counter() >= self.not_before
        if is_due or options.max_width != self._width:
            self._width, self.outdated = options.max_width, False
            self.not_before = perf_counter() + _TABLE_SECONDS
            self._segments = list(console.render(self._draw(self._width), options))
        return self._segments


@dataclass(frozen=True)
class _Progress:
    """One line: a bar, and as many of step, time left, rate, loss and epoch as fit."""

    step: int
    total_steps: int
    texts: Mapping[str, str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        least, most = _BAR_WIDTH
        room = options.max_width - least - 1  # a full line makes some terminals wrap
        fitting = set()
        for part in ("step", "left", "rate", "loss", "epoch"):
            needed = len(self.texts.get(part, "")) + 2
            if part in self.texts and needed <= room:
                fitting.add(part)
                room -= needed
        bar = ProgressBar(total=self.total_steps, completed=self.step, width=least + min(room, most - least))
        yield from console.render(bar, options)
        yield Segment("".join(f"  {text}" for part, text in self.texts.items() if part in fitting))


def _worth_showing(names: Iterable[str], monitor: str | None) -> list[str]:
    """Return the names of losses, accuracies, other validation metrics, the monitor and the learning rate, in order."""
    known = set(names)
    others = sorted(name for name in known if name.startswith("val/") or name == monitor)
    return [name for name in dict.fromkeys([*_USUAL, *others, "lr"]) if name in known]


def _fitting(columns: Mapping[str, Sequence[str]], monitor: str | None, room: int) -> list[str]:
    """Return the most important columns that fit into `room` characters, in their usual order."""
    chosen = set()
    for name in dict.fromkeys([monitor or "", "val/loss", "val/accuracy", "train/loss", "lr", *columns]):
        if name in columns and (needed := _width(columns[name]) + 2) <= room:
            chosen.add(name)
            room -= needed
    return [name for name in columns if name in chosen]


def _width(cells: Iterable[str]) -> int:
    return max(len(line) for cell in cells for line in cell.split("\n"))


def _title(name: str) -> str:
    part, slash, metric = name.partition("/")
    return f"{part}\n{metric}" if slash else f"\n{name}"


def _number(name: str, value: float) -> str:
    if name == "lr":
        return f"{value:#.3g}"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 or 1e4 <= abs(value) < math.inf else f"{value:.4f}"


def _short(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
