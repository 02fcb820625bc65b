"""Errors that a user can cause or meet, each with its documented exit code.

An error of ours is printed as one line on stderr, `error: ` first; anything else is a bug (exit code 1).
"""

import errno
from collections.abc import Iterable

from trainer.base.text import did_you_mean
from trainer.base.text import nearest as nearest

_NAMES_SHOWN = 50


class GearshiftError(Exception):
    """A failure with a sentence for the user and an exit code."""

    exit_code = 1


class ConfigurationError(GearshiftError):
    """Something in the command line or the configuration; carries every problem found, a line each."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class SweepFailed(GearshiftError):
    """A sweep ended, but some of its trials failed."""

    exit_code = 3


class DataError(GearshiftError):
    """Data or a checkpoint is damaged."""

    exit_code = 65


class Diverged(GearshiftError):
    """The loss or a gradient is no longer finite."""

    exit_code = 70


class RankLost(GearshiftError):
    """A rank was killed, stopped or failed in a way that is nobody's fault, and restarts are spent."""

    exit_code = 71


class OutOfMemory(GearshiftError):
    """The device has no memory left."""

    exit_code = 73


class DiskError(GearshiftError):
    """The disk is full, or a file cannot be written."""

    exit_code = 74


class RunInUse(GearshiftError):
    """Another process holds the run folder."""

    exit_code = 75


class Interrupted(BaseException):
    """A signal asked the program to end before there was any state to save."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(f"stopped by signal {signum}")


def unknown(what: str, word: str, known: Iterable[str], prefix: str = "") -> str:
    """One line about a name that does not exist: the nearest one, and all there are (of many, the first ones)."""
    names = sorted(str(k) for k in known)
    hint = did_you_mean(word, names, f" Did you mean '{prefix}{{}}'?")
    listing = ", ".join(names[:_NAMES_SHOWN]) if names else "none"
    more = f", ... ({len(names)} in all)" if len(names) > _NAMES_SHOWN else ""
    return f"{what} '{prefix}{word}' does not exist.{hint} Known: {listing}{more}"


def one_line(error: BaseException) -> str:
    """What an error of a library says, without the lines of its innards that some add."""
    lines = [line.strip() for line in str(error).partition("Exception raised from")[0].splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that there is no memory left; torch is not imported to know."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool({"MemoryError", "OutOfMemoryError"} & names) or "can't allocate memory" in str(error)


def understood(error: BaseException) -> BaseException:
    """The error of ours that an error of the machine means: a full disk, no memory left; else itself."""
    if isinstance(error, GearshiftError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(one_line(error))
    if isinstance(error, Exception) and is_out_of_memory(error):
        return OutOfMemory(
            f"out of memory: {one_line(error)}; a smaller batch_size or micro_batch, or a smaller model, needs less"
        )
    return error
