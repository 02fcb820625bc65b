"""Checks what a data set has loaded against its facts, and converts targets to the form in which losses expect them."""

from dataclasses import replace

import torch
from torch import Tensor

from trainer.base.errors import ComponentError, DataError
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.probe import described, key_of
from trainer.data.facts import DataFacts, Part, Splits
from trainer.data.photographs.reading import Photographs

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def checked_splits(splits: object, blueprint: Blueprint) -> Splits:
    """Return the splits with targets int64 (N,) or float32 (N, K). Raises ComponentError for what is no split of the
    data's task, DataError for values or numbers of samples that contradict the facts."""
    where, facts = key_of(blueprint.config, "data"), blueprint.facts
    if not isinstance(splits, Splits):
        raise ComponentError(f"{where}: load() returns {described(splits)}; must return Splits(train, val, test)")
    counts = {"train": facts.num_train, "val": facts.num_val, "test": facts.num_test}
    return replace(splits, **{name: _checked(vars(splits)[name], f"{where}: the {name} split", facts, count)
                              for name, count in counts.items()})  # fmt: skip


def _checked(part: object, where: str, facts: DataFacts, count: int) -> Part:
    if not isinstance(part, Part):
        raise ComponentError(f"{where} is {described(part)}; must be Part(images, targets)")
    images: object = part.images_NCHW
    if not isinstance(images, Tensor | Photographs):
        raise ComponentError(f"{where} has {described(images)} as images; must have a tensor")
    if not isinstance(part.targets_N, Tensor):
        raise ComponentError(f"{where} has {described(part.targets_N)} as targets; must have a tensor")
    shape = tuple(images.shape)
    if shape != (count, *facts.input_shape) or len(part.targets_N) != count:
        raise DataError(
            f"{where} has images {shape} and {len(part.targets_N)} targets; its facts say {(count, *facts.input_shape)}"
        )
    wanted = torch.float32 if facts.kind == "features" else torch.uint8
    if isinstance(images, Tensor) and images.dtype != wanted:
        raise DataError(f"{where} has {images.dtype}; {facts.kind} are {wanted}")
    if isinstance(images, Tensor) and (images.device.type != "cpu" or part.targets_N.device.type != "cpu"):
        raise ComponentError(f"{where} is on {images.device} and {part.targets_N.device}; must be on the CPU")
    targets = _classes(part, where, facts) if facts.task == "classification" else _values(part, where, facts)
    return part if targets is part.targets_N else replace(part, targets_N=targets)


def _classes(part: Part, where: str, facts: DataFacts) -> Tensor:
    targets = part.targets_N
    if targets.dtype not in _WHOLE or (targets.ndim != 1 and targets.shape[1:].numel() != 1):
        raise ComponentError(f"{where} has {described(targets)} as targets; must be class numbers, int64 of shape (N,)")
    if targets.ndim != 1 or targets.dtype != torch.int64:
        targets = targets.reshape(len(targets)).long()
    if len(targets) and not 0 <= targets.min() <= targets.max() < facts.num_outputs:
        raise DataError(f"{where} has classes outside 0..{facts.num_outputs - 1}")
    return targets


def _values(part: Part, where: str, facts: DataFacts) -> Tensor:
    targets, wanted = part.targets_N, (len(part.targets_N), facts.num_outputs)
    is_column = facts.num_outputs == 1 and targets.numel() == len(targets)
    if targets.is_complex() or not (tuple(targets.shape) == wanted or is_column):
        raise ComponentError(f"{where} has {described(targets)} as targets; must be values, float32 of shape {wanted}")
    if targets.dtype != torch.float32 or tuple(targets.shape) != wanted:
        targets = targets.reshape(wanted).float()
    if not bool(targets.isfinite().all()):
        raise DataError(f"{where} has targets that are not finite")
    return targets
