"""Signals that ask the program to stop: the first one finishes the step and saves; see `StopRequest.receive`.

Imported before everything else, so that a signal during the imports ends the program without a traceback.
"""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from trainer.base.errors import ConfigurationError, GearshiftError, Interrupted

# Ctrl-C, `kill`, a closed terminal, and the warnings of schedulers before the end of a job
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# seconds within which a repeated signal is the same request: schedulers and launchers send some of them twice
_SAME_REQUEST = 2.0


class StopRequest:
    """Whether the program was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.can_wait = False  # true while a loop checks `signum` after each step
        self.was_raised = False  # whether the signal became an exception
        self.leaves = False  # whether every signal ends the program at once: nothing has begun, or all has ended
        self.advice: str | None = None  # where the run is and how to continue it, in one line
        self.at_once: Callable[[], None] | None = None  # called before a second signal ends the program
        self._first: dict[int, float] = {}  # when each kind of signal was first received

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """The signal handler.

        The first signal is a request: it is noted while `can_wait`, and an exception otherwise. A second SIGINT, or a
        second signal of another kind more than two seconds after the first of that kind, ends the program at once.
        Others are ignored: they must not cut short what the first one has begun.
        """
        now = time.monotonic()
        before = self._first.get(signum)
        self._first.setdefault(signum, now)
        if self.leaves:
            os._exit(128 + signum)
        if self.signum is None:
            self.signum = signum
            if signum == signal.SIGHUP:
                _leave_terminal()
            if not self.can_wait:
                self.was_raised = True
                raise Interrupted(signum)
        elif before is not None and (signum == signal.SIGINT or now - before > _SAME_REQUEST):
            show_cursor()
            self.tell(f"stopped at once by {signal.Signals(signum).name}, without saving")
            if self.at_once is not None:
                with suppress(Exception):
                    self.at_once()
            os._exit(128 + signum)

    def tell(self, how: str) -> None:
        """Print in one line how the program ended, and the advice; nothing if there is no run yet."""
        if self.advice is not None:
            with suppress(OSError):  # unbuffered: a handler may have interrupted a write to sys.stderr
                os.write(2, f"{how}; {self.advice}\n".encode(errors="surrogateescape"))

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

    def forget(self) -> None:
        """Forget a signal whose exception was lost, so that it can be sent again."""
        self.signum, self.was_raised = None, False
        self._first.clear()


def show_cursor() -> None:
    """Show the terminal's cursor, which a live display hides."""
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\n\x1b[?25h")


def _leave_terminal() -> None:
    """Send output to a terminal that has been closed nowhere: writing to it fails."""
    for descriptor in (1, 2):
        with suppress(OSError):
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if is_device and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


stop_request = StopRequest()


def heeded() -> list[int]:
    """Return the signals that this process does not ignore, which `nohup` and shells set before it starts."""
    return [int(signum) for signum in HANDLED if signal.getsignal(signum) is not signal.SIG_IGN]


def install(signums: Collection[int] | None = None) -> None:
    """Install the handlers of these signals, by default of those that are not ignored; ignore the others."""
    chosen = heeded() if signums is None else signums
    for signum in HANDLED:
        signal.signal(signum, stop_request.receive if signum in chosen else signal.SIG_IGN)
    sys.unraisablehook = _send_again


def ignore() -> None:
    """Ignore all of them: the process that has started this one handles them, and ends this one."""
    for signum in HANDLED:
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def blocked() -> Iterator[None]:
    """Context manager that delays signals until it exits, and for the processes started meanwhile until `unblock`.

    So that none is lost, and none ends a process that is about to install handlers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Receive the signals that were blocked when this process started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def _send_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Send a signal again if its exception was raised in a finalizer or weak reference, where Python ignores it."""
    error = unraisable.exc_value
    if not isinstance(error, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    stop_request.forget()
    timer = threading.Timer(0.01, os.kill, (os.getpid(), error.exit_code - 128))
    timer.daemon = True
    timer.start()
