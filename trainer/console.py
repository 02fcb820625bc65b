"""How errors reach the user: one line each on stderr, and the documented exit code."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import GearshiftError, Interrupted

_OWN = Path(__file__).resolve().parent


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn any error into lines on stderr and SystemExit with its code; `--debug` shows the whole trace."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        raise SystemExit(getattr(error, "exit_code", 130)) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # a reader such as `head` has gone
        raise SystemExit(0) from None
    except Exception as error:
        print_failure(error)
        raise SystemExit(getattr(error, "exit_code", 1)) from None


def print_failure(error: Exception) -> None:
    """An error of the user's or of the machine, each problem on a line of its own; else a bug of ours."""
    if os.environ.get("GEARSHIFT_DEBUG"):
        traceback.print_exception(error)
    if not isinstance(error, GearshiftError):
        _print_bug(error)
        return
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)


def _print_bug(error: Exception) -> None:
    """What and where, our frames only."""
    print(f"error: unexpected {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_OWN):
            print(f"  {path.relative_to(_OWN.parent)}:{frame.lineno} in {frame.name}", file=sys.stderr)
    print("  this is a bug in Gearshift, or in a class of yours; --debug shows the whole trace", file=sys.stderr)
