"""Checkpoints: `last.pt` to resume from, `best.pt` with the weights to use; each is kept until the next one is safe.

`snapshot-STEP.pt` holds the weights at the end of a cycle of the schedule, if they are asked for.

A checkpoint is data: plain containers and tensors, read with `weights_only=True`, followed by their SHA-256.
"""

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from trainer.base.errors import DataError, OutOfMemory, is_out_of_memory
from trainer.base.snapshot import num_bytes, snapshot
from trainer.base.stateful import State
from trainer.storage.files import disk_errors, unseal, write_atomic
from trainer.storage.identity import repeat

log = logging.getLogger(__name__)
_LEAST_SECONDS = 1.0  # between two checkpoints
_LARGE = 16 << 20  # bytes from which there is no second snapshot in memory while one is written


def previous(path: Path) -> Path:
    """Return the path of the checkpoint before the one at `path`."""
    return path.with_suffix(".previous.pt")


def snapshot_path(folder: Path, step: int) -> Path:
    """Return the path of the weights that are kept of a step, in the folder of checkpoints."""
    return folder / f"snapshot-{step}.pt"


def save(path: Path, state: State, keep_previous: bool = False, ready: Callable[[], None] | None = None) -> None:
    """Write a checkpoint. The file at `path` becomes the previous one; with `keep_previous`, it is replaced instead.

    `ready` is called when the new one is on disk, before it gets its name. Raises DiskError or OutOfMemory.
    """
    keep = None if keep_previous else previous(path)
    with out_of_memory_errors(path):
        write_atomic(path, lambda file: torch.save(dict(state), file), keep, ready=ready)


@contextmanager
def out_of_memory_errors(path: Path) -> Iterator[None]:
    """Convert a lack of memory, which torch may report as a failed write, into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        if not is_out_of_memory(error) and not is_out_of_memory(first):
            raise
        raise OutOfMemory(f"out of memory while {path} was written; the checkpoint before it is kept") from error


def load(path: Path) -> State:
    """Read a checkpoint onto the CPU. Raises DataError if it is missing, damaged or contains more than data."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    whole = unseal(path).obj  # with its trailer, which torch ignores: BytesIO does not copy bytes, only a part of them
    assert isinstance(whole, bytes)
    try:
        state: State = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    except Exception as error:  # invalid archives make torch raise almost anything
        if is_out_of_memory(error):
            raise
        raise DataError(f"{path} is not a checkpoint: it must be an archive of tensors and plain values") from error
    if not isinstance(state, dict):
        raise DataError(f"{path} is not a checkpoint: it holds {type(state).__name__}, not a mapping")
    return state


def load_newest(path: Path) -> State | None:
    """Read the checkpoint at `path`, or the previous one if it is missing or damaged; None if there is neither.

    Raises DataError if all that exist are damaged.
    """
    found = find_newest(path, lambda state: True)
    return None if found is None else found[1]


def find_newest(path: Path, accept: Callable[[State], bool]) -> tuple[Path, State] | None:
    """Like `load_newest`, but consider only states that `accept` approves, and return the path, too.

    Logs a warning if the newest one is missing or damaged.
    """
    damaged: list[str] = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            if candidate == path and previous(path).exists():
                log.warning("%s is missing; falling back to the previous one", path)
            continue
        try:
            state = load(candidate)
        except DataError as error:
            damaged.append(str(error))
            if candidate == path and previous(path).exists():
                log.warning("%s; falling back to the previous one", error)
            continue
        if accept(state):
            return candidate, state
    if damaged:
        raise DataError(
            f"{'; '.join(damaged)}; no checkpoint is left to continue from; to start the run again: "
            f"{repeat(path.parents[1])}"
        )
    return None


def complete_left_over(path: Path) -> tuple[Path, State] | None:
    """Read a checkpoint that was complete on disk when the process died, but had not got its name yet."""
    for temporary in sorted(path.parent.glob(f".{path.name}.*.tmp")):
        with suppress(DataError):
            return temporary, load(temporary)
    return None


