"""The ledger of a study: which members there are, and how far each has come.

`ledger.json`, in the folder of the study, holds its own checksum and is replaced atomically. Several processes may read
and change it: each change is made under a lock on the folder, which ends with the process that holds it.
"""

import fcntl
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

from trainer.base.config import JsonObject
from trainer.base.errors import ConfigurationError, DataError
from trainer.storage.files import disk_errors
from trainer.storage.records import read_json, write_json
from trainer.storage.run_folder import LEDGER, quoted

State = Literal["waiting", "running", "done", "interrupted", "failed"]


@dataclass(frozen=True)
class Entry:
    """A member: a number that never changes, its name, overrides and needs, the hash of its configuration, its state.

    `status` is that of its `result.json`; `metrics` those of its best weights (and of the test split, if the study
    evaluates it), `monitor` the metric by which they were chosen. `error` says why it failed.
    """

    number: int
    name: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...]
    configuration: str
    state: State = "waiting"
    status: str | None = None
    exit_code: int | None = None
    monitor: str | None = None
    metrics: Mapping[str, float] | None = None
    error: str | None = None


class Ledger:
    """The ledger in a folder, which is created with it. `words` are the overrides typed for the study."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LEDGER

    def open(self, study: str, words: Sequence[str], wanted: Sequence[Entry]) -> None:
        """Add the members that are not known yet.

        Raises ConfigurationError if a member is known with another configuration; DataError if the file is damaged.
        """
        with self._locked():
            known = {entry.name: entry for entry in self._read()}
            for entry in wanted:
                before = known.get(entry.name)
                if before is not None and before.configuration != entry.configuration:
                    raise ConfigurationError(self.other_definition(entry.name))
            entries = list(known.values())
            for entry in wanted:
                if entry.name not in known:
                    entries.append(replace(entry, number=len(entries)))
            self._write(entries, {"study": study, "words": list(words)})

    def other_definition(self, name: str, differences: str = "") -> str:
        """Return the line for a member whose configuration is not the one that the study began with."""
        shown = f" ({differences})" if differences else ""
        return (
            f"{self.folder / name}: was begun with another configuration{shown}; give the study a name of its own,"
            f" name={self.folder.name}-2, or remove {quoted(self.folder)}"
        )

    def entries(self) -> dict[str, Entry]:
        """Return all members by name, in the order of their numbers."""
        with self.unchanging() as entries:
            return entries

    @contextmanager
    def unchanging(self) -> Iterator[dict[str, Entry]]:
        """Context manager in which no process changes an entry; gives those of `entries`."""
        with self._locked():
            yield {entry.name: entry for entry in self._read()}

    def update(self, name: str, **changes: object) -> None:
        """Change an entry. Raises DiskError."""
        with self._locked():
            self._change(name, changes)

    def stopped(self, name: str, patience: float = math.inf) -> None:
        """Note that the process that ran a member has ended before the member. Raises DiskError, or BlockingIOError if
        others hold the ledger for more than `patience` seconds, as one who was stopped while it changed it does."""
        with self._locked(patience):
            if any(entry.name == name and entry.state == "running" for entry in self._read()):
                self._change(name, {"state": "interrupted"})

    def _change(self, name: str, changes: Mapping[str, object]) -> None:
        entries = [replace(e, **changes) if e.name == name else e for e in self._read()]  # type: ignore[arg-type]
        self._write(entries, {})

    def words(self) -> list[str]:
        """Return the overrides typed for the study."""
        found = self._content().get("words")
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise DataError(f"{self.path} is damaged: it does not say what was typed")
        return found

    @contextmanager
    def _locked(self, patience: float = math.inf) -> Iterator[None]:
        """Hold the lock of the folder; waits for others, who hold it for one change."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            _lock(descriptor, patience)
            yield
        finally:
            os.close(descriptor)

    def _content(self) -> JsonObject:
        return read_json(self.path) if self.path.exists() else {}

    def _read(self) -> list[Entry]:
        try:
            found = [_entry(item) for item in self._content().get("members", [])]
        except (TypeError, KeyError, ValueError, AssertionError) as error:
            raise DataError(f"{self.path} is damaged: a member has other keys or values than it must have") from error
        if [entry.number for entry in found] != list(range(len(found))):
            raise DataError(f"{self.path} is damaged: its members are not numbered from 0 on")
        return found

    def _write(self, entries: Sequence[Entry], head: JsonObject) -> None:
        before = self._content()
        members = [
            asdict(entry) | {"overrides": list(entry.overrides), "needs": list(entry.needs)} for entry in entries
        ]
        write_json(self.path, {**before, **head, "members": members})


def _lock(descriptor: int, patience: float) -> None:
    if patience == math.inf:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _entry(item: JsonObject) -> Entry:
    assert set(item) == {field.name for field in fields(Entry)} and item["state"] in get_args(State)
    metrics = item["metrics"]
    return Entry(**item | {
        "overrides": tuple(item["overrides"]), "needs": tuple(item["needs"]),
        "metrics": metrics and {name: float(value) for name, value in metrics.items()},
    })  # fmt: skip
