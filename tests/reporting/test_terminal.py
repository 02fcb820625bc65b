"""The live display as shown by a small terminal emulator, and by a real pseudo terminal."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
import timeit
from collections.abc import Iterator
from itertools import pairwise

import pytest
from rich.console import Console
from rich.table import Table

from trainer.reporting import terminal
from trainer.reporting.tables import unbroken
from trainer.reporting.terminal import Terminal, interactive

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "perf_counter", clock)
    return clock


@pytest.fixture(autouse=True)
def a_capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def screen(width: int = 100, height: int = 30, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(file=file, force_terminal=True, width=width, height=height, legacy_windows=False)


def pipe() -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True))


def written(console: Console) -> str:
    return console.file.buffer.getvalue().decode(console.file.encoding)  # type: ignore[attr-defined,no-any-return]


def visible(text: str) -> list[str]:
    """The lines that a terminal would show."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token.startswith("\x1b[") and token.endswith("A"):
            row -= int(token[2:-1])
        elif token[0] not in "\x1b\r":
            lines[row] += token
    return [line.rstrip() for line in lines]


def values(step: int) -> dict[str, float]:
    return {
        "train/loss": 2.0 / step,
        "train/accuracy": 0.25,
        "val/loss": 3.0 / step,
        "val/accuracy": 0.5 + step / 1000,
        "lr": 0.1 / step,
        "throughput/samples_per_second": 77.0,
    }


def test_plain_lines_on_a_pipe(clock: Clock) -> None:
    console = pipe()
    display = Terminal(100, lambda step: step / 10, "val/accuracy", "max", console)
    display.header({"model": "lenet [bold]", "optimizer": "adamw " + "x" * 100})
    display.tick(1, 2.0, 1000.0)
    display.row(10, 1.0, values(10), best=True)
    clock.now += 1
    display.message("warning: [red]slow[/red] :smile:")
    display.row(25, 2.5, values(25) | {"train/loss": 0.2, "val/mae": float("nan")}, best=False)
    display.finish(["test/accuracy 0.9"])
    display.close()
    common = "train/loss 0.2000  train/accuracy 0.2500"
    assert written(console).splitlines() == [
        "model: lenet [bold]",
        "optimizer: adamw " + "x" * 100,
        f"epoch 1.00  step 10  {common}  val/loss 0.3000  val/accuracy 0.5100  lr 0.0100  *",
        "warning: [red]slow[/red] :smile:",
        f"epoch 2.50  step 25  {common}  val/loss 0.1200  val/accuracy 0.5250  val/mae nan  lr 0.00400",
        "test/accuracy 0.9",
    ]


def test_a_fast_run_does_not_flood_a_log(clock: Clock) -> None:
    console = pipe()
    display = Terminal(1000, lambda step: step / 1, "val/loss", "min", console)
    for step in range(1, 1001):
        clock.now += 0.0101
        display.row(step, float(step), values(step), best=step in (1, 15, 16, 995))
    display.finish(["done"])
    lines = [line.split() for line in written(console).splitlines()[:-1]]
    steps = [int(line[3]) for line in lines]
    assert steps == sorted(set(steps))
    assert len(steps) <= 10.1 * 10 + 4
    assert steps[-1] == 1000
    assert [int(line[3]) for line in lines if line[-1] == "*"] == [1, 16, 995], "15 was bettered unseen"


def test_an_aborted_run_prints_the_row_that_was_held_back(clock: Clock) -> None:
    console = pipe()
    display = Terminal(10, lambda step: step / 1, "val/loss", "min", console)
    display.row(1, 1.0, values(1), best=False)
    display.row(2, 2.0, values(2), best=False)
    assert len(written(console).splitlines()) == 1
    display.close()
    display.close()
    assert [line.split()[3] for line in written(console).splitlines()] == ["1", "2"]


def test_the_table_keeps_the_last_rows_and_the_best(clock: Clock) -> None:
    console = screen()
    display = Terminal(400, lambda step: step / 10, "val/accuracy", "max", console)
    for step in range(10, 210, 10):
        clock.now += 1
        display.row(step, step / 10, values(step), best=step in (10, 50))
    lines = visible(written(console))
    assert lines[0].split() == ["train", "train", "val", "val"]
    assert lines[1].split() == ["epoch", "loss", "accuracy", "loss", "accuracy", "↑", "lr"]
    rows = [line.split() for line in lines[3:-1]]
    assert [row[0] for row in rows] == ["5.00", *(f"{epoch}.00" for epoch in range(14, 21))]
    assert [row[0] for row in rows if row[-1] == "★"] == ["5.00"]
    assert rows[0][1:] == ["0.0400", "0.2500", "0.0600", "0.5500", "0.00200", "★"]
    assert "200/400" in lines[-1]
    display.finish(["test/accuracy 0.9", "see outputs"])
    final = visible(written(console))
    assert final[:3] == lines[:3]
    assert [line.split()[0] for line in final[3:-4]] == [f"{epoch}.00" for epoch in range(1, 21)]
    assert [line.split()[0] for line in final if line.endswith("★")] == ["5.00"]
    assert final[-4:] == ["", "test/accuracy 0.9", "see outputs", ""]


@pytest.mark.parametrize("count", [1, 19, 20, 21, 30, 401, 5000])
def test_a_thinned_table_of_all_evaluations_stays_on_the_screen(clock: Clock, count: int) -> None:
    """Also on a terminal that is lower than the table, with the first, the best and the last row, evenly spaced."""
    console = screen(height=10)
    display = Terminal(count, lambda step: step / 1, "val/loss", "min", console)
    best = max(1, round(0.37 * count))
    for step in range(1, count + 1):
        display.row(step, float(step), values(step), best=step == best)
    clock.now += 1
    display.finish(["done"])
    lines = visible(written(console))
    rows = [line.split() for line in lines if re.match(r" *\d+\.00 ", line)]
    steps = [int(float(row[0])) for row in rows]
    assert len(steps) <= 20
    assert len(steps) >= min(count, 18)
    assert {1, best, count} <= set(steps)
    assert [int(float(row[0])) for row in rows if row[-1] == "★"] == [best]
    gaps = [b - a for a, b in pairwise(steps)]
    assert max(gaps, default=1) <= max(1, count / 8)
    note = f"{len(steps)} of {count:,} evaluations; metrics.jsonl has all"
    assert (note in lines) == (count > 20)
    assert len(display._history._rows) <= 400


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120])
def test_no_word_is_broken_at_any_width(clock: Clock, width: int) -> None:
    console = screen(width)
    display = Terminal(100, lambda step: step / 10, "val/loss", "min", console)
    folder, command = "outputs/2026-11-30/17-48-06-digits", "train resume 'out puts/2026-11-30/a'"
    display.header({"run": folder, "data": "digits: 1,437 train, 180 val, 180 test"})
    display.row(10, 1.0, values(10), best=True)
    display.message("the first loss is 7.3; an untrained model has 2.3: check the initializer")
    display.finish([
        "best (epoch 1.0): " + "  ".join(map(unbroken, ["val/loss 0.3", "val/accuracy 0.51"])),
        f"run folder: {folder}", f"to continue: {unbroken(command)}",
    ])  # fmt: skip
    lines = visible(written(console))
    assert [line for line in lines if len(line) > width] in ([], [f"  {command}"])
    assert sum(command in line for line in lines) == 1
    words = {word for line in lines for word in re.findall(r"[\w.,'-]+", line)}
    assert {"outputs", "2026-11-30", "17-48-06-digits", "1,437", "untrained", "initializer", "0.51"} <= words
    assert {"val", "loss", "accuracy", "0.3000"} <= words or width == 20


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_nothing_is_wider_than_the_terminal(clock: Clock, width: int, encoding: str) -> None:
    console = screen(width, encoding=encoding)
    display = Terminal(1_234_567, lambda step: step / 1000, "val/accuracy", "max", console)
    display.header({"a name": "and a long value " * 5})
    for step in (1000, 2000, 3000):
        clock.now += 1
        display.tick(step, 1.0, 123_456.0)
        display.row(step, step / 1000, values(step) | {"val/accuracy_top5": 0.99}, best=step == 2000)
    lines = visible(written(console))
    assert max(map(len, lines)) <= width
    assert "3,000/1,234,567"[: width - 10] in lines[-1] or width == 20
    titles = re.findall(r"\w+", " ".join(lines[-6:-4]))
    expected = {20: 1, 30: 2, 40: 3, 60: 5, 80: 6, 200: 6}[width]
    assert sum(title in ("loss", "accuracy", "accuracy_top5", "lr") for title in titles) == expected
    star = "★" if encoding == "utf-8" else "*"
    assert [star in line for line in lines[-4:-1]] == [False, True, False]
    display.close()


