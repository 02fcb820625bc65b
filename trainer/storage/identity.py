"""Which run a file belongs to: checkpoints contain the identity of their run, and `run.json` repeats it."""

import secrets
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trainer.base.config import Config
from trainer.base.errors import DataError
from trainer.base.stateful import State
from trainer.configuration.recorded import configuration_hash
from trainer.storage.records import read_json, write_json

RECORD = "run.json"


@dataclass(frozen=True)
class Identity:
    """A run, told apart from all others: `id` is random, `configuration` and `data` are checksums.

    `threads` is the number of CPU threads of the first start, on which the last bits depend.
    """

    id: str
    configuration: str
    data: str
    threads: int


def new_identity(config: Config, data: str, threads: int) -> Identity:
    """Return the identity of a run that begins now."""
    return Identity(secrets.token_hex(8), configuration_hash(config), data, threads)


def identity_of(state: State, path: Path) -> Identity:
    """Return the identity in a checkpoint. Raises DataError if there is none."""
    found = state.get("run")
    if not isinstance(found, Mapping) or set(found) != {field.name for field in fields(Identity)}:
        raise DataError(f"{path} does not say which run it belongs to")
    return Identity(**found)


def write_record(folder: Path, identity: Identity) -> None:
    """Record durably that the run has checkpoints; written before the first one gets its name. Raises DiskError."""
    write_json(folder / RECORD, asdict(identity))


def read_record(folder: Path) -> Identity | None:
    """Return the recorded identity; None if the run has no checkpoint yet. Raises DataError if it is damaged."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return Identity(**read_json(path))
    except TypeError as error:
        raise DataError(f"{path} is damaged: a key is missing or unknown") from error


def check_configuration(folder: Path, config: Config, identity: Identity) -> None:
    """Raise DataError if `config.yaml` is not the configuration with which the run began."""
    if configuration_hash(config) != identity.configuration:
        raise DataError(
            f"{folder / 'config.yaml'} is not the configuration that the run began with, or that of another run: put "
            f"the run's own back; for another configuration start a new run: {repeat(folder)} KEY=VALUE"
        )


def check_run(folder: Path, path: Path, found: Identity, own: Identity | None) -> None:
    """Raise DataError if the checkpoint at `path` is not of this run; `own` is None if that is not known."""
    if own is not None and found.id != own.id:
        raise DataError(
            f"{path} is a checkpoint of another run: put the run's own back, or start the run again: {repeat(folder)}"
        )


def repeat(folder: Path) -> str:
    """Return the command line that starts the run again in a new folder."""
    return f"train repeat {shlex.quote(str(folder))}"
