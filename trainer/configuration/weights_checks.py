"""Whether what acts on the weights beside the optimizer suits it, the strategy and the length of the run."""

from collections.abc import Iterator

import torch
from torch import nn

from trainer.averaging.averaging import Averaging
from trainer.base.capabilities import traits
from trainer.base.config import Config
from trainer.base.text import nearest
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.components import build_component
from trainer.optimizers.parameter_groups import excluded_names, parameter_groups
from trainer.regularizers.regularizer import Regularizer


def check_averaging(blueprint: Blueprint) -> Iterator[str]:
    """All ranks must have the weights of one model, and the optimizer must not average by itself."""
    config, strategy = blueprint.config, blueprint.strategy
    given = blueprint.for_averaging
    averaging: Averaging | None = build_component(config, "averaging", **given)
    if averaging is None:
        return
    option, optimizer, parallelism = (config["choices"].get(g) for g in ("averaging", "optimizer", "parallelism"))
    if averaging.needs_cycles and not given["cycle_ends"]:
        schedule = config["choices"].get("schedule")
        yield f"averaging={option}: no cycle of schedule={schedule} ends within the run; choose schedule=sgdr"
    if traits(build_component(config, "optimizer", params=[nn.Parameter(torch.zeros(1))])).averages:
        yield f"averaging={option}: optimizer={optimizer} averages the weights itself; choose averaging=none"
    if strategy.weights_differ and strategy.world_size > 1:
        yield f"averaging={option}: the ranks of parallelism={parallelism} have different weights; choose another one"


def check_regularizer(blueprint: Blueprint, model: nn.Module) -> Iterator[str]:
    """Its patterns must match, and neither strategy nor optimizer may change what it means."""
    config, strategy = blueprint.config, blueprint.strategy
    regularizer: Regularizer | None = build_component(config, "regularizer")
    if regularizer is None:
        return
    option, parallelism = (config["choices"].get(group) for group in ("regularizer", "parallelism"))
    names = [name for name, _ in model.named_parameters()]
    for pattern in regularizer.unmatched(names):
        yield f"regularizer.coefficients.{pattern}: matches no parameter, such as {nearest(pattern, names) or names[0]}"
    if not regularizer.element_wise and not strategy.replicates:
        yield f"regularizer={option}: needs all weights on every rank, which parallelism={parallelism} does not keep"
    found = traits(build_component(config, "optimizer", params=[nn.Parameter(torch.zeros(1))]))
    if regularizer.decoupled and found.needs_closure:
        yield "regularizer.decoupled=true: an optimizer that evaluates the objective itself would not see it"
    if regularizer.decoupled and not strategy.is_synchronous:
        yield f"regularizer.decoupled=true: the weights of parallelism={parallelism} are stepped by its server"
    if regularizer.decays:
        yield from _decayed_twice(config, model, regularizer)


def _decayed_twice(config: Config, model: nn.Module, regularizer: Regularizer) -> Iterator[str]:
    """Each setting of weight decay whose weights the regularizer penalizes, too."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    penalized = regularizer.coefficients_of(list(names.values()), excluded_names(model, config["no_weight_decay"]))
    twice: dict[str, list[str]] = {}
    for group in parameter_groups(model, config):
        entry = config["parameter_groups"].get(group["name"].removesuffix("/no_decay"), {})
        own = entry.get("weight_decay") is not None
        key = f"parameter_groups.{group['name']}.weight_decay" if own else "optimizer.weight_decay"
        if group.get("weight_decay"):
            found = [names[id(parameter)] for parameter in group["params"] if names[id(parameter)] in penalized]
            twice.setdefault(f"{key}={group['weight_decay']}", []).extend(found)
    for setting, found in twice.items():
        if found:
            more = ", ..." if len(found) > 1 else ""
            yield (
                f"{setting}: regularizer={config['choices'].get('regularizer')} penalizes the same weights "
                f"({found[0]}{more}); set {setting.partition('=')[0]}=0, or choose regularizer=none"
            )
