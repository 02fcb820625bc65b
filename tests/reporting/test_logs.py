"""`train.log` has one line per record, including records before it is opened; warnings of data sets reach the user."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from trainer.reporting.logs import close, held, open_run_log, tell_warnings_of_data

log = logging.getLogger("trainer.somewhere")


@pytest.fixture(autouse=True)
def loggers_stay_as_they_were() -> Iterator[None]:
    ours = logging.getLogger("trainer")
    level, handlers = ours.level, list(ours.handlers)
    yield
    assert ours.handlers == handlers
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


@contextmanager
def no_handlers() -> Iterator[None]:
    """Without the handlers that pytest adds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        yield


def test_what_was_said_before_the_log_was_open_stands_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with no_handlers(), held():
        log.info("first")
        log.warning("second")
        handler = open_run_log(tmp_path / "train.log")
        log.warning("third")
    log.info("fourth")
    close(handler)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["INFO first", "WARNING second", "WARNING third", "INFO fourth"]
    assert [line.split(" ", 1)[0] for line in lines] == sorted(line.split(" ", 1)[0] for line in lines)
    assert capsys.readouterr().err == "second\n"  # later warnings are up to the regular handlers


def test_what_is_held_is_let_go_where_no_log_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no log"), no_handlers(), held():
        log.warning("lost")
        raise ValueError("no log")
    handler = open_run_log(tmp_path / "train.log")
    close(handler)
    assert (tmp_path / "train.log").read_text() == ""
    assert capsys.readouterr().err == "lost\n"


def test_warnings_of_data_are_said_until_the_handler_is_closed() -> None:
    messages: list[str] = []
    handler = tell_warnings_of_data(messages.append)
    logger = logging.getLogger("trainer.data.photographs.workers")
    logger.warning("a worker %s", "was lost")
    logger.info("decoding")
    logging.getLogger("trainer").warning("another thing")
    close(handler)
    logger.warning("after the end")
    assert messages == ["a worker was lost"]
