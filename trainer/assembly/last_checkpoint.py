"""Finds the last checkpoint of a run and makes sure that it is the run's own."""

import logging
from contextlib import suppress
from pathlib import Path

from trainer.base.config import Config
from trainer.base.errors import DataError
from trainer.base.stateful import State
from trainer.storage import checkpoint, run_folder
from trainer.storage.files import disk_errors
from trainer.storage.identity import (
    RECORD,
    Identity,
    check_configuration,
    check_run,
    identity_of,
    read_record,
    repeat,
    write_record,
)
from trainer.storage.records import write_json
from trainer.training.run import Run
from trainer.training.state import check_content

log = logging.getLogger(__name__)


def find_last(folder: Path) -> tuple[Path, State] | None:
    """Read the last checkpoint of a run; None if it has not written one. Raises DataError if none can be read."""
    last = folder / run_folder.CHECKPOINTS / "last.pt"
    found = checkpoint.find_newest(last, lambda state: True)
    if found is None and (reason := sign_of_checkpoints(folder)) is not None:
        found = checkpoint.complete_left_over(last)
        if found is None:
            raise DataError(
                f"{last} and the one before it are missing, though {reason}; to start it again: {repeat(folder)}"
            )
    if found is not None:
        check_content(found[1], found[0], is_last=True)
    return found


def promise(folder: Path, identity: Identity) -> None:
    """Record durably, before the first checkpoint gets its name, that the run has checkpoints. Raises DiskError.

    In two files, so that a run does not start over if one of them is deleted together with the checkpoints.
    """
    with suppress(DataError):  # a damaged file is reported when the run is resumed
        if (environment := run_folder.read_environment(folder)) is not None:
            write_json(folder / run_folder.ENVIRONMENT, environment | {run_folder.HAS_CHECKPOINTS: True})
    write_record(folder, identity)


def sign_of_checkpoints(folder: Path) -> str | None:
    """Return what shows that the run has had checkpoints; None if it has not come that far.

    Before the first checkpoint, `environment.json` says that there is none. If that file is missing, too, anything that
    a run has written counts.
    """
    best, environment = folder / run_folder.CHECKPOINTS / "best.pt", None
    if (folder / RECORD).exists():
        return f"{RECORD} says that the run has had checkpoints"
    if checkpoint.previous(best).exists():  # written after the first `last.pt`
        return f"there is a {checkpoint.previous(best).name}"
    with suppress(DataError):
        environment = run_folder.read_environment(folder)
    if environment is not None:
        is_marked = environment.get(run_folder.HAS_CHECKPOINTS) is True
        return f"{run_folder.ENVIRONMENT} says that the run has had checkpoints" if is_marked else None
    written = (best, folder / run_folder.METRICS, folder / run_folder.CURVES)
    name = next((path.name for path in written if path.exists() and path.stat().st_size), None)
    return None if name is None else f"there is a {name}, and no {run_folder.ENVIRONMENT} that says how far it came"


def own_identity(run: Run, folder: Path, path: Path, state: State) -> Identity:
    """Return the identity in a checkpoint. Raises DataError if it is not that of this folder and configuration."""
    identity, record = identity_of(state, path), None
    try:
        record = read_record(folder)
    except DataError as error:
        log.warning("%s; it is written again", error)
    check_run(folder, path, identity, record)
    check_configuration(folder, run.blueprint.config, identity)
    if record != identity:
        write_record(folder, identity)
    return identity


def keep_matching_best(run: Run, path: Path) -> None:
    """Make `best.pt` the one that the restored state refers to: a kill may have left a later one."""
    if run.progress.best is None:
        return
    wanted, folder = run.progress.best.step, path.parents[1]

    def accept(state: State) -> bool:
        check_content(state, path, is_last=False)
        check_run(folder, path, identity_of(state, path), run.identity)
        return bool(state["step"] == wanted)

    found = checkpoint.find_newest(path, accept)
    if found is None:
        raise DataError(f"{path}: the best weights of step {wanted} are lost; to start the run again: {repeat(folder)}")
    put_in_place(found[0], path)


def put_in_place(found: Path, path: Path) -> None:
    """Give a checkpoint the name of the newest, so that a damaged one does not become the previous one."""
    if found != path:
        with disk_errors(path):
            found.replace(path)


def own_best(folder: Path, config: Config) -> State:
    """Read the best weights of a run. Raises DataError if they are missing, damaged or of another run."""
    return own_weights(folder / run_folder.CHECKPOINTS / "best.pt", config)


def own_weights(path: Path, config: Config) -> State:
    """Read weights of the run in whose folder `path` is, as `own_best` does."""
    state, record, folder = checkpoint.load(path), None, path.parents[1]
    check_content(state, path, is_last=False)
    with suppress(DataError):  # a resumed run reports a damaged record
        record = read_record(folder)
    if state["run"] is not None:
        check_run(folder, path, identity_of(state, path), record)
        check_configuration(folder, config, identity_of(state, path))
    return state
