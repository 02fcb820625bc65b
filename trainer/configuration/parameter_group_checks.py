"""Checks of `parameter_groups` against the model, the optimizer and the strategy."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from trainer.base.capabilities import needs_closure
from trainer.base.text import nearest
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.components import build_component
from trainer.optimizers.parameter_groups import Entry, entries_of


def check_parameter_groups(blueprint: Blueprint, model: nn.Module) -> Iterator[str]:
    """Each pattern must match, and the optimizer must have what an entry changes."""
    entries, names = entries_of(blueprint.config), [name for name, _ in model.named_parameters()]
    for entry in entries:
        yield from _unmatched(entry, names)
        yield from _unsupported(entry, blueprint)
        if entry.unfreeze_at is not None:
            yield from _thawing(f"parameter_groups.{entry.name}.unfreeze_at={entry.unfreeze_at}", entry, blueprint)


def _unmatched(entry: Entry, names: Sequence[str]) -> Iterator[str]:
    for pattern in entry.match:
        if not any(fnmatchcase(name, pattern) for name in names):
            like = nearest(pattern, names) or names[0]
            yield f"parameter_groups.{entry.name}.match={pattern}: matches no parameter, such as {like}"


def _unsupported(entry: Entry, blueprint: Blueprint) -> Iterator[str]:
    optimizer, option = blueprint.config["optimizer"], blueprint.config["choices"].get("optimizer")
    where = f"parameter_groups.{entry.name}"
    if entry.lr_factor != 1 and not isinstance(optimizer.get("lr"), int | float):
        yield f"{where}.lr_factor={entry.lr_factor:g}: optimizer={option} has no learning rate to multiply"
    if entry.weight_decay is not None and "weight_decay" not in optimizer:
        yield f"{where}.weight_decay={entry.weight_decay:g}: optimizer={option} has no weight decay"


def _thawing(where: str, entry: Entry, blueprint: Blueprint) -> Iterator[str]:
    assert entry.unfreeze_at is not None
    choices = blueprint.config["choices"]
    if blueprint.step_at(entry.unfreeze_at) >= blueprint.total_steps:
        yield f"{where}: is not before the end of the run; frozen=true keeps them frozen"
    if not blueprint.strategy.is_synchronous:
        yield f"{where}: the server of parallelism={choices.get('parallelism')} steps all parameters from the start"
    if needs_closure(build_component(blueprint.config, "optimizer", params=[nn.Parameter(torch.zeros(1))])):
        yield f"{where}: optimizer={choices.get('optimizer')} steps all parameters from the start"


def check_pruning(blueprint: Blueprint) -> Iterator[str]:
    """The source must exist, and every rank must hold the weights that are pruned."""
    prune = blueprint.config.get("prune")
    if prune is None:
        return
    source = prune["source"]
    if source is not None and not (Path(source) / "checkpoints").is_dir():
        yield f"prune.source={source}: is not a run folder"
    if not blueprint.strategy.replicates:
        parallelism = blueprint.config["choices"].get("parallelism")
        yield f"prune: needs all weights on every rank, which parallelism={parallelism} does not keep"