def test_rows_fit_a_low_terminal(clock: Clock) -> None:
    console = screen(height=10)
    display = Terminal(100, lambda step: step / 1, None, "min", console)
    for step in range(1, 30):
        clock.now += 1
        display.row(step, float(step), values(step), best=False)
    lines = visible(written(console))
    assert len(lines) < 10
    assert lines[-2].split()[0] == "29.00"
    display.close()


def test_progress_shows_rate_and_time_left(clock: Clock) -> None:
    console = screen()
    display = Terminal(1000, lambda step: step / 100, None, "min", console)
    display.tick(101, loss=2.0, samples_per_second=12_345.0)
    assert visible(written(console))[-1].endswith("━  101/1,000  epoch 1.0  loss 2.0000  12.3k samples/s")
    clock.now += 50
    display.tick(201)
    # 100 steps took 50 s, 799 remain
    line = visible(written(console))[-1]
    assert line.endswith("━  201/1,000  epoch 2.0  loss 2.0000  12.3k samples/s  6:40 left")
    assert len(line) == 99
    assert line.index("╺") == int(0.201 * line.index("  201"))
    display.close()
    assert visible(written(console)) == [""], "without rows nothing remains"


@pytest.mark.parametrize(
    ("seconds_a_step", "left"), [(0.001, "0:01"), (0.1, "1:40"), (4.0, "1:06:40"), (3600.0, "41d 16h")]
)
def test_time_left_in_all_sizes(clock: Clock, seconds_a_step: float, left: str) -> None:
    console = screen()
    display = Terminal(1500, lambda step: step / 100, None, "min", console)
    display.tick(0)
    clock.now += 500 * seconds_a_step
    display.tick(500)
    assert visible(written(console))[-1].endswith(f"{left} left")
    display.close()