class CheckpointWriter:
    """Writes checkpoints in a thread, from snapshots, while training continues.

    Writes at most one per second and drops the others, and of large ones those due while one is written; after a kill,
    at most a second of training (or the time that writing takes) has to be repeated, with the same result. `best.pt` is
    written before the `last.pt` that refers to it. `sync` is called before each write, because logs must be on disk
    before a checkpoint counts them. `keep_previous`: the existing `last.pt` was saved on a signal and must not become
    the previous checkpoint. `promise` is called when the first `last.pt` is on disk, before it gets its name; None if
    that was done in an earlier session.

    The states are collected by all ranks, so `decide` broadcasts the main rank's decision when to do so; only that rank
    keeps and writes them.
    """

    def __init__(
        self,
        folder: Path,
        sync: Callable[[], None],
        keep_previous: bool = False,
        decide: Callable[[bool], bool] = lambda due: due,
        is_main: bool = True,
        promise: Callable[[], None] | None = None,
    ) -> None:
        self.last, self.best = folder / "last.pt", folder / "best.pt"
        self._decide, self._is_main = decide, is_main
        if is_main:
            with disk_errors(folder):
                folder.mkdir(exist_ok=True)
                for left_over in folder.glob(".*.tmp"):
                    left_over.unlink()
        self._sync, self._keep_previous, self._promise = sync, keep_previous, promise
        self._next, self._bytes = 0.0, 0
        self._new_best: State | None = None
        self._waiting: dict[Path, State] = {}
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(
        self, last: Callable[[], State], best: Callable[[State | None], State] | None, at_once: bool = False
    ) -> None:
        """Take snapshots of the results of `last` and, after an improvement, `best`, and queue them for writing.

        `best` is called with the snapshot of `last`, or with None if none is taken now. `at_once`: take one even if
        less than a second has passed since the last one, or if a large one is still being written. Raises the error of
        an earlier write (DiskError).
        """
        now = time.monotonic()
        has_room = self._thread is None or self._bytes < _LARGE
        is_due = self._decide((now >= self._next and has_room) or at_once)
        if best is not None:
            self._new_best = None  # free its memory first
        state = self._kept(last()) if is_due else None
        if best is not None:
            found = self._kept(best(state))
            self._new_best = found if self._is_main else None
        if state is None or not self._is_main:
            return
        self._next, self._bytes = now + _LEAST_SECONDS, num_bytes(state)
        waiting = {self.last: state}
        if self._new_best is not None:
            waiting[self.best], self._new_best = self._new_best, None
        with self._changed:
            self._raise_failure()
            self._waiting |= waiting
            self._start()

    def _kept(self, state: State) -> State:
        """Return a snapshot on the main rank, and nothing on others."""
        copied: State = snapshot(state) if self._is_main else {}
        return copied

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()

    def keep(self, step: int, weights: State) -> None:
        """Write weights to a file of their own, before any `last.pt` that counts them. Raises DiskError."""
        self.finish()  # two at a time would need twice the memory
        if self._is_main:
            save(snapshot_path(self.last.parent, step), weights, keep_previous=True)

    def wait(self) -> None:
        """Wait until what has been queued is on disk or has failed."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def finish(self) -> None:
        """Wait until everything is on disk. Raises DiskError if writing fails."""
        with self._changed:
            if self._new_best is not None:  # of a run that failed before it was queued
                self._waiting[self.best], self._new_best = self._new_best, None
                self._start()
        self.wait()
        with self._changed:
            self._raise_failure()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _work(self) -> None:
        while True:
            with self._changed:
                pair, self._waiting = self._waiting, {}
                if not pair:
                    self._thread = None
                    return
            try:
                self._sync()
                if self.best in pair:
                    save(self.best, pair[self.best])
                if self.last in pair:
                    if self._promise is None:
                        save(self.last, pair[self.last], self._keep_previous)
                    else:
                        save(self.last, pair[self.last], self._keep_previous, self._promise)
                    self._keep_previous, self._promise = False, None
            except Exception as error:
                with self._changed:
                    self._failure, self._thread = error, None
                return
