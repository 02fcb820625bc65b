"""Storage of photographs: in memory up to a limit, in a file of pixels, or not at all."""

import fcntl
import hashlib
import importlib.metadata
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.memory import as_bytes
from trainer.data.photographs.decoding import BadPhotograph, decode, stored_size
from trainer.data.photographs.frames import apply_frame, evaluation_frames
from trainer.data.photographs.inspection import Inspected, for_all, some_of
from trainer.data.photographs.storage import (
    CHANGED,
    Decoded,
    Encoded,
    InFiles,
    SharedBytes,
    Store,
    offsets,
    read_file,
    read_same,
)
from trainer.data.photographs.writing import whole_file

_FORMAT = 2
_SEAL = hashlib.sha256().digest_size
_KEY_LENGTH = 16
_MOST_NAMED = 5  # files named in a message
_MOST_TIMED = 32

logger = logging.getLogger(__name__)


class Source:
    """Files that passed inspection, and how their pixels are to be stored."""

    def __init__(
        self, root: Path, names: list[str], found: list[Inspected], max_side: int | None, threads: int
    ) -> None:
        self.root, self.names, self.found, self.max_side, self.threads = root, names, found, max_side, threads
        self.sha256s = [entry.sha256 for entry in found]
        self.sizes = [(entry.height, entry.width) for entry in found]
        self.num_bytes = [entry.num_bytes for entry in found]
        self.offsets = offsets([3 * height * width for height, width in self.sizes])

    @property
    def decoded_bytes(self) -> int:
        return self.offsets[-1]

    def decode_into(self, pixels: NDArray[np.uint8]) -> None:
        """Write the pixels of all photographs consecutively. Raises ValueError."""

        def decode_one(number: int) -> None:
            photograph = decode(self._content(number), self.max_side)
            pixels[self.offsets[number] : self.offsets[number + 1]] = photograph.reshape(-1)

        self._for_all(decode_one, "decoding photographs")

    def copy_into(self, buffer: NDArray[np.uint8]) -> None:
        """Write the bytes of all files consecutively. Raises ValueError."""
        where = offsets(self.num_bytes)

        def copy_one(number: int) -> None:
            content = self._content(number)
            decode(content, self.max_side)  # finds damaged files now instead of during an epoch
            buffer[where[number] : where[number + 1]] = np.frombuffer(content, dtype=np.uint8)

        self._for_all(copy_one, "reading photographs")

    def _content(self, number: int) -> bytes:
        return read_same(self.root / self.names[number], self.sha256s[number])

    def _for_all(self, work: Callable[[int], None], label: str) -> None:
        bad: dict[int, str] = {}

        def careful(number: int) -> None:
            try:
                work(number)
            except BadPhotograph as error:
                bad[number] = str(error)

        for_all(len(self.names), careful, self.threads, label)
        raise_bad(self.root, len(self.names), {self.names[number]: bad[number] for number in sorted(bad)})


def raise_bad(root: Path, count: int, bad: dict[str, str]) -> None:
    """Raise ValueError if any photographs cannot be used."""
    if bad:
        changed = all(reason.startswith(CHANGED) for reason in bad.values())
        advice = "data.on_bad_file=skip omits such files"
        if changed:
            advice = "restore them, or start a new run"
        raise ValueError(
            f"{len(bad):,} of {count:,} photographs in {root} cannot be used: {some_of(bad, _MOST_NAMED)}; {advice}"
        )


def in_files(source: Source) -> Store:
    return InFiles(source.root.absolute(), source.names, source.sha256s, source.max_side)


def in_memory(source: Source, limit: int) -> Store:
    """Keep the decoded pixels if they fit into `limit` bytes, else the encoded files if they fit, else nothing."""
    layout = choose_layout(source.decoded_bytes, sum(source.num_bytes), limit)
    if layout == Decoded.IN_MEMORY:
        pixels = np.empty(source.decoded_bytes, dtype=np.uint8)
        source.decode_into(pixels)
        return Decoded(pixels, source.sizes, layout)
    text = f"the decoded photographs take {as_bytes(source.decoded_bytes)}, the limit is {as_bytes(limit)}"
    if layout == Encoded.layout:
        try:
            buffer = SharedBytes(sum(source.num_bytes))
        except OSError as error:
            logger.warning("not enough memory for the encoded photographs (%s): reading them from disk", error)
            return in_files(source)
        logger.info("%s: keeping them encoded in memory (%s)", text, as_bytes(buffer.nbytes))
        source.copy_into(buffer.array)
        return Encoded(buffer, source.num_bytes, source.max_side)
    logger.info("%s, which the encoded ones exceed, too: reading them from disk", text)
    return in_files(source)


