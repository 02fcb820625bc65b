"""The folder of a run: created atomically, and used by one process at a time."""

import fcntl
import os
import platform
import re
import secrets
import shlex
import shutil
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path

from trainer.base.config import Config, JsonObject
from trainer.base.errors import ConfigurationError, DataError, RunInUse
from trainer.storage.commit import describe_repository
from trainer.storage.files import disk_error, disk_errors
from trainer.storage.records import is_unchanged, read_json, read_yaml, write_json, write_yaml

CONFIG, OVERRIDES, ENVIRONMENT, RESULT = "config.yaml", "overrides.yaml", "environment.json", "result.json"
HAS_CHECKPOINTS = "has_checkpoints"  # in `environment.json`: false until the first one
SWEEP = "multirun.yaml"  # Hydra's, in the folder of a sweep
JOB = "job.json"  # the batch job in which the folder was made
LEDGER = "ledger.json"  # in the folder of a study
COMPLETE = ("completed", "early_stopped", "converged")  # statuses of runs that are not run again
METRICS, LOG, CURVES, CHECKPOINTS = "metrics.jsonl", "train.log", "curves.png", "checkpoints"


def default_name(config: Config) -> str:
    """Return the run's name, a plain name for a folder: `name` if given, else <data>-<model>-<optimizer>."""
    choices = config["choices"]
    return config["name"] or "-".join(
        re.sub(r"\W+", "_", str(choices.get(g, g))) for g in ("data", "model", "optimizer")
    )


def create(wanted: Path, config: Config, overrides: list[str], *, exact: bool = False) -> Path:
    """Create the folder of a new run, exclusively, with its configuration in it.

    If `wanted` exists, a number is appended; with `exact` (the user named the folder), it must be new or empty.
    Raises DiskError if it cannot be created, and leaves nothing behind.
    """
    parent = wanted.parent
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    temporary = parent / f".{wanted.name}.{secrets.token_hex(4)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        write_configuration(temporary, config, overrides)
        if (job := batch_job()) is not None:
            write_json(temporary / JOB, {"slurm_job_id": job})
        return _move_into_place(temporary, wanted, exact)
    except OSError as error:
        _remove(temporary, made)
        raise disk_error(wanted, error) from error
    except BaseException:
        _remove(temporary, made)
        raise


def batch_job() -> str | None:
    """Return the id of the Slurm job that this process belongs to; it stays the same when the job is requeued."""
    return os.environ.get("SLURM_JOB_ID")


def new(config: Config) -> Path:
    """Create the folder of a run started from Python, under `outputs/` as from the command line."""
    now = datetime.now()
    wanted = Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}-{default_name(config)}")
    return create(wanted, config, [])


def claim(folder: Path, config: Config) -> None:
    """Create the folder of a run that the user named, with its configuration, unless there is one in it already.

    Raises DiskError.
    """
    if not folder.is_dir():
        with disk_errors(folder):
            folder.mkdir(parents=True)
    if not (folder / CONFIG).exists():
        write_configuration(folder, config, [])


def _move_into_place(temporary: Path, wanted: Path, exact: bool) -> Path:
    """Rename the folder to its final name, which must be new or an empty folder: rename accepts no others."""
    for number in range(1, 10_000):
        target = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
            if exact:
                is_run = (wanted / CONFIG).is_file()
                advice = f"; to continue the run in it: train resume {quoted(wanted)}" if is_run else ""
                raise ConfigurationError(f"hydra.run.dir={wanted}: is not empty{advice}") from None
            continue
        return target
    raise ConfigurationError(f"hydra.run.dir={wanted}: there are 9,999 runs of this name already")


def _remove(temporary: Path, made: list[Path]) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    for folder in made:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def shown(folder: Path) -> Path:
    """Return a folder as a user would type it: relative to the current folder if it is inside it."""
    absolute, cwd = folder.resolve(), Path.cwd()
    return absolute.relative_to(cwd) if absolute.is_relative_to(cwd) else folder


def to_resume(folder: Path) -> Path:
    """Return the folder with which `train resume` continues a run, as a user would type it: a trial's is its sweep's,
    a member's its study's.

    The folder of a sweep holds Hydra's `multirun.yaml`, that of a study a ledger.
    """
    parents = folder.absolute().parents
    whole = next((p for p in parents if (p / SWEEP).is_file() or (p / LEDGER).is_file()), None)
    return shown(whole or folder)


def how_to_continue(folder: Path) -> str:
    """Return one line with the run folder and the command that resumes it."""
    return f"run folder: {shown(folder)}; to continue: train resume {quoted(to_resume(folder))}"


