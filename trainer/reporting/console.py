"""Reports errors to the user, one line each on stderr, with the documented exit codes."""

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.base.errors import (
    ConfigurationError,
    GearshiftError,
    Interrupted,
    one_line,
    understood,
)
from trainer.base.signals import stop_request

_OWN = Path(__file__).resolve().parents[1]


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Convert any error into lines on stderr and SystemExit with its code; `--debug` adds the traceback."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        raise SystemExit(_stopped(error)) from None
    except Exception as error:
        if (stop := stop_request.behind(error)) is not None:
            raise SystemExit(_stopped(stop)) from None
        known = print_failure(error)
        raise SystemExit(getattr(known, "exit_code", 1)) from None


def _stopped(error: BaseException) -> int:
    """Tell where the run is that a signal ended before it was trained, and return the exit code."""
    code = getattr(error, "exit_code", 130)
    stop_request.tell(f"stopped by {signal.Signals(code - 128).name}")
    return int(code)


@contextmanager
def despite_lost_terminal() -> Iterator[None]:
    """Context manager for printing during a run: a terminal that has been closed does not end the run."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        _discard_stdout()


def say(text: str) -> None:
    """Print a line during a run; a broken pipe or a closed terminal does not end the run."""
    try:
        with despite_lost_terminal():
            print(text, flush=True)
    except BrokenPipeError:
        _discard_stdout()


def ignore_broken_pipe() -> None:
    """Make rich discard output on a broken pipe (`train ... | head`); by default it ends the program."""
    from rich import get_console

    get_console().on_broken_pipe = _discard_stdout  # type: ignore[method-assign]


def ignore_deprecations_inside_torch() -> None:
    """Hide the FutureWarnings that torch and torchvision raise about calls in their own code.

    Users cannot act on them. Warnings about other modules are shown; `-W` and PYTHONWARNINGS take precedence. torch
    functions that log their calls (`torch.distributed`) hide the caller, so a test searches our code for deprecated
    calls.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(vision)?(\.|$)", append=True)


def _discard_stdout() -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_failure(error: Exception) -> Exception:
    """Print an expected error, one line per problem, or report any other as a bug.

    Returns the error that determines the exit code.
    """
    if os.environ.get("GEARSHIFT_DEBUG"):
        traceback.print_exception(error)
    known = understood(error)
    if isinstance(known, Exception):
        error = known
    if not isinstance(error, GearshiftError):
        _print_bug(error)
        return error
    problems = error.problems if isinstance(error, ConfigurationError) else [str(error)]
    for problem in dict.fromkeys(problems):
        print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
    return error


def _print_bug(error: Exception) -> None:
    """Print an unexpected error with the stack frames of our own code."""
    print(f"error: unexpected {type(error).__name__}: {one_line(error)}", file=sys.stderr)
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_OWN):
            print(f"  {path.relative_to(_OWN.parent)}:{frame.lineno} in {frame.name}", file=sys.stderr)
    print("  this is a bug in Gearshift or in one of your classes; --debug shows the whole traceback", file=sys.stderr)