def estimate(root: Path, names: list[str], max_side: int | None) -> tuple[int, int]:
    """Total bytes of all photographs, decoded and encoded, estimated from at most 200 of them."""
    decoded = encoded = num_read = 0
    for name in names[:: max(1, len(names) // 200)]:
        try:
            content = read_file(root / name)
            height, width = stored_size(content, max_side)
        except BadPhotograph:
            continue
        decoded, encoded, num_read = decoded + 3 * height * width, encoded + len(content), num_read + 1
    return (decoded * len(names) // num_read, encoded * len(names) // num_read) if num_read else (0, 0)


def seconds_to_read(root: Path, names: list[str], max_side: int | None, size: int, short_side: int) -> float:
    """Seconds to read one photograph with one process; 0 if there is no readable one.

    The mean of at most 32 photographs, measured for about a second.
    """
    out = np.empty((3, size, size), dtype=np.uint8)
    seconds: list[float] = []
    for name in names[:: max(1, -(-len(names) // _MOST_TIMED))]:
        start = time.perf_counter()
        try:
            pixels = decode(read_file(root / name), max_side)
        except BadPhotograph:
            continue
        height_and_width = torch.tensor([pixels.shape[:2]])
        apply_frame(pixels, evaluation_frames(height_and_width, size, short_side)[0].tolist(), out)
        seconds.append(time.perf_counter() - start)
        if sum(seconds[1:]) > 1:
            break
    timed = seconds[1:] or seconds  # the first measurement includes loading the decoder
    return sum(timed) / max(1, len(timed))


def choose_layout(decoded_bytes: int, encoded_bytes: int, limit: int) -> str:
    if decoded_bytes <= limit:
        return Decoded.IN_MEMORY
    return Encoded.layout if encoded_bytes <= limit else InFiles.layout


def bytes_in_memory(decoded_bytes: int, encoded_bytes: int, limit: int) -> int:
    """Bytes of memory that the chosen layout takes."""
    taken = {Decoded.IN_MEMORY: decoded_bytes, Encoded.layout: encoded_bytes, InFiles.layout: 0}
    return taken[choose_layout(decoded_bytes, encoded_bytes, limit)]


def describe_files(root: Path, folder: Path) -> str:
    """Describe where a root's pixel files are, and the size of those that exist.

    They remain when the data set changes, because another run or machine may be using them.
    """
    sizes = _sizes(root, folder)
    existing = f"{len(sizes)} files, {as_bytes(sum(sizes))}" if sizes else "none yet"
    return f"{folder / _file_name(root)}-*.pixels ({existing})"


def _sizes(root: Path, folder: Path) -> list[int]:
    sizes = []
    for path in folder.glob(f"{_file_name(root)}-{'[0-9a-f]' * _KEY_LENGTH}.pixels"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sizes


def on_disk(source: Source, folder: Path) -> Store:
    """Keep decoded pixels in a file in `folder`, created unless a complete one exists; processes share it."""
    path = folder / f"{_file_name(source.root)}-{_key(source)}.pixels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(path.with_suffix(".lock"), flags, 0o666), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # several processes may verify it at once,
            whole = _is_whole(path, source.decoded_bytes)
            if not whole:
                fcntl.flock(lock, fcntl.LOCK_EX)  # but one creates it while the others wait
            if not (whole or _is_whole(path, source.decoded_bytes)):
                if path.exists():
                    logger.warning("%s is damaged: creating it again", path)
                older = _sizes(source.root, folder)
                logger.info(
                    "decoding %s photographs into %s (%s)%s", f"{len(source.names):,}", path,
                    as_bytes(source.decoded_bytes),
                    f"; older ones there: {len(older)}, {as_bytes(sum(older))}" if older else "",
                )  # fmt: skip
                try:
                    _make(path, source)
                except ValueError:  # waiting processes will find the same problem
                    path.with_suffix(".lock").unlink(missing_ok=True)
                    raise
    except OSError as error:
        logger.warning("cannot store the photographs in %s (%s): reading their files", folder, error.strerror)
        return in_files(source)
    return Decoded(_mapped(path)[: source.decoded_bytes], source.sizes, "decoded on disk")


def _make(path: Path, source: Source) -> None:
    for orphan in path.parent.glob(f".{path.name}.*"):  # left by a killed process: this one holds the lock
        orphan.unlink(missing_ok=True)
    with whole_file(path) as (descriptor, temporary):
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, source.decoded_bytes + _SEAL)  # fails here if the disk is full
        else:
            os.ftruncate(descriptor, source.decoded_bytes + _SEAL)
        whole = np.memmap(temporary, dtype=np.uint8, mode="r+")
        source.decode_into(whole[:-_SEAL])
        whole[-_SEAL:] = np.frombuffer(hashlib.sha256(whole[:-_SEAL].data).digest(), dtype=np.uint8)
        whole.flush()


def _is_whole(path: Path, num_bytes: int) -> bool:
    if not path.is_file():
        return False
    if path.stat().st_size == num_bytes + _SEAL:
        whole = _mapped(path)
        if hashlib.sha256(whole[:-_SEAL].data).digest() == whole[-_SEAL:].tobytes():
            return True
    return False


def _mapped(path: Path) -> NDArray[np.uint8]:
    # copy-on-write: torch requires writable arrays, but writes must not reach the file
    return np.memmap(path, dtype=np.uint8, mode="c")


def _key(source: Source) -> str:
    """Hash of everything that determines the pixels."""
    versions = [importlib.metadata.version(name) for name in ("torch", "torchvision", "pillow")]
    digest = hashlib.sha256(f"{_FORMAT} {versions} {source.max_side}\n".encode())
    for name, sha256, size in zip(source.names, source.sha256s, source.sizes, strict=True):
        digest.update(f"{name}\t{sha256}\t{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:_KEY_LENGTH]


def _file_name(root: Path) -> str:
    return re.sub(r"[^\w.-]", "_", root.resolve().name) or "root"


def inspection_file(root: Path, folder: Path, *settings: object) -> Path:
    """Path of the file with the inspection results for a root."""
    key = hashlib.sha256(f"{_FORMAT} {root.resolve()} {settings}".encode(errors="surrogateescape")).hexdigest()[:16]
    return folder / f"{_file_name(root)}-{key}.json"
