"""Expected errors, each with its documented exit code.

They are printed as one line on stderr, starting with `error: `; any other exception is a bug (exit code 1).
"""

import errno
from collections.abc import Iterable

from trainer.base.blame import place_of
from trainer.base.text import did_you_mean
from trainer.base.text import nearest as nearest

_NAMES_SHOWN = 50
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class GearshiftError(Exception):
    """Base of all expected errors: a message for the user and an exit code."""

    exit_code = 1


class ConfigurationError(GearshiftError):
    """The command line or configuration is invalid; contains all problems found, one per line."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ComponentError(GearshiftError):
    """A class or function that the configuration names has failed, or has returned what its group cannot use."""

    exit_code = 2


class NotTrusted(ConfigurationError):
    """Hydra's own node names code that is not trusted."""


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
    """A rank was killed, stopped or failed for an unknown reason, and no restarts are left."""

    exit_code = 71


class OutOfMemory(GearshiftError):
    """The device is out of memory."""

    exit_code = 73


class DiskError(GearshiftError):
    """The disk is full, or a file cannot be written."""

    exit_code = 74


class RunInUse(GearshiftError):
    """Another process holds the run folder."""

    exit_code = 75


class Interrupted(BaseException):
    """A signal ended the program before there was any state to save."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(f"stopped by signal {signum}")


def unknown(what: str, word: str, known: Iterable[str], prefix: str = "", elsewhere: Iterable[str] = ()) -> str:
    """Return a message about an unknown name, with the nearest one and a list of all (if many, the first ones).

    `elsewhere` are the full names of what has this name in other places; only they are suggested then.
    """
    if meant := " or ".join(f"'{name}'" for name in elsewhere):
        return f"{what} '{prefix}{word}' does not exist. Did you mean {meant}?"
    names = sorted(str(k) for k in known)
    hint = did_you_mean(word, names, f" Did you mean '{prefix}{{}}'?")
    listing = ", ".join(names[:_NAMES_SHOWN]) if names else "none"
    more = f", ... ({len(names)} in all)" if len(names) > _NAMES_SHOWN else ""
    return f"{what} '{prefix}{word}' does not exist.{hint} Known: {listing}{more}"


def one_line(error: BaseException) -> str:
    """Return a library error's message in one line, without C++ stack frames."""
    lines = [line.strip() for line in str(error).partition("Exception raised from")[0].splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an out-of-memory error of Python or torch; does not import torch."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if {"MemoryError", "OutOfMemoryError"} & names:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):  # of a library, without address space for it; a noexec mount adds its reason
        return str(error).endswith(("failed to map segment from shared object", "Cannot allocate memory"))
    return any(words in str(error) for words in ("can't allocate memory", "bad_alloc", "can't start new thread"))


def is_out_of_files(error: BaseException) -> bool:
    """Whether the process may open no more files; an import reports this as an ImportError."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return "Too many open files" in str(error)


def understood(error: BaseException) -> BaseException:
    """Return the GearshiftError for a disk, a lack of memory or of open files, for settings that torch refuses, and
    for an error in a class of the user's; otherwise the error itself."""
    if isinstance(error, GearshiftError):
        return error
    if isinstance(error, OSError) and error.errno in _DISK:
        return DiskError(one_line(error))
    if isinstance(error, Exception) and is_out_of_files(error):
        return DiskError(f"{one_line(error)}; raise the limit (ulimit -n)")
    if isinstance(error, Exception) and is_out_of_memory(error):
        return OutOfMemory(
            f"out of memory: {one_line(error)}; a smaller batch_size or micro_batch, or a smaller model, needs less"
        )
    if isinstance(error, Exception):
        return _refused_by_torch(error) or _theirs(error) or error
    return error


def advice_of(error: BaseException) -> str | None:
    """Return which setting allows what torch refuses with this error, or None."""
    text = str(error)
    if "does not have a deterministic implementation" in text:
        return f"{text.split()[0]} has no deterministic implementation here; deterministic=false allows it"
    if "Expected to have finished reduction in the prior iteration" in text:
        return (
            "parallelism: a step did not use every parameter, as when a branch of the model is not always taken; "
            "set parallelism.unused_parameters=true"
        )
    return None


def _refused_by_torch(error: Exception) -> GearshiftError | None:
    advice, place = advice_of(error), place_of(error)
    if advice is None:
        return None
    return ConfigurationError(advice if place is None else f"{advice} ({place})")


def _theirs(error: Exception) -> GearshiftError | None:
    place = place_of(error)
    if place is None:
        return None
    return ComponentError(f"{place}: {type(error).__name__}: {one_line(error)} (not code of Gearshift's)")
