"""Where log records go: `train.log` in the run folder, and the console."""

import logging
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.reporting.terminal import interactive

if TYPE_CHECKING:
    from rich.console import Console

_OURS = "trainer"
_DATA = "trainer.data"
_WARNINGS = "py.warnings"


class OneLine(logging.Formatter):
    r"""`2026-11-20T22:47:05.123+01:00 INFO message`; line ends within a record, and tracebacks, as `\n`."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\r", "\\r").replace("\n", "\\n")


def open_run_log(path: Path, capture_warnings: bool = False) -> logging.Handler:
    """Append the records of the logger "trainer", INFO and above, to the file at `path`.

    `capture_warnings` takes in what goes through `warnings` as well; it is then no longer shown elsewhere.
    """
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    if capture_warnings:
        logging.captureWarnings(True)
        logging.getLogger(_WARNINGS).addHandler(handler)
    return _attach(handler)


def console_handler(console: "Console") -> logging.Handler:
    """Show the records of the logger "trainer", INFO and above.

    On a terminal above the live display of `console`; elsewhere as plain lines on stderr (rich would pad and
    wrap them at 80 columns).
    """
    if interactive(console):
        from rich.logging import RichHandler

        return _attach(RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    return _attach(handler)


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
    """Detach and close a handler of this module; the last one gives warnings back to Python."""
    for name in (_OURS, _DATA):
        logging.getLogger(name).removeHandler(handler)
    warnings_logger = logging.getLogger(_WARNINGS)
    if handler in warnings_logger.handlers:
        warnings_logger.removeHandler(handler)
        logging.captureWarnings(bool(warnings_logger.handlers))
    handler.close()


def _attach(handler: logging.Handler) -> logging.Handler:
    logger = logging.getLogger(_OURS)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler
