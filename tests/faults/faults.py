"""Faults inside a run: the process ends or the power fails at a chosen change of a file, or the disk is full."""

import errno
import importlib
import io
import itertools
import json
import os
import pathlib
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXIT_CODE = 99


def install(fault: dict[str, Any]) -> None:
    """Install the fault that a job describes in this process."""
    if fault.get("every_checkpoint"):
        _write_every_checkpoint()
    if "slow_disk" in fault:
        _slow_down(fault["slow_disk"])
    if "folder" in fault:
        at = None if fault.get("at") is None else (fault["at"][0], fault["at"][1])
        CrashPoints(Path(fault["folder"]), at, fault.get("how", "before"), fault.get("log")).install()
    if "signal" in fault:
        _send_during(fault["signal"], fault["during"], fault.get("call", 1), fault.get("as_import", False))
    if "bytes_left" in fault:
        FullDisk(fault["bytes_left"]).install()


def _write_every_checkpoint() -> None:
    """By default, a run of half a second writes two or three checkpoints."""
    import trainer.storage.checkpoint
    from trainer.storage.checkpoint import CheckpointWriter

    put = CheckpointWriter.put

    def put_and_wait(writer: CheckpointWriter, *arguments: Any, **options: Any) -> None:
        put(writer, *arguments, **options)
        writer.finish()

    trainer.storage.checkpoint._LEAST_SECONDS = 0.0
    CheckpointWriter.put = put_and_wait


def _slow_down(seconds: float) -> None:
    """Make every checkpoint take `seconds`."""
    import trainer.storage.checkpoint

    save = trainer.storage.checkpoint.save

    def slow_save(*arguments: Any) -> None:
        time.sleep(seconds)
        save(*arguments)

    _put_in_place_of(save, slow_save)


def _send_during(signum: int, place: str, call: int, as_import: bool) -> None:
    """Send a signal to this process in the `call`-th call of a function, given by its dotted name.

    With `as_import`, its exception is converted as by C code during the import of an extension.
    """
    module_name, _, name = place.rpartition(".")
    module = importlib.import_module(module_name)
    function, calls = getattr(module, name), itertools.count(1)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            try:
                os.kill(os.getpid(), signum)
            except BaseException as error:
                if not as_import:
                    raise
                raise ImportError("initialization failed") from error
        return function(*arguments, **options)

    if function.__module__ == module_name:
        _put_in_place_of(function, interrupted)
    else:  # only where this module calls it
        setattr(module, name, interrupted)


