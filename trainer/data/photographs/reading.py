"""Photographs as images of a split: framed to a common size as they are read."""

import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.base.errors import DataError
from trainer.data.photographs.decoding import BadPhotograph
from trainer.data.photographs.frames import apply_frame, check_frames, evaluation_frames
from trainer.data.photographs.inspection import shown
from trainer.data.photographs.storage import CHANGED, Decoded, Store
from trainer.data.photographs.workers import CHUNK, Chunk, Workers

Request = tuple[Tensor, Tensor | None]

_WORTH_WORKERS = 64  # photographs; starting workers takes as long as reading dozens of them

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Collection:
    """All photographs of a data set: where they are stored, and how they are framed and read."""

    store: Store
    names: list[str]
    sha256s: list[str]
    sizes_N2: Tensor
    size: int
    short_side: int
    workers: int
    timeout: float
    _threads: ThreadPoolExecutor | None = field(default=None, repr=False)

    def read(self, requests: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Yield uint8 (n, 3, size, size) for each pair of numbers (n,) and frames (n, 8), in order."""
        if self.workers == 0 or isinstance(self.store, Decoded):
            yield from (self.read_here(numbers, frames) for numbers, frames in requests)
            return
        first = next(requests, None)
        if first is None:
            return
        requests = itertools.chain([first], requests)
        # two batches in flight, as in a DataLoader with two workers
        ahead = 2 * max(self.workers, -(-len(first[0]) // CHUNK))
        try:
            pool = Workers(self.store.reader, self.size, count=self.workers, ahead=ahead, timeout=self.timeout)
        except OSError as error:
            logger.warning("photographs are read without workers: %s", error)
            yield from (self.read_here(numbers, frames) for numbers, frames in requests)
            return
        try:
            yield from self._gather(pool, requests)
        finally:
            pool.close()

    def read_here(self, numbers_n: Tensor, frames_n8: Tensor) -> Tensor:
        """Read one batch in this process, with torch's number of threads."""
        images = torch.empty(len(numbers_n), 3, self.size, self.size, dtype=torch.uint8)
        out, numbers, frames = images.numpy(), numbers_n.tolist(), frames_n8.tolist()

        def read_some(indices: range) -> None:
            for index in indices:
                try:
                    pixels = self.store.reader(self.store.ticket(numbers[index]))
                except BadPhotograph as error:
                    raise self._damaged(numbers[index], str(error)) from error
                apply_frame(pixels, frames[index], out[index])

        count = min(torch.get_num_threads(), len(numbers))
        if count <= 1:
            read_some(range(len(numbers)))
            return images
        if self._threads is None:
            self._threads = ThreadPoolExecutor(torch.get_num_threads(), "photographs")
        list(self._threads.map(read_some, [range(first, len(numbers), count) for first in range(count)]))
        return images

    def _gather(self, pool: Workers, requests: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Assemble batches from the workers' chunks."""
        sizes: deque[int] = deque()  # of the batches in flight

        def chunks() -> Iterator[Chunk]:
            for numbers_n, frames_n8 in requests:
                numbers, frames = numbers_n.tolist(), frames_n8.tolist()
                sizes.append(len(numbers))
                for start in range(0, max(1, len(numbers)), CHUNK):  # an empty batch is one chunk
                    some = numbers[start : start + CHUNK]
                    yield Chunk(some, [self.store.ticket(n) for n in some], frames[start : start + CHUNK])

        filled = 0
        for chunk, images_n3SS in pool.read(chunks()):
            if chunk.problem is not None:
                raise self._damaged(chunk.numbers[chunk.problem[0]], chunk.problem[1])
            if filled == 0:
                batch = torch.empty(sizes[0], 3, self.size, self.size, dtype=torch.uint8)
                out = batch.numpy()
            out[filled : filled + len(images_n3SS)] = images_n3SS
            filled += len(images_n3SS)
            if filled == sizes[0]:
                sizes.popleft()
                filled = 0
                yield batch

    def _damaged(self, number: int, reason: str) -> DataError:
        advice = "data.on_bad_file=skip detects such files before training"
        if reason.startswith(CHANGED):
            advice = "restore it and resume, or start a new run"
        return DataError(f"data: {shown(self.names[number])}: {reason}; {advice}")


class Photographs:
    """The photographs of a split, indexed like a tensor of images (N, 3, size, size), but read on access."""

    dtype = torch.uint8

    def __init__(self, collection: Collection, numbers_N: Tensor) -> None:
        self._all, self._numbers_N = collection, numbers_N
        self.sizes = collection.sizes_N2[numbers_N]
        """int64 (N, 2): height and width as stored."""
        self._frames_N8 = evaluation_frames(self.sizes, collection.size, collection.short_side)

    def __len__(self) -> int:
        return len(self._numbers_N)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self._all.size, self._all.size))

    @property
    def device(self) -> torch.device:
        """The device of the images that are read."""
        return torch.device("cpu")

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Images at a slice or int64 indices, framed for evaluation, as a new tensor."""
        chosen = torch.arange(len(self))[index]
        request = self._numbers_N[chosen].view(-1), self._frames_N8[chosen].view(-1, 8)
        if len(request[0]) < _WORTH_WORKERS:
            images = self._all.read_here(*request)
        else:
            (images,) = self._all.read(iter([request]))
        return images.view(*chosen.shape, *self.shape[1:])

    def joined(self, other: "Photographs") -> "Photographs":
        """Return these photographs and others of the same collection."""
        assert other._all is self._all
        return Photographs(self._all, torch.cat((self._numbers_N, other._numbers_N)))

    def subset(self, indices: Tensor) -> "Photographs":
        """Return the photographs at int64 indices, unread."""
        return Photographs(self._all, self._numbers_N[indices])

    def read(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """Yield uint8 (n, 3, size, size) for each request, in order; requests are consumed some batches ahead.

        A request is int64 indices (n,) on the CPU and int64 frames (n, 8), or None for evaluation frames. A frame is
        the box in the stored photograph (top, left, height, width), the size (height, width) that it is resized to,
        and the corner (top, left) of the output within that; the output is mirrored if the width is negative. Raises
        ValueError for a frame that does not fit, DataError for a file that has changed, RankLost if workers die
        repeatedly.
        """
        return self._all.read(self._checked(indices_n, frames_n8) for indices_n, frames_n8 in requests)

    def _checked(self, indices_n: Tensor, frames_n8: Tensor | None) -> tuple[Tensor, Tensor]:
        if frames_n8 is None:
            frames_n8 = self._frames_N8[indices_n]
        else:
            check_frames(frames_n8, self.sizes[indices_n], self._all.size)
        return self._numbers_N[indices_n], frames_n8

    def checksum(self) -> str:
        """sha256 over the name and sha256 of each file, and the sizes of stored and framed images."""
        digest = hashlib.sha256(f"{tuple(self.shape)} {self._all.short_side};".encode())
        for number, (height, width) in zip(self._numbers_N.tolist(), self.sizes.tolist(), strict=True):
            line = f"{self._all.names[number]}\t{self._all.sha256s[number]}\t{height}x{width}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()
