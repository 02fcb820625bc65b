"""Atomic writes (temporary name, fsync, rename, fsync of the folder), and files sealed with a checksum."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.base.config import Json
from trainer.base.errors import DataError, DiskError

_TRAILER = b"gearshift-sha256"


def write_atomic(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write a file atomically: even after a crash, `path` has either its old content or all of `content`.

    With `keep`, the old file stays under that name. Raises DiskError if the disk is full or the file cannot be
    written, and leaves no temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
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
    reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
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


def write_json(path: Path, value: Json) -> None:
    """Write indented JSON, with keys in the given order."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def seal(content: bytes) -> bytes:
    """Return `content` followed by its SHA-256; zip readers, such as `torch.load`, ignore the trailer."""
    return content + _TRAILER + hashlib.sha256(content).digest()


def unseal(path: Path) -> bytes:
    """Read a sealed file. Raises DataError if its checksum does not match."""
    content = path.read_bytes()
    tail = len(_TRAILER) + hashlib.sha256().digest_size
    body, trailer = content[:-tail], content[-tail:]
    if trailer != _TRAILER + hashlib.sha256(body).digest():
        raise DataError(f"{as_typed(path)} is damaged: its checksum does not match")
    return body
