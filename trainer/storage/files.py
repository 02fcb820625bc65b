"""Atomic writes (temporary name, fsync, rename, fsync of the folder), and files sealed with a checksum."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from trainer.base.errors import DataError, DiskError

_TRAILER = b"gearshift-sha256"


def write_atomic(
    path: Path,
    content: bytes | Callable[[BinaryIO], None],
    keep: Path | None = None,
    *,
    ready: Callable[[], None] | None = None,
) -> None:
    """Write a file atomically: even after a crash, `path` has either its old content or all of `content`.

    `content` may be a function that writes it to a file; the file is then sealed. With `keep`, the old file stays under
    that name. `ready` is called when all of it is on disk under the temporary name, before the rename. Raises DiskError
    if the disk is full or the file cannot be written, and leaves no temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            with temporary.open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    sealing = Sealing(file)
                    content(cast(BinaryIO, sealing))  # of which torch calls these methods only
                    sealing.end()
                file.flush()
                os.fsync(file.fileno())
            if ready is not None:
                sync_folder(path.parent)
                ready()
            if keep is not None and path.exists():
                _keep_as(path, keep)
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _keep_as(path: Path, keep: Path) -> None:
    """Hard-link a file to a second name, so that the first one always exists; without hard links, rename it."""
    second = keep.with_name(f".{keep.name}.{os.getpid()}.tmp")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        path.replace(keep)
        return
    second.replace(keep)
    second.unlink(missing_ok=True)  # rename does nothing if both names are the same file, as after a kill here


def as_typed(path: Path) -> Path:
    """Return a path relative to the current folder if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def disk_error(path: Path, error: OSError) -> DiskError:
    """Return the DiskError for a file that cannot be written."""
    reasons = {errno.ENOSPC: "the disk is full", errno.EMFILE: "too many open files; raise the limit (ulimit -n)"}
    reason = reasons.get(error.errno or 0) or error.strerror or str(error)
    return DiskError(f"cannot write {as_typed(path)}: {reason}")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert an OSError from writing `path` into a DiskError."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    """Read a file. Raises DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def trailer_of(content: bytes | memoryview) -> bytes:
    """Return what follows `content` in a sealed file: its SHA-256. Zip readers, such as `torch.load`, ignore it."""
    return _TRAILER + hashlib.sha256(content).digest()


class Sealing:
    """A file to write to, which is sealed at the end.

    torch's writer of archives cannot be stopped by an exception, so that an error is kept and raised by `end`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._checksum = file, hashlib.sha256()
        self._error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self._error is None:
            try:
                self._file.write(data)
                self._checksum.update(data)
            except BaseException as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Does nothing: `write_atomic` flushes at the end."""

    def end(self) -> None:
        """Write the trailer. Raises the first error of `write`."""
        if self._error is not None:
            raise self._error
        self._file.write(_TRAILER + self._checksum.digest())


def seal(content: bytes) -> bytes:
    """Return `content` followed by its SHA-256."""
    return content + trailer_of(content)


def has_checksum(path: Path) -> bool:
    """Whether a file ends as a sealed one does, right or wrong. Raises DataError if it cannot be read."""
    tail = len(_TRAILER) + hashlib.sha256().digest_size
    try:
        with path.open("rb") as file:
            file.seek(-min(tail, path.stat().st_size), os.SEEK_END)
            return file.read(len(_TRAILER)) == _TRAILER
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def unseal(path: Path) -> memoryview:
    """Read a sealed file. Raises DataError if its checksum does not match."""
    content = memoryview(read_file(path))
    tail = len(_TRAILER) + hashlib.sha256().digest_size
    body, trailer = content[:-tail], content[-tail:]
    if trailer != trailer_of(body):
        raise DataError(f"{as_typed(path)} is damaged: its checksum does not match")
    return body
