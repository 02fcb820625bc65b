"""Training batches, in an order and with augmentations that are functions of (seed, epoch)."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.base.chunks import Change, Spare, by_parts
from trainer.base.randomness import generator_for
from trainer.contracts import Augmentation, Preprocessing, Sampler
from trainer.parallelism.strategy import Strategy
from trainer.preprocessing import ToFloat

# several small batches are gathered, augmented and normalised in one go: what that costs whatever their size is
# shared, and what comes out is not yet pushed out of the caches when it is used
_SLAB_BYTES = 8 << 20


class Batch(NamedTuple):
    """This rank's share of a step's samples; `num_global` is their number over all ranks."""

    images: Tensor
    targets: Tensor
    num_global: int
    indices: Tensor  # which samples of the training part they are, on the CPU


class Slab(NamedTuple):
    """What is to be read, augmented and preprocessed in one go: this rank's share of some batches."""

    indices: Tensor  # of the samples to read
    rows: dict[str, Tensor] | None  # their parameters
    sizes: list[int]  # this rank's samples of each batch
    counts: list[int]  # all samples of each batch
    own: Tensor | None  # where samples are mixed: which of those read are this rank's own,
    partners: Tensor | None  # and with which they are mixed


class TrainingBatches:
    """Epochs of batches. The place in the data is (epoch, samples seen), so that a batch may grow.

    `images` are a tensor on the device that trains, or photographs that are read when they are asked for.
    """

    def __init__(
        self,
        images: Any,
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
    ) -> None:
        self.images, self.targets = images, targets_N
        self._device = targets_N.device
        self._targets_cpu = targets_N.cpu()
        self.batch_size, self.micro_batch, self.seed = batch_size, micro_batch, seed
        self._sampler = sampler
        self._num_classes = num_classes
        self._augmentation = augmentation
        self._preprocessing, self._strategy = preprocessing, strategy
        self._mixes = augmentation is not None and augmentation.mixing is not None
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.num_samples = len(targets_N) if limit is None else min(len(targets_N), limit * batch_size)
        self._shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        self._slab = max(1, _SLAB_BYTES // (batch_size * math.prod(self._shape) * 4)) * batch_size
        self._spare = Spare()
        can_move = augmentation is not None and isinstance(images, Tensor)
        self._moved: Any = augmentation.border(images, room) if augmentation is not None and can_move else None
        if self._moved is not None:
            self.images = self._moved.images_NCHW

    def epoch(self, epoch: int, samples_seen: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `samples_seen` on; the last one may be smaller."""
        generator = generator_for(self.seed, "order", epoch)
        order: Tensor = self._sampler.order(self._targets_cpu, generator)[: self.num_samples]
        table = self._draw(epoch)
        # slabs lie where a run that was never interrupted has them: memory alignment can decide a last bit
        place = samples_seen - samples_seen % self._slab
        slabs = (
            self._slab_of(order, table, torch.arange(start, min(start + self._slab, self.num_samples)))
            for start in range(place, self.num_samples, self._slab)
        )
        for slab, images in self._read(slabs):
            for batch in self._batches(slab, images):
                if place >= samples_seen:
                    yield batch
                place += batch.num_global

    def before_preprocessing(self) -> "TrainingBatches":
        """The same batches as the preprocessing is given them, 0..255; what is mixed is mixed from these."""
        found = copy(self)
        found._preprocessing = ToFloat()
        return found

    def _draw(self, epoch: int) -> dict[str, Tensor] | None:
        if self._augmentation is None:
            return None
        generator = generator_for(self.seed, "augmentation", epoch)
        table: dict[str, Tensor] = self._augmentation.draw(len(self._targets_cpu), self._shape, generator)
        return table

    def _slab_of(self, order: Tensor, table: dict[str, Tensor] | None, places: Tensor) -> Slab:
        chunks = places.split(self.batch_size)
        mine = [self._mine(chunk) for chunk in chunks]
        wanted = torch.cat(mine)
        own = partners = None
        if self._mixes:  # each with the one before it in its batch, whichever rank has that one
            of_own, of_partners = wanted, torch.cat([self._mine(chunk.roll(1)) for chunk in chunks])
            wanted = torch.cat([of_own, of_partners]).unique()
            own, partners = torch.searchsorted(wanted, of_own), torch.searchsorted(wanted, of_partners)
        indices = order[wanted]
        rows = None
        if table is not None:
            # by sample, so that what a sample looks like does not depend on its batch; by place in the epoch
            # where a sample may come twice
            by = wanted if self._sampler.repeats else indices
            rows = {name: values.index_select(0, by) for name, values in table.items()}
        return Slab(indices, rows, [len(share) for share in mine], [len(chunk) for chunk in chunks], own, partners)

    def end_epoch(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """What a sampler has learnt of the samples counts from the next epoch on; all ranks call this."""
        if self._sampler.listens:
            self._sampler.gather(over_ranks)
            self._sampler.end_epoch()

    def state_dict(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Any] | None:
        """What a sampler has learnt; all ranks call this, and get the same. `over_ranks` sums a tensor over them."""
        if not self._sampler.listens:
            return None
        self._sampler.gather(over_ranks)
        return dict(self._sampler.state_dict())

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self._sampler.load_state_dict(state)

    def advice(self) -> str:
        """What to change when the loop waits for batches."""
        if not isinstance(self.images, Tensor):
            return "more data.workers, data.cache=memory or disk, or a smaller data.size would help"
        if self._augmentation is not None:
            return "a cheaper augmentation, more threads or a GPU would help"
        return "a larger batch_size or more threads would help"

    def _mine(self, chunk: Tensor) -> Tensor:
        """This rank's share of a step: of each part that is computed at once, so that batch norm sees the same."""
        parts = chunk.split(self.micro_batch)
        shares = [part[self._strategy.share(len(part))] for part in parts]
        return shares[0] if len(shares) == 1 else torch.cat(shares)

    def _read(self, slabs: Iterable[Slab]) -> Iterator[tuple[Slab, Tensor]]:
        """Each slab and its images, augmented and preprocessed."""
        if isinstance(self.images, Tensor):
            for slab in slabs:
                yield slab, self._preprocessed(*self._augmented(slab))
            return
        ahead: deque[tuple[Slab, int]] = deque()
        for images in self.images.read(self._requests(slabs, ahead)):
            slab, skip = ahead.popleft()
            images = images.to(self._device, non_blocking=True)
            yield slab, self._preprocessed(*self._changed(images, slab.rows, *[skip] * (skip > 0)))

    def _requests(
        self, slabs: Iterable[Slab], ahead: deque[tuple[Slab, int]]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What photographs are asked for, and which part of each."""
        for slab in slabs:
            frames = None
            skip = 0
            if self._augmentation is not None and slab.rows is not None:
                frames = self._augmentation.frames(slab.rows, self.images.sizes[slab.indices], self._shape[1:])
                skip = 0 if frames is None else self._augmentation.framed
            ahead.append((slab, skip))
            yield slab.indices, frames

    def _augmented(self, slab: Slab) -> tuple[Tensor, list[Change]]:
        if self._moved is not None:
            found: tuple[Tensor, list[Change]] = self._moved.begin(slab.indices, slab.rows)
            return found
        images = self.images.index_select(0, slab.indices.to(self._device, non_blocking=True))
        return self._changed(images, slab.rows)

    def _changed(self, images: Tensor, rows: dict[str, Tensor] | None, *skip: int) -> tuple[Tensor, list[Change]]:
        """Augmented images, and what is still to be done to them, a part at a time."""
        if self._augmentation is None or rows is None:
            return images, []
        return self._augmentation.begin(images, rows, *skip)

    def _batches(self, slab: Slab, images: Tensor) -> Iterator[Batch]:
        indices = slab.indices if slab.own is None else slab.indices[slab.own]
        targets = self.targets.index_select(0, indices.to(self._device, non_blocking=True))
        if self._mixes:
            images, targets = self._mixed(slab, images, targets)
        images = images.contiguous(memory_format=self._layout)
        parts = zip(images.split(slab.sizes), targets.split(slab.sizes), indices.split(slab.sizes), strict=True)
        for (image, target, index), count in zip(parts, slab.counts, strict=True):
            yield Batch(image, target, count, index)

    def _preprocessed(self, images: Tensor, changes: list[Change]) -> Tensor:
        """float32; what is left to do before it is done to some images, then the preprocessing."""
        in_place = self._preprocessing.transform_
        if in_place is None:
            ready: Tensor = self._preprocessing(by_parts(images, changes, self._spare) if changes else images)
            return ready

        def preprocess(some: Tensor, _: slice) -> None:
            done = in_place(some)
            if done is not some:
                some.copy_(done)

        layout = torch.contiguous_format if changes else self._layout  # other changes take images plane by plane
        return by_parts(images, [*changes, preprocess], self._spare, layout)

    def _mixed(self, slab: Slab, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed samples, and the probability of each class: (N, number of classes)."""
        assert slab.own is not None and slab.partners is not None and slab.rows is not None
        assert self._augmentation is not None
        own, partners = (places.to(self._device, non_blocking=True) for places in (slab.own, slab.partners))
        others = self.targets.index_select(0, slab.indices[slab.partners].to(self._device, non_blocking=True))
        rows = {name: values[slab.own] for name, values in slab.rows.items()}
        images, share_N = self._augmentation.mix(images.index_select(0, own), images.index_select(0, partners), rows)
        probabilities = torch.zeros(len(targets), self._num_classes, device=self._device)
        probabilities.scatter_add_(1, targets.unsqueeze(1), share_N.unsqueeze(1))
        probabilities.scatter_add_(1, others.unsqueeze(1), (1 - share_N).unsqueeze(1))
        return images, probabilities
