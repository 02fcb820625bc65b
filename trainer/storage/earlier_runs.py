"""Runs of earlier commands, found below the folder that their folders are created in."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.base.errors import DataError
from trainer.storage import run_folder
from trainer.storage.records import read_json

_DEPTH = 4  # levels below the root: outputs/DATE/RUN needs two


def made_by(folder: Path) -> str | None:
    """Return the Slurm job in which a run's folder was made; None if it was none, or if the record is damaged."""
    with suppress(DataError, OSError):
        return str(read_json(folder / run_folder.JOB)["slurm_job_id"])
    return None


def root_of(pattern: str) -> tuple[Path, bool]:
    """Return the folder below which a pattern such as `outputs/${now:%Y}/run` creates runs, and False.

    If it is no pattern but the name of one folder, returns that, and True.
    """
    fixed, is_pattern, _ = pattern.partition("${")
    if not is_pattern:
        return Path(pattern), True
    folder, slash, _ = fixed.rpartition("/")
    return Path(folder or slash or "."), False


def runs_below(root: Path) -> list[Path]:
    """Return the folders of runs below a folder, or that folder itself, newest first; the trials of sweeps are not."""
    return sorted(_runs(root, _DEPTH), key=_begun, reverse=True)


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / run_folder.CONFIG).is_file():
        yield folder
    elif depth and folder.is_dir() and not (folder / run_folder.SWEEP).is_file():
        with suppress(OSError), os.scandir(folder) as entries:
            inner = [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
            for name in inner:
                yield from _runs(folder / name, depth - 1)


def _begun(folder: Path) -> int:
    with suppress(OSError):
        return (folder / run_folder.CONFIG).stat().st_mtime_ns
    return 0
