"""Where photographs are kept between file and batch: decoded, encoded in memory, or in their files."""

import hashlib
import itertools
import mmap
import os
import stat
import tempfile
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.photographs.decoding import BadPhotograph, Pixels, decode

CHANGED = "has changed since its checksum was taken"
_MOST_BYTES = 10**9  # per file; no photograph is larger


Ticket = Any
"""What a store tells its own reader of a photograph: small, and can be sent to a worker."""


class Reader(Protocol):
    """Turns a ticket into pixels. Can be sent to a worker process."""

    def __call__(self, ticket: Ticket) -> Pixels:
        """(height, width, 3) uint8. Raises BadPhotograph."""


class Store(Protocol):
    """Photographs by number. `layout` names where they are kept, `nbytes` is their size in memory."""

    layout: str
    nbytes: int

    @property
    def reader(self) -> Reader: ...

    def ticket(self, number: int) -> Ticket:
        """What the reader needs to find one photograph; small."""


class Decoded:
    """All pixels in one flat buffer, in memory or mapped from a file."""

    IN_MEMORY = "decoded in memory"

    def __init__(self, pixels: NDArray[np.uint8], sizes: list[tuple[int, int]], layout: str) -> None:
        self.layout, self.nbytes = layout, pixels.nbytes
        self._pixels, self._sizes = pixels, sizes
        self._offsets = offsets([3 * height * width for height, width in sizes])

    def ticket(self, number: int) -> int:
        return number

    def reader(self, ticket: int) -> Pixels:
        start, stop = self._offsets[ticket], self._offsets[ticket + 1]
        return self._pixels[start:stop].reshape(*self._sizes[ticket], 3)


class Encoded:
    """The bytes of all files in one flat buffer, shared with worker processes."""

    layout = "encoded in memory"

    def __init__(self, buffer: "SharedBytes", num_bytes: list[int], max_side: int | None) -> None:
        self.nbytes = buffer.nbytes
        self._offsets = offsets(num_bytes)
        self.reader = EncodedReader(buffer, max_side)

    def ticket(self, number: int) -> tuple[int, int]:
        return self._offsets[number], self._offsets[number + 1]


class InFiles:
    """Keeps nothing: each photograph is read from its file, checked against its checksum and decoded."""

    layout = "in files"
    nbytes = 0

    def __init__(self, root: Path, names: list[str], sha256s: list[str], max_side: int | None) -> None:
        self._names, self._sha256s = names, sha256s
        self.reader = FileReader(root, max_side)

    def ticket(self, number: int) -> tuple[str, str]:
        return self._names[number], self._sha256s[number]


class FileReader:
    """Reads and decodes a file; a ticket is its name and sha256."""

    def __init__(self, root: Path, max_side: int | None) -> None:
        self.root, self.max_side = root, max_side

    def __call__(self, ticket: tuple[str, str]) -> Pixels:
        name, sha256 = ticket
        return decode(read_same(self.root / name, sha256), self.max_side)


class EncodedReader:
    """Decodes a range of a buffer; a ticket is its start and stop."""

    def __init__(self, buffer: "SharedBytes", max_side: int | None) -> None:
        self._buffer, self.max_side = buffer, max_side

    def __call__(self, ticket: tuple[int, int]) -> Pixels:
        return decode(self._buffer.array[ticket[0] : ticket[1]].tobytes(), self.max_side)


class SharedBytes:
    """An anonymous buffer shared with worker processes, freed when the last process that maps it exits.

    Raises OSError if there is not enough space, which is allocated at once: failing on the first write would kill the
    process.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._descriptor = _nameless_file(max(nbytes, 1))
        self.array = self._map()

    def _map(self) -> NDArray[np.uint8]:
        return np.frombuffer(mmap.mmap(self._descriptor, max(self.nbytes, 1)), dtype=np.uint8)[: self.nbytes]

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"nbytes": self.nbytes, "descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.nbytes = state["nbytes"]
        self._descriptor = state["descriptor"].detach()
        self.array = self._map()


def _nameless_file(nbytes: int) -> int:
    """Descriptor of an anonymous in-memory file, or of an unlinked temporary file if the system has none."""
    if hasattr(os, "memfd_create"):  # not limited by the size of /dev/shm, which is small in containers
        descriptor = os.memfd_create("photographs", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, nbytes)
        else:
            os.ftruncate(descriptor, nbytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: Path) -> bytes:
    """The content of a photograph's file. Raises BadPhotograph."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would block, a device might never end
            raise BadPhotograph("is not a regular file")
        if found.st_size > _MOST_BYTES:
            raise BadPhotograph(f"has {found.st_size:,} bytes, more than {_MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise BadPhotograph(f"cannot be read: {(error.strerror or str(error)).lower()}") from error


def read_same(path: Path, sha256: str) -> bytes:
    """The content of a file that was read before. Raises BadPhotograph, CHANGED, if it has changed or is missing."""
    try:
        content = read_file(path)
    except BadPhotograph as error:
        raise BadPhotograph(f"{CHANGED}: it {error}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadPhotograph(CHANGED)
    return content


def offsets(lengths: list[int]) -> list[int]:
    """Start of each item in a flat buffer, and the end of the last one."""
    return [0, *itertools.accumulate(lengths)]
