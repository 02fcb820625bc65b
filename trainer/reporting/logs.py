"""Where log records go: `train.log` in the run folder, and what the user should know of them to the terminal."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

_OURS = "trainer"
_DATA = "trainer.data"


class OneLine(logging.Formatter):
    r"""`2026-11-20T22:47:05.123+01:00 INFO message`; line ends within a record, and tracebacks, as `\n`."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\r", "\\r").replace("\n", "\\n")


def open_run_log(path: Path) -> logging.Handler:
    """Append the records of the logger "trainer", INFO and above, to the file at `path`, those that `held` first."""
    handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    for early in [other for other in logging.getLogger(_OURS).handlers if isinstance(other, _Held)]:
        for record in early.records:
            handler.handle(record)
        close(early)
    return _attach(handler)


class _RunLog(logging.FileHandler):
    """What a full disk does not take is lost without a word: the files that count say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Held(logging.Handler):
    """Keeps records, and says warnings on stderr where nobody else does, as Python does without a handler."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and not logging.getLogger().handlers:
            last.handle(record)


@contextmanager
def held() -> Iterator[None]:
    """Keep the records of the logger "trainer" meanwhile, for the `open_run_log` to come; without one they are lost."""
    early = _attach(_Held())
    try:
        yield
    finally:
        close(early)


class _Aloud(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


def tell_warnings_of_data(show: Callable[[str], None]) -> logging.Handler:
    """Let the user see what the data sets warn of: a worker that was replaced, a cache that is made anew."""
    handler = _Aloud(show)
    logging.getLogger(_DATA).addHandler(handler)
    return handler


def close(handler: logging.Handler) -> None:
    """Detach and close a handler of this module."""
    for name in (_OURS, _DATA):
        logging.getLogger(name).removeHandler(handler)
    handler.close()


def _attach(handler: logging.Handler) -> logging.Handler:
    logger = logging.getLogger(_OURS)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler
