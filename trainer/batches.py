"""Training batches from tensors that live on the device, in an order that is a function of (seed, epoch)."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trainer.parallelism.strategy import Strategy
from trainer.randomness import generator_for

# several small batches are gathered, augmented and normalised in one go: about 4 MB, half an L2 cache or so
_SLAB_BYTES = 4 << 20


class Batch(NamedTuple):
    """This rank's share of a step's samples; `num_global` is their number over all ranks."""

    images: Tensor
    targets: Tensor
    num_global: int


def part_sizes(count: int, micro_batch: int) -> list[int]:
    """How `count` samples are cut into parts of `micro_batch`; the last one may be smaller."""
    whole, rest = divmod(count, micro_batch)
    return [micro_batch] * whole + [rest] * (rest > 0)


class Sampler(Protocol):
    """The order of an epoch."""

    repeats: bool

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor: ...


class Augmentation(Protocol):
    """Tables of parameters, one row a sample, and what they do to images."""

    def draw(
        self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator
    ) -> dict[str, Tensor]: ...

    def __call__(self, images: Tensor, rows: dict[str, Tensor]) -> Tensor: ...


class TrainingBatches:
    """Epochs of batches. The place in the data is (epoch, samples seen), so that a batch may grow."""

    def __init__(
        self,
        images_NCHW: Tensor,
        targets_N: Tensor,
        *,
        batch_size: int,
        micro_batch: int,
        limit: int | None,
        seed: int,
        sampler: Sampler,
        augmentation: Augmentation | None,
        preprocessing: torch.nn.Module,
        strategy: Strategy,
        channels_last: bool,
    ) -> None:
        self.images, self.targets = images_NCHW, targets_N
        self._targets_cpu = targets_N.cpu()
        self.batch_size, self.micro_batch, self.seed = batch_size, micro_batch, seed
        self._sampler, self._augmentation = sampler, augmentation
        self._preprocessing, self._strategy = preprocessing, strategy
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.num_samples = len(targets_N) if limit is None else min(len(targets_N), limit * batch_size)
        bytes_per_batch = batch_size * images_NCHW[0].numel() * 4
        self._slab = max(1, _SLAB_BYTES // bytes_per_batch) * batch_size

    def epoch(self, epoch: int, samples_seen: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `samples_seen` on; the last one may be smaller."""
        order = self._sampler.order(self._targets_cpu, generator_for(self.seed, "order", epoch))
        order = order[: self.num_samples].to(self.images.device)
        table = self._draw(epoch)
        # slabs lie where a run that was never interrupted has them: memory alignment can decide a last bit
        place = samples_seen - samples_seen % self._slab
        for start in range(place, self.num_samples, self._slab):
            for batch in self._slab_of_batches(order, table, start, min(start + self._slab, self.num_samples)):
                if place >= samples_seen:
                    yield batch
                place += batch.num_global

    def _draw(self, epoch: int) -> dict[str, Tensor] | None:
        if self._augmentation is None:
            return None
        shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
        table = self._augmentation.draw(len(self.images), shape, generator_for(self.seed, "augmentation", epoch))
        return {name: column.to(self.images.device) for name, column in table.items()}

    def _slab_of_batches(
        self, order: Tensor, table: dict[str, Tensor] | None, start: int, stop: int
    ) -> Iterator[Batch]:
        chunks = order[start:stop].split(self.batch_size)
        mine = [self._mine(chunk) for chunk in chunks]
        indices = torch.cat(mine)
        images = self.images.index_select(0, indices)
        if self._augmentation is not None and table is not None:
            rows = self._rows(start, stop, indices)
            images = self._augmentation(images, {name: c.index_select(0, rows) for name, c in table.items()})
        images = self._preprocessing(images).contiguous(memory_format=self._layout)
        sizes = [len(share) for share in mine]
        targets = self.targets.index_select(0, indices)
        for image, target, chunk in zip(images.split(sizes), targets.split(sizes), chunks, strict=True):
            yield Batch(image, target, len(chunk))

    def _rows(self, start: int, stop: int, indices: Tensor) -> Tensor:
        """Rows of the table: by sample, so that what a sample looks like does not depend on its batch; by place
        in the epoch where a sample may come twice."""
        if not self._sampler.repeats:
            return indices
        places = torch.arange(start, stop, device=indices.device).split(self.batch_size)
        return torch.cat([self._mine(chunk) for chunk in places])

    def _mine(self, chunk: Tensor) -> Tensor:
        """This rank's share of a step: of each part that is computed at once, so that batch norm sees the same."""
        parts = chunk.split(self.micro_batch)
        shares = [part[self._strategy.share(len(part))] for part in parts]
        return shares[0] if len(shares) == 1 else torch.cat(shares)
