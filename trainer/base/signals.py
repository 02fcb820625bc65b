"""SIGINT and SIGTERM: the first signal finishes the step and saves; a second one exits immediately."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

from trainer.base.errors import ConfigurationError, GearshiftError, Interrupted


class StopRequest:
    """Whether the program was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.can_wait = False  # true while a loop checks `signum` after each step
        self.was_raised = False  # whether the signal became an exception

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """The signal handler."""
        if self.signum is not None:
            show_cursor()
            os._exit(128 + signum)
        self.signum = signum
        if not self.can_wait:
            self.was_raised = True
            raise Interrupted(signum)

    def behind(self, error: BaseException) -> Interrupted | None:
        """Return the signal of which an error is a consequence, or None.

        Imports may swallow the exception of a signal or replace it: a C extension then raises an ImportError
        ("initialization failed"), and cannot be imported again. After the exception of a signal everything but
        what the disk, the run or another rank report is a consequence of it.
        """
        if isinstance(error, Interrupted):
            return error
        if not self.was_raised or self.signum is None or isinstance(error, OSError):
            return None
        is_consequence = isinstance(error, ConfigurationError) or not isinstance(error, GearshiftError)
        return Interrupted(self.signum) if is_consequence else None


def show_cursor() -> None:
    """Show the terminal's cursor, which a live display hides."""
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\n\x1b[?25h")


stop_request = StopRequest()


def install() -> None:
    """Install the handlers of SIGINT and SIGTERM; called first, before torch is imported."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop_request.receive)
    sys.unraisablehook = _send_again


def _send_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Send a signal again if its exception was raised in a finalizer or weak reference, where Python ignores it."""
    error = ignored.exc_value
    if not isinstance(error, Interrupted):
        sys.__unraisablehook__(ignored)
        return
    stop_request.signum, stop_request.was_raised = None, False
    timer = threading.Timer(0.01, os.kill, (os.getpid(), error.exit_code - 128))
    timer.daemon = True
    timer.start()