def _put_in_place_of(function: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Replace a function under every name by which our modules, which are already loaded, have imported it."""
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "trainer"]:
        for name in [name for name, value in vars(module).items() if value is function]:
            setattr(module, name, other)


class CrashPoints:
    """Observes changes to the files of a folder and ends the process at one of them.

    `at`: a kind of change, such as "replace last.pt", and its occurrence (0, 1, ...); the order of different kinds
    varies between runs because of threads. `how`: `before` ends the process before the change, like SIGKILL; `torn`
    after half of a write; `power` keeps only what was synced (`cut_power` truncates the files after the process has
    ended, because its other threads may continue to write until then). Changes are recorded in `log`.
    """

    def __init__(self, folder: Path, at: tuple[str, int] | None, how: str, log: str | None) -> None:
        self.folder, self.at, self.how = folder.resolve(), at, how
        self.log = None if log is None else Path(log)
        self.count: Counter[str] = Counter()
        self.one_at_a_time = threading.Lock()
        self.on_disk = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}

    def install(self) -> None:
        for name in ("replace", "rename", "truncate", "unlink", "remove", "mkdir", "link"):
            setattr(os, name, self._watched(name, getattr(os, name)))
        fsync = os.fsync
        os.fsync = lambda descriptor: self._fsync(fsync, descriptor)

        from tensorboard.summary.writer.record_writer import RecordWriter

        from trainer.reporting.metrics_file import MetricsFile

        opened, written, event = MetricsFile.__init__, MetricsFile.write, RecordWriter.write

        def open_metrics(metrics: Any, path: Path, offset: int = 0) -> None:
            self._point("open", str(path), None)
            opened(metrics, path, offset)
            self.on_disk[path.stat().st_ino] = offset

        def write_metrics(metrics: Any, record: Any) -> None:
            self._point("write", str(metrics._path), lambda: metrics._file.write(b'{"step": 3, "tr'))
            written(metrics, record)

        def write_event(writer: Any, data: bytes) -> None:
            name = writer._writer.filename.decode()
            self._point("write", name, lambda: writer._writer.write(data[: len(data) // 2]))
            event(writer, data)

        MetricsFile.__init__, MetricsFile.write, RecordWriter.write = open_metrics, write_metrics, write_event

    def _watched(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *others: Any, **options: Any) -> Any:
            self._point(name, str(path), None)
            return operation(path, *others, **options)

        return watched

    def _fsync(self, fsync: Callable[[int], None], descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        status = os.fstat(descriptor)

        def tear() -> None:
            # keep half of what was written since the last fsync
            start = self.on_disk.get(status.st_ino, 0)
            os.ftruncate(descriptor, start + (status.st_size - start) // 2)

        self._point("fsync", name, tear if name.endswith(".tmp") else None)
        fsync(descriptor)
        self.on_disk[status.st_ino] = status.st_size

    def _point(self, operation: str, name: str, tear: Callable[[], Any] | None) -> None:
        """End the process if this change is the chosen one."""
        path = Path(name).absolute()
        if not path.is_relative_to(self.folder):
            return
        change = f"{operation} {'.' if path == self.folder else re.sub(r'[0-9]+', '#', path.name)}"
        with self.one_at_a_time:  # still held when the process ends, so that no other thread reaches its next change
            place = (change, self.count[change])
            self.count[change] += 1
            if self.log is not None:
                with self.log.open("a") as log:
                    print(change, file=log)
            if place != self.at:
                return
            if self.how == "torn" and tear is not None:
                tear()
            if self.how == "power":
                assert self.log is not None
                self.log.with_suffix(".disk").write_text(json.dumps(list(self.on_disk.items())))
            os._exit(EXIT_CODE)


def cut_power(folder: Path, log: Path) -> None:
    """Truncate every file to what was on the disk when the process ended, which it recorded next to its log."""
    on_disk = dict(json.loads(log.with_suffix(".disk").read_text()))
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        status = path.stat()
        os.truncate(path, min(on_disk.get(status.st_ino, 0), status.st_size))


class FullDisk:
    """A disk with `bytes_left`: a write that does not fit is done in part; later ones raise ENOSPC."""

    def __init__(self, bytes_left: int) -> None:
        self.bytes_left = bytes_left
        self._taking = threading.Lock()  # checkpoints and events are written by their own threads

    def install(self) -> None:
        disk, path_open = self, pathlib.Path.open

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                return super().write(memoryview(content).cast("B")[: disk.take(memoryview(content).nbytes)])

        def open_path(path: Path, mode: str = "r", buffering: int = -1, **options: Any) -> Any:
            if mode not in ("wb", "ab"):
                return path_open(path, mode, buffering, **options)
            file = File(path, mode)
            return file if buffering == 0 else io.BufferedWriter(file)

        from tensorboard.summary.writer.record_writer import RecordWriter

        event = RecordWriter.write

        def write_event(writer: Any, data: bytes) -> None:
            if self.take(len(data)) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            event(writer, data)

        pathlib.Path.open, RecordWriter.write = open_path, write_event

    def take(self, number: int) -> int:
        """Number of bytes of a write that still fit. Raises OSError if there is no space."""
        with self._taking:
            if number and not self.bytes_left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken = min(number, self.bytes_left)
            self.bytes_left -= taken
        return taken
