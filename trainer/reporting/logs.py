"""Log handlers: `train.log` in the run folder, and warnings from data sets on the terminal."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

_OURS = "trainer"
_DATA = "trainer.data"


class OneLine(logging.Formatter):
    r"""Formats records as `2026-11-20T22:47:05.123+01:00 INFO message`, with line breaks escaped as `\n`."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\r", "\\r").replace("\n", "\\n")


def open_run_log(path: Path) -> logging.Handler:
    """Append records of the logger "trainer", INFO and above, to a file, beginning with those buffered by `held`."""
    handler = _RunLog(path)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    for early in [other for other in logging.getLogger(_OURS).handlers if isinstance(other, _Held)]:
        for record in early.records:
            handler.handle(record)
        close(early)
    return _attach(handler)


class _RunLog(logging.FileHandler):
    """Log file that ignores write errors: more important files report a full disk.

    It leaves the records of a thread that has a run of its own to that run's log.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.owner = threading.get_ident()
        self.addFilter(self._is_own)

    def _is_own(self, record: logging.LogRecord) -> bool:
        others = {h.owner for h in logging.getLogger(_OURS).handlers if isinstance(h, _RunLog)} - {self.owner}
        return record.thread not in others

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Held(logging.Handler):
    """Buffers records; prints warnings on stderr if no other handler does, as Python does without handlers."""

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
    """Context manager that buffers the records of the logger "trainer" until `open_run_log` writes them."""
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
    """Show the user warnings from data sets, such as a replaced worker or a rebuilt cache."""
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