def test_ticks_redraw_five_times_a_second_at_most(clock: Clock) -> None:
    console = screen()
    display = Terminal(100_000, lambda step: step / 100, None, "min", console)
    for step in range(1, 10_001):
        clock.now += 1e-3
        display.tick(step)
    assert 45 <= written(console).count("/100,000") <= 51
    display.close()


def test_short_epochs_redraw_the_table_twice_a_second_at_most(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    draw = Terminal._draw_table

    def counted(self: Terminal, width: int) -> Table:
        drawn.append(clock.now)
        return draw(self, width)

    monkeypatch.setattr(Terminal, "_draw_table", counted)
    console = screen()
    display = Terminal(10_000, lambda step: step / 10, "val/accuracy", "max", console)
    for step in range(10, 2010, 10):  # 200 epochs of 15 ms each
        for tick in range(step - 9, step + 1):
            clock.now += 1.5e-3
            display.tick(tick)
        display.row(step, step / 10, values(step), best=False)
    assert 5 <= len(drawn) <= 7  # in 3 s
    assert written(console).count("/10,000") <= 32
    display.close()
    assert visible(written(console))[-3].split()[0] == "200.00"  # the last epoch is shown


def test_a_tick_that_shows_nothing_costs_well_under_a_microsecond() -> None:
    for console in (screen(), pipe()):
        display = Terminal(10**9, lambda step: step / 100, None, "min", console)
        display.tick(1)
        display._next_refresh = float("inf")
        names = {"tick": display.tick}
        cost = min(timeit.repeat("tick(7, None, None)", timer=time.process_time, globals=names, number=20_000))
        display.close()
        assert cost / 20_000 < 0.8e-6  # usually a tenth of it


def test_messages_appear_above_the_display(clock: Clock) -> None:
    console = screen(width=40)
    display = Terminal(100, lambda step: step / 10, "val/loss", "min", console)
    display.row(10, 1.0, values(10), best=True)
    before = visible(written(console))
    display.message("warning: " + "long " * 20)
    display.message("again")
    broken = ["warning: long long long long long long", *["  " + "long " * 6 + "long"] * 2]
    assert visible(written(console)) == [*broken, "again", *before]
    display.close()


@pytest.mark.parametrize("how", ["finish", "close", "close_twice"])
def test_the_cursor_is_hidden_and_shown_again(how: str) -> None:
    console = screen()
    display = Terminal(100, lambda step: step / 10, None, "min", console)
    display.tick(1)
    assert HIDE in written(console)
    assert SHOW not in written(console)
    if how == "finish":
        display.finish([])
    else:
        display.close()
        if how == "close_twice":
            display.close()
    assert written(console).count(SHOW) == written(console).count(HIDE) == 1
    display.tick(2)
    display.row(2, 0.2, values(2), best=True)
    assert written(console).count(HIDE) == 1, "a late call does not begin again"


def test_closing_before_anything_was_shown() -> None:
    console = screen()
    display = Terminal(100, lambda step: step / 10, None, "min", console)
    display.close()
    assert written(console) == ""


def test_live_only_on_a_capable_terminal_outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interactive(screen())
    assert not interactive(pipe())
    monkeypatch.setenv("CI", "true")
    assert not interactive(screen())
    monkeypatch.delenv("CI")
    monkeypatch.setenv("TERM", "dumb")
    assert not interactive(screen())
    console = screen()
    display = Terminal(10, lambda step: step / 1, "val/loss", "min", console)
    display.tick(1)
    display.row(1, 1.0, values(1), best=True)
    assert "\x1b" not in written(console)
    assert written(console).startswith("epoch 1.00  step 1")


PROGRAM = """
    import os, signal, sys
    from trainer.reporting.terminal import Terminal
    display = Terminal(100, lambda step: step / 10, "val/loss", "min")
    display.header({"model": "lenet"})
    display.tick(1, 2.0, 100.0)
    display.row(10, 1.0, {"val/loss": 1.0}, True)
    end = sys.argv[1]
    if end == "finish":
        display.finish(["done"])
    elif end == "error":
        raise RuntimeError("boom")
    elif end == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize("end", ["finish", "error", "interrupt", "forgotten"])
def test_a_real_terminal_gets_its_cursor_back_however_the_program_ends(end: str) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), end], stdout=theirs, stderr=theirs, stdin=theirs
    )
    os.close(theirs)
    output = "".join(read_all(ours))
    status = child.wait(timeout=120)
    assert status == {"finish": 0, "error": 1, "interrupt": -signal.SIGINT, "forgotten": 0}[end]
    assert output.count(HIDE) == 1
    assert output.rindex(SHOW) > output.rindex(HIDE)
    rows = [line for line in visible(output.replace("\r\n", "\n")) if "★" in line]
    assert [row.split() for row in rows] == [["1.00", "1.0000", "★"]]
    assert ("boom" in output, "done" in output) == (end == "error", end == "finish")


def read_all(descriptor: int) -> Iterator[str]:
    while select.select([descriptor], [], [], 120)[0]:
        try:
            block = os.read(descriptor, 65536)
        except OSError:  # Linux raises it once the other side is closed
            break
        if not block:
            break
        yield block.decode()
    os.close(descriptor)