def quoted(folder: Path) -> str:
    """Return a folder as a user would type it in a shell."""
    return shlex.quote(str(shown(folder)))


def write_configuration(folder: Path, config: Config, overrides: list[str]) -> None:
    """Write the resolved configuration and the overrides. Raises DiskError."""
    write_yaml(folder / CONFIG, config, "The resolved configuration of this run; `train repeat` runs it again")
    write_yaml(folder / OVERRIDES, overrides, "The overrides that were typed")


def read_configuration(folder: Path) -> Config:
    """Read the configuration of a run. Raises ConfigurationError if there is none, DataError if it is damaged."""
    path = folder / CONFIG
    if not path.exists():
        raise ConfigurationError(f"{folder} is not a run folder: there is no {CONFIG} in it")
    config = read_yaml(path)
    if not isinstance(config, dict) or not isinstance(config.get("choices"), dict):
        raise DataError(f"{path} is damaged: it has no configuration")
    return config


def check_unchanged(folder: Path) -> None:
    """Raise DataError if the configuration has been edited or damaged since it was written."""
    path = folder / CONFIG
    if not is_unchanged(path):
        raise DataError(
            f"{path} was changed after it was written (its checksum does not match): undo the change; to train with "
            f"another value, type it for a new run: train repeat {shlex.quote(str(folder))} KEY=VALUE"
        )


def read_overrides(folder: Path) -> list[str]:
    """Read the overrides typed for a run; none if the file is missing. Raises DataError if it is damaged."""
    path = folder / OVERRIDES
    if not path.exists():
        return []
    found = read_yaml(path)
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found) or not is_unchanged(path):
        raise DataError(f"{path} is damaged; it holds what was typed and is not needed: delete it to go on without")
    return found


def read_sweep(folder: Path) -> list[str]:
    """Read the overrides typed for the sweep that a trial belongs to; none if it is unknown."""
    with suppress(OSError, DataError, KeyError, TypeError):  # Hydra's file; it is not needed
        words = read_yaml(folder.absolute().parent / SWEEP)["hydra"]["overrides"]["task"]
        return [word for word in words if isinstance(word, str)]
    return []


def read_environment(folder: Path) -> JsonObject | None:
    """Read the environment that a run began in; None if the file is missing. Raises DataError if it is damaged."""
    path = folder / ENVIRONMENT
    return read_json(path) if path.exists() else None


def check_inside(folder: Path, whole: Path, what: str) -> None:
    """Raise ConfigurationError if the folder of a trial or member is a link out of that of the whole, which may have
    come from someone else: a run would overwrite the files there."""
    if not folder.resolve().is_relative_to(whole.resolve()):
        raise ConfigurationError(f"{folder}: is outside of the {what}'s folder {whole}; it must be inside it")


class Lock:
    """Exclusive lock on a run folder, held until `release` or the end of the process.

    Removes temporary files left by a killed process. Raises RunInUse if another process holds the lock,
    ConfigurationError if files of the folder are links to others elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        _check_links(folder)
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise RunInUse(f"{folder} is in use by another process") from error
        with disk_errors(folder):
            for left_over in folder.glob(".*.tmp"):
                left_over.unlink()

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _check_links(folder: Path) -> None:
    """Raise ConfigurationError for links out of the folder: a folder of someone else's must not have others' files
    overwritten."""
    inside = folder.resolve()
    for path in (*folder.iterdir(), *(folder / CHECKPOINTS).glob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise ConfigurationError(
                f"{path}: is a link to {path.resolve()}, outside of the run folder, which would be written to; put the"
                " file itself in its place"
            )


class HeldLock(Lock):
    """Placeholder for a lock that another process of the same job holds."""

    def __init__(self) -> None:
        self._descriptor = -1


def describe_environment(device: str, threads: int, world_size: int, data_checksum: str) -> JsonObject:
    """Return the environment of a run: versions, commit, device, threads, data."""
    packages = ("gearshift", "torch", "torchvision", "hydra-core", "omegaconf", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "git": describe_repository(),
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
        "world_size": world_size,
        "data_sha256": data_checksum,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_result(folder: Path) -> JsonObject | None:
    """Read `result.json`; None if the run has not ended. Raises DataError if the file is damaged."""
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        return read_json(path)
    except DataError as error:
        raise DataError(f"{error}; if you delete it, the run counts as unfinished") from error


def write_result(folder: Path, result: JsonObject) -> None:
    """Write `result.json`. Raises DiskError."""
    write_json(folder / RESULT, result)
