"""How errors reach the user: one line each on stderr, and the documented exit code."""

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.base.errors import ConfigurationError, DiskError, GearshiftError, Interrupted, one_line, understood

_OWN = Path(__file__).resolve().parents[1]


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn any error into lines on stderr and SystemExit with its code; `--debug` shows the whole trace."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        raise SystemExit(getattr(error, "exit_code", 130)) from None
    except BrokenPipeError:  # a reader such as `head` has gone
        _let_go_of_stdout()
        raise SystemExit(0) from None
    except Exception as error:
        known = print_failure(error)
        raise SystemExit(getattr(known, "exit_code", 1)) from None


def say(text: str) -> None:
    """Print a line during a run, which goes on when nobody reads it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _let_go_of_stdout()


def outlive_readers() -> None:
    """Let what rich prints be lost when nobody reads it (`train ... | head`); rich would end the program."""
    from rich import get_console

    get_console().on_broken_pipe = _let_go_of_stdout  # type: ignore[method-assign]


def ignore_deprecations_inside_torch() -> None:
    """Hide the FutureWarnings that torch and torchvision raise about calls in their own code.

    Users cannot act on them. Other modules' warnings are shown; `-W` and PYTHONWARNINGS take precedence. Functions of
    torch's that log their calls (`torch.distributed`) hide their caller, so a test looks for deprecated calls in ours.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(vision)?(\.|$)", append=True)


def _let_go_of_stdout() -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_failure(error: Exception) -> Exception:
    """An error of the user's or of the machine, each problem on a line of its own; else a bug of ours.

    Returns the error as it was understood.
    """
    if os.environ.get("GEARSHIFT_DEBUG"):
        traceback.print_exception(error)
    known = understood(error)
    if isinstance(known, Exception):
        error = known
    if isinstance(error, DiskError):
        _let_go_of_stdout()  # which may be what is full
    if not isinstance(error, GearshiftError):
        _print_bug(error)
        return error
    problems = error.problems if isinstance(error, ConfigurationError) else [str(error)]
    for problem in dict.fromkeys(problems):
        print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
    return error


def _print_bug(error: Exception) -> None:
    """What and where, our frames only."""
    print(f"error: unexpected {type(error).__name__}: {one_line(error)}", file=sys.stderr)
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_OWN):
            print(f"  {path.relative_to(_OWN.parent)}:{frame.lineno} in {frame.name}", file=sys.stderr)
    print("  this is a bug in Gearshift, or in a class of yours; --debug shows the whole trace", file=sys.stderr)
