"""`train.log` holds one line a record; the console gets what its kind can show."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from rich.logging import RichHandler

from trainer.reporting.logs import close, console_handler, open_run_log, tell_warnings_of_data

log = logging.getLogger("trainer.somewhere")


@pytest.fixture(autouse=True)
def loggers_stay_as_they_were() -> Iterator[None]:
    ours = logging.getLogger("trainer")
    level, handlers = ours.level, list(ours.handlers)
    yield
    assert ours.handlers == handlers
    assert logging.getLogger("py.warnings").handlers == []
    ours.setLevel(level)


def test_one_line_a_record_with_time_level_and_message(tmp_path: Path) -> None:
    before = datetime.now().astimezone()
    handler = open_run_log(tmp_path / "train.log")
    log.info("step %d", 3)
    log.debug("not shown")
    try:
        raise RuntimeError("boom\nbang")
    except RuntimeError:
        log.exception("failed: ü\r\nsecond line")
    close(handler)
    log.info("after the end")
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").split("\n")
    assert [line.split(" ", 1)[1] for line in lines[:1]] == ["INFO step 3"]
    assert len(lines) == 3
    assert lines[2] == ""
    assert re.match(r"\S+ ERROR failed: ü\\r\\nsecond line\\nTraceback .*RuntimeError: boom\\nbang$", lines[1])
    for line in lines[:2]:
        stamp = datetime.fromisoformat(line.split(" ", 1)[0])
        assert before - timedelta(milliseconds=1) <= stamp <= datetime.now().astimezone()


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for text in ("first", "second"):
        handler = open_run_log(tmp_path / "train.log")
        log.warning(text)
        close(handler)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["WARNING first", "WARNING second"]


def test_warnings_are_captured_only_when_asked(tmp_path: Path) -> None:
    handler = open_run_log(tmp_path / "train.log")
    with pytest.warns(UserWarning, match="seen by Python"):
        warnings.warn("seen by Python", UserWarning, stacklevel=1)
    close(handler)
    assert (tmp_path / "train.log").read_text() == ""

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        handlers = [open_run_log(tmp_path / name, capture_warnings=True) for name in ("a.log", "b.log")]
        close(handlers[1])
        warnings.warn("taken in", UserWarning, stacklevel=1)
        close(handlers[0])
        assert warnings.showwarning is shown
    (line,) = (tmp_path / "a.log").read_text().splitlines()
    assert re.search(r" WARNING .*test_logs\.py:\d+: UserWarning: taken in", line)
    assert (tmp_path / "b.log").read_text() == ""


def test_a_pipe_gets_plain_lines_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = console_handler(Console(file=io.StringIO()))
    log.warning("a line of more than eighty characters is neither wrapped nor padded %s", "x" * 80)
    close(handler)
    assert re.fullmatch(r"\S+ WARNING a line of more [a-z ]* x{80}\n", stderr.getvalue())


def test_a_terminal_gets_a_rich_handler_on_the_shared_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    handler = console_handler(console)
    log.info("shown [bold]as it is[/bold]")
    close(handler)
    assert isinstance(handler, RichHandler)
    assert "shown [bold]as it is[/bold]" in re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]


def test_warnings_of_data_are_said_until_the_handler_is_closed() -> None:
    said: list[str] = []
    handler = tell_warnings_of_data(said.append)
    logger = logging.getLogger("trainer.data.photographs.workers")
    logger.warning("a worker %s", "was lost")
    logger.info("decoding")
    logging.getLogger("trainer").warning("another thing")
    close(handler)
    logger.warning("after the end")
    assert said == ["a worker was lost"]
