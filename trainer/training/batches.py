"""Training batches; their order and augmentation are functions of (seed, epoch)."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.base.chunks import BufferPool, Change, by_chunks
from trainer.base.randomness import generator_for
from trainer.base.stateful import State
from trainer.base.timeline import Segment, Timeline
from trainer.configuration.probe_input import check_augmented, check_order, check_prepared
from trainer.contracts import Augmentation, Layout, Preprocessing, Sampler
from trainer.data.photographs.reading import Photographs
from trainer.parallelism.strategy import Strategy
from trainer.preprocessing import ToFloat

# several small batches are gathered, augmented and normalized at once: this amortizes the overhead of each call, and
# the result is still in the cache when it is used
_BLOCK_BYTES = 8 << 20


class Batch(NamedTuple):
    """This rank's shard of a step's samples; `num_global` is their number over all ranks."""

    images: Tensor
    targets: Tensor
    num_global: int
    indices: Tensor  # their positions in the training split, on the CPU


class Block(NamedTuple):
    """This rank's shard of consecutive batches, which are read, augmented and preprocessed at once."""

    indices: Tensor  # of the samples to read
    rows: dict[str, Tensor] | None  # their augmentation parameters
    sizes: list[int]  # number of this rank's samples in each batch
    counts: list[int]  # number of samples in each batch, over all ranks
    own: Tensor | None  # if samples are mixed: positions in `indices` of this rank's own samples,
    partners: Tensor | None  # and of the samples that they are mixed with


