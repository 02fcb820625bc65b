"""SIGINT and SIGTERM: the first one lets the step finish and saves; a second one leaves at once."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

from trainer.base.errors import Interrupted


class StopRequest:
    """Whether the program was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.can_wait = False  # true while a loop looks at `signum` after each step

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """The signal handler."""
        if self.signum is not None:
            show_cursor()
            os._exit(128 + signum)
        self.signum = signum
        if not self.can_wait:
            raise Interrupted(signum)


def show_cursor() -> None:
    """A live display has hidden it."""
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\n\x1b[?25h")


stop_request = StopRequest()


def install() -> None:
    """Handle SIGINT and SIGTERM from now on; called first thing, before torch is imported."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop_request.receive)
    sys.unraisablehook = _send_again


def _send_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Python ignores exceptions in finalizers and weak references; a signal that met one comes again."""
    error = ignored.exc_value
    if not isinstance(error, Interrupted):
        sys.__unraisablehook__(ignored)
        return
    stop_request.signum = None
    timer = threading.Timer(0.01, os.kill, (os.getpid(), error.exit_code - 128))
    timer.daemon = True
    timer.start()
