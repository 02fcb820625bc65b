"""Batches of an evaluation: this rank's shard of a split, preprocessed."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.configuration.blueprint import Blueprint
from trainer.data.facts import Part
from trainer.data.photographs.reading import Photographs
from trainer.training.run import Run

_EVALUATION_BYTES = 4 << 20


def evaluation_batches(run: Run, split: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's shard of a split, preprocessed, in batches of about 4 MB of images, or of one micro-batch."""
    for images, targets in raw_evaluation_batches(run, split):
        yield prepared(run, images), targets


def raw_evaluation_batches(run: Run, split: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same batches on the device, without preprocessing."""
    shards = evaluation_shards(run, split)
    for shard, image in zip(shards, _read(split.images_NCHW, shards), strict=True):
        targets = split.targets_N[shard]
        yield image.to(run.device, non_blocking=True), targets.to(run.device, non_blocking=True)


def evaluation_shards(run: Run, split: Part) -> list[Tensor]:
    """Return the indices of each batch: consecutive int64 numbers on the CPU; a batch may be empty."""
    size = evaluation_size(run.blueprint, run.objective.micro_batch)
    chunks = torch.arange(len(split.targets_N)).split(size * run.strategy.data_size)
    return [chunk[run.strategy.shard(len(chunk))] for chunk in chunks]


def evaluation_size(blueprint: Blueprint, micro_batch: int) -> int:
    """Return the number of samples in a batch of an evaluation, for each shard."""
    if micro_batch < blueprint.batch_size:  # memory is short
        return micro_batch
    return max(micro_batch, _EVALUATION_BYTES // max(1, math.prod(blueprint.facts.input_shape) * 4))


def prepared(run: Run, images: Tensor) -> Tensor:
    """Return images preprocessed and in the model's memory layout."""
    layout = torch.channels_last if run.channels_last else torch.contiguous_format
    ready: Tensor = run.preprocessing(images)
    return ready.contiguous(memory_format=layout)


def _read(images: Tensor | Photographs, shards: list[Tensor]) -> Iterator[Tensor]:
    """Yield the images of each shard; photographs are read ahead of time."""
    if isinstance(images, Tensor):
        return (images[shard[0] : shard[-1] + 1] if len(shard) else images[:0] for shard in shards)
    return images.read((shard, None) for shard in shards)
