"""Faults inside a run: the process ends, or the power does, at the k-th change of the disk; or the disk is full."""

import errno
import io
import os
import pathlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXIT_CODE = 99


def install(fault: dict[str, Any]) -> None:
    """Prepare this process for the fault that a job describes."""
    if fault.get("every_checkpoint"):
        _write_every_checkpoint()
    if "folder" in fault:
        CrashPoints(Path(fault["folder"]), fault.get("at"), fault.get("how", "before"), fault.get("log")).install()
    if "bytes_left" in fault:
        FullDisk(fault["bytes_left"]).install()


def _write_every_checkpoint() -> None:
    """Without this a run that is over in half a second writes two or three."""
    import trainer.checkpoint
    from trainer.checkpoint import CheckpointWriter

    put = CheckpointWriter.put

    def put_and_wait(writer: CheckpointWriter, *arguments: Any, **options: Any) -> None:
        put(writer, *arguments, **options)
        writer.finish()

    trainer.checkpoint._LEAST_SECONDS = 0.0
    CheckpointWriter.put = put_and_wait


class CrashPoints:
    """Counts what changes the files of a folder and ends the process at the `at`-th of it.

    `before` and `after` the operation as SIGKILL would; `torn`: half of a write has been done; `power`: before
    it, and of every file only what an fsync has put on the disk is left. Operations are written to `log`.
    """

    def __init__(self, folder: Path, at: int | None, how: str, log: str | None) -> None:
        self.folder, self.at, self.how = str(folder.resolve()), at, how
        self.log = None if log is None else Path(log).open("w")
        self.count = 0
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
            ends = self._point(name, os.fspath(path) if not isinstance(path, int) else str(path), None)
            result = operation(path, *others, **options)
            if ends:
                os._exit(EXIT_CODE)
            return result

        return watched

    def _fsync(self, fsync: Callable[[int], None], descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        status = os.fstat(descriptor)

        def tear() -> None:
            # a part of what was written since the last fsync
            start = self.on_disk.get(status.st_ino, 0)
            os.ftruncate(descriptor, start + (status.st_size - start) // 2)

        is_new = ".tmp" in name
        ends = self._point("fsync", name, tear if is_new else None)
        fsync(descriptor)
        self.on_disk[status.st_ino] = status.st_size
        if ends:
            os._exit(EXIT_CODE)

    def _point(self, operation: str, path: str, tear: Callable[[], Any] | None) -> bool:
        """Ends here, or answers whether to end after the operation."""
        if not os.path.abspath(path).startswith(self.folder):  # noqa: PTH100
            return False
        number, self.count = self.count, self.count + 1
        if self.log is not None:
            print(operation, re.sub(r"\d+", "#", Path(path).name), file=self.log, flush=True)
        if number != self.at or self.how == "after":
            return number == self.at
        if self.how == "torn" and tear is not None:
            tear()
        if self.how == "power":
            self._cut_power()
        os._exit(EXIT_CODE)

    def _cut_power(self) -> None:
        for root, _, names in os.walk(self.folder):
            for name in names:
                descriptor = os.open(os.path.join(root, name), os.O_RDWR)  # noqa: PTH118
                status = os.fstat(descriptor)
                os.ftruncate(descriptor, min(self.on_disk.get(status.st_ino, 0), status.st_size))
                os.close(descriptor)


class FullDisk:
    """A disk with so many bytes left: a write that does not fit is done in part, later ones fail (ENOSPC)."""

    def __init__(self, bytes_left: int) -> None:
        self.bytes_left = bytes_left

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
        """How many bytes of a write still fit. Raises OSError when there is none."""
        if number and not self.bytes_left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(number, self.bytes_left)
        self.bytes_left -= taken
        return taken
