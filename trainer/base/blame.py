"""Finds out in whose code an error was raised: Gearshift's, or that of a class which the configuration names."""

import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType

from trainer.base.trusted_packages import users_packages

# libraries whose classes a configuration may name without further ado, apart from torch itself
_LIBRARIES = ("torchvision.models", "timm", "pytorch_optimizer")


def place_of(error: BaseException) -> str | None:
    """Return `FILE:LINE in FUNCTION` of the innermost code that is neither Gearshift's, nor Python's, nor of a library
    that it uses, and that Gearshift has called; None if there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.__traceback__ is not None:
        return f"{_shown(error.filename)}:{error.lineno}"
    found, is_called = None, False
    for frame, line in _frames(error.__traceback__):
        if _is_ours(frame):
            is_called = True
        elif is_called and _is_theirs(frame):
            found = f"{_shown(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}"
    return found


def with_place(text: str, error: BaseException) -> str:
    """Return the text of an error with the place in the user's code, if it was raised there."""
    place = place_of(error)
    return text if place is None else f"{text} ({place})"


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_own_folder())


def _is_theirs(frame: FrameType) -> bool:
    name, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
    if any(name == package or name.startswith(f"{package}.") for package in (*users_packages(), *_LIBRARIES)):
        return True
    if file.startswith("<"):
        return file.startswith(("<ipython", "<stdin"))
    return not (file.startswith(_folders_of_python()) or "site-packages" in file or "dist-packages" in file)


@cache
def _own_folder() -> str:
    return f"{Path(__file__).resolve().parents[1]}/"


@cache
def _folders_of_python() -> tuple[str, ...]:
    return tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def _shown(file: str) -> str:
    """Return the path, relative to the current folder if the file is inside it."""
    try:
        return str(Path(file).absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return file