class TrainingBatches:
    """Epochs of batches. The position in the data is (epoch, samples seen), so that the batch size may change.

    `images` is a tensor on the training device `device`, or photographs that are read on demand; `targets_N` is on the
    CPU, where samplers read it.
    """

    def __init__(
        self,
        images: Tensor | Photographs,
        targets_N: Tensor,
        *,
        batch_size: int,
        micro_batch: int,
        limit: int | None,
        seed: int,
        sampler: Sampler,
        augmentation: Augmentation | None,
        preprocessing: Preprocessing,
        strategy: Strategy,
        channels_last: bool,
        num_classes: int = 0,
        room: float = math.inf,
        device: torch.device | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self._device = torch.device("cpu") if device is None else device
        self.images, self.targets = images, targets_N.to(self._device)
        self._targets_cpu = targets_N
        self.seed = seed
        self._sampler = sampler
        self._num_classes = num_classes
        self._augmentation = augmentation
        self._preprocessing, self._strategy = preprocessing, strategy
        self._mixes = augmentation is not None and augmentation.mixing is not None
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.num_samples = len(targets_N) if limit is None else min(len(targets_N), limit * batch_size)
        self._timeline = timeline or Timeline(self.num_samples, batch_size, 1, micro_batch=lambda _: micro_batch)
        self._shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        self._pool = BufferPool()
        self._padded: Layout | None = None
        if augmentation is not None and isinstance(images, Tensor):
            self._padded = augmentation.border(images, room)
        if self._padded is not None:
            self.images = self._padded.images_NCHW

    def epoch(self, epoch: int, samples_seen: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from sample `samples_seen` on; the last one may be smaller."""
        generator = generator_for(self.seed, "order", epoch)
        order = self._sampler.order(self._targets_cpu, generator)
        check_order(f"sampler: in epoch {epoch}", order, len(self._targets_cpu), repeats=True)
        order = order[: self.num_samples]
        table = self._draw(epoch)
        ranges = [found for found in self._ranges(epoch) if found.end > samples_seen]
        position = ranges[0].start if ranges else samples_seen
        for block, images in self._read(self._block_of(order, table, found) for found in ranges):
            for batch in self._batches(block, images):
                if position >= samples_seen:
                    yield batch
                position += batch.num_global

    def _ranges(self, epoch: int) -> Iterator[Segment]:
        """Yield the samples of each block of an epoch.

        Blocks begin at the same positions whether or not the run is resumed: memory alignment can affect the last bits.
        """
        for start, end, size, micro_batch in self._timeline.segments(epoch):
            length = max(1, _BLOCK_BYTES // (size * math.prod(self._shape) * 4)) * size
            for first in range(start, end, length):
                yield Segment(first, min(first + length, end), size, micro_batch)

    def before_preprocessing(self) -> "TrainingBatches":
        """Return the same batches before preprocessing, 0..255; mixing is then applied to these values."""
        found = copy(self)
        found._preprocessing = ToFloat()
        return found

    def _draw(self, epoch: int) -> dict[str, Tensor] | None:
        if self._augmentation is None:
            return None
        generator = generator_for(self.seed, "augmentation", epoch)
        table: dict[str, Tensor] = self._augmentation.draw(len(self._targets_cpu), self._shape, generator)
        return table

    def _block_of(self, order: Tensor, table: dict[str, Tensor] | None, found: Segment) -> Block:
        positions, size, micro_batch = torch.arange(found.start, found.end), found.batch_size, found.micro_batch
        total = len(positions)
        counts = sizes = [min(size, total - start) for start in range(0, total, size)]
        wanted, own, partners = positions, None, None
        if self._strategy.world_size > 1:
            shards = [self._shard(chunk, micro_batch) for chunk in positions.split(size)]
            wanted, sizes = torch.cat(shards), [len(shard) for shard in shards]
        if self._mixes:  # each sample with its predecessor in the batch, whichever rank has that one
            predecessors = [self._shard(chunk.roll(1), micro_batch) for chunk in positions.split(size)]
            of_own, of_partners = wanted, torch.cat(predecessors)
            wanted = torch.cat([of_own, of_partners]).unique()
            own, partners = torch.searchsorted(wanted, of_own), torch.searchsorted(wanted, of_partners)
        indices = order[wanted]
        rows = None
        if table is not None:
            # indexed by sample, so that its augmentation does not depend on its batch; by position in the epoch if
            # the sampler may repeat samples
            by = wanted if self._sampler.repeats else indices
            rows = {name: values.index_select(0, by) for name, values in table.items()}
        return Block(indices, rows, sizes, counts, own, partners)

    def end_epoch(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Let the sampler apply its observations from the next epoch on. A collective call."""
        if self._sampler.listens:
            self._sampler.gather(over_ranks)
            self._sampler.end_epoch()

    def state_dict(self, over_ranks: Callable[[Tensor], Tensor]) -> State | None:
        """Return the sampler's state, the same on every rank. A collective call; `over_ranks` sums a tensor."""
        if not self._sampler.listens:
            return None
        self._sampler.gather(over_ranks)
        return dict(self._sampler.state_dict())

    def load_state_dict(self, state: State | None) -> None:
        if state is not None:
            self._sampler.load_state_dict(state)

    def advice(self) -> str:
        """What to change if training waits for batches."""
        if not isinstance(self.images, Tensor):
            return "more data.workers, data.cache=memory or disk, or a smaller data.size would help"
        if self._augmentation is not None:
            return "a cheaper augmentation, more threads or a GPU would help"
        return "a larger batch_size or more threads would help"

    def _shard(self, chunk: Tensor, micro_batch: int) -> Tensor:
        """Return this rank's shard of a batch, taken of each micro-batch, so that batch norm sees the same samples."""
        if self._strategy.world_size == 1:
            return chunk
        micro_batches = chunk.split(micro_batch)
        shards = [indices[self._strategy.shard(len(indices))] for indices in micro_batches]
        return shards[0] if len(shards) == 1 else torch.cat(shards)

    def _read(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Tensor]]:
        """Yield each block and its images, augmented and preprocessed."""
        if isinstance(self.images, Tensor):
            for block in blocks:
                yield block, self._preprocessed(*self._augmented(block))
            return
        ahead: deque[tuple[Block, int]] = deque()
        assert not isinstance(self.images, Tensor)
        for images in self.images.read(self._requests(blocks, ahead)):
            block, skip = ahead.popleft()
            images = images.to(self._device, non_blocking=True)
            yield block, self._preprocessed(*self._changed(images, block.rows, *[skip] * (skip > 0)))

    def _requests(
        self, blocks: Iterable[Block], ahead: deque[tuple[Block, int]]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the indices of the photographs to read and the region of each; append each block to `ahead`."""
        for block in blocks:
            frames = None
            skip = 0
            if self._augmentation is not None and block.rows is not None:
                assert not isinstance(self.images, Tensor)
                frames = self._augmentation.frames(block.rows, self.images.sizes[block.indices], self._shape[1:])
                skip = 0 if frames is None else self._augmentation.framed
            ahead.append((block, skip))
            yield block.indices, frames

    def _augmented(self, block: Block) -> tuple[Tensor, list[Change]]:
        if self._padded is not None:
            assert block.rows is not None
            return self._padded.begin(block.indices, block.rows)
        assert isinstance(self.images, Tensor)
        images = self.images.index_select(0, block.indices.to(self._device, non_blocking=True))
        return self._changed(images, block.rows)

    def _changed(self, images: Tensor, rows: dict[str, Tensor] | None, *skip: int) -> tuple[Tensor, list[Change]]:
        """Return images, and the remaining operations, which are applied chunk by chunk."""
        if self._augmentation is None or rows is None:
            return images, []
        shape = tuple(images.shape)
        images, changes = self._augmentation.begin(images, rows, *skip)
        check_augmented("augmentation", images, shape)
        return images, changes

    def _batches(self, block: Block, images: Tensor) -> Iterator[Batch]:
        indices = block.indices if block.own is None else block.indices[block.own]
        targets = self.targets.index_select(0, indices.to(self._device, non_blocking=True))
        if self._mixes:
            images, targets = self._mixed(block, images, targets)
        images = images.contiguous(memory_format=self._layout)
        shards = zip(images.split(block.sizes), targets.split(block.sizes), indices.split(block.sizes), strict=True)
        for (image, target, index), count in zip(shards, block.counts, strict=True):
            yield Batch(image, target, count, index)

    def _preprocessed(self, images: Tensor, changes: list[Change]) -> Tensor:
        """Apply the remaining operations and then the preprocessing, chunk by chunk; returns float32 images."""
        in_place = self._preprocessing.transform_
        if in_place is None:
            images = by_chunks(images, changes, self._pool) if changes else images
            ready: Tensor = self._preprocessing(images)
            # that it is float32 was checked before the run
            if ready.shape != images.shape or not (ready.is_floating_point() or ready.dtype == images.dtype):
                check_prepared("preprocessing", "forward()", ready, images)
            return ready

        def preprocess(some: Tensor, _: slice) -> None:
            done = in_place(some)
            if done is not some:
                some.copy_(done)

        layout = torch.contiguous_format if changes else self._layout  # operations work on contiguous planes
        return by_chunks(images, [*changes, preprocess], self._pool, layout)

    def _mixed(self, block: Block, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and class probabilities (N, num_classes)."""
        assert block.own is not None and block.partners is not None and block.rows is not None
        assert self._augmentation is not None
        own, partners = (rows.to(self._device, non_blocking=True) for rows in (block.own, block.partners))
        others = self.targets.index_select(0, block.indices[block.partners].to(self._device, non_blocking=True))
        rows = {name: values[block.own] for name, values in block.rows.items()}
        images, lam_N = self._augmentation.mix(images.index_select(0, own), images.index_select(0, partners), rows)
        probabilities = torch.zeros(len(targets), self._num_classes, device=self._device)
        probabilities.scatter_add_(1, targets.unsqueeze(1), lam_N.unsqueeze(1))
        probabilities.scatter_add_(1, others.unsqueeze(1), (1 - lam_N).unsqueeze(1))
        return images, probabilities
