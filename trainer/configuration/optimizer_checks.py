"""Checks of the optimizer: what it needs and supports, beside the schedule, the strategy and the machine."""

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.base.capabilities import ELEMENT_WISE, extra_bytes_of, traits
from trainer.base.device import total_memory
from trainer.base.errors import ConfigurationError
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.components import build_component
from trainer.configuration.optimizer_keys import schedule_problem
from trainer.schedules import Constant


def check_optimizer(blueprint: Blueprint) -> Iterator[str]:
    """Construct the optimizer on a dummy parameter, and check what it needs and supports."""
    config, strategy = blueprint.config, blueprint.strategy
    found = traits(build_component(config, "optimizer", params=[nn.Parameter(torch.zeros(1))]))
    option, parallelism = config["choices"].get("optimizer"), config["choices"].get("parallelism")
    if found.needs_closure and blueprint.dtype is torch.float16:
        yield "precision=fp16: does not support an optimizer that evaluates a closure"
    if found.needs_closure and not strategy.takes_closures:
        yield f"optimizer={option}: evaluates the loss itself, which parallelism={parallelism} cannot"
    if strategy.cuts_weights and not found.element_wise:
        yield (
            f"optimizer._target_={config['optimizer']['_target_']}: under parallelism={parallelism} it would see "
            f"shards of weights; it must be element-wise, as {', '.join(sorted(ELEMENT_WISE))} are"
        )
    elif not strategy.steps_all_weights and found.joins_parameters:
        yield f"optimizer={option}: must step all weights at once, but under parallelism={parallelism} a rank has some"
    if found.differentiates and not strategy.differentiates:
        yield f"optimizer={option}: needs second derivatives, which parallelism={parallelism} does not have"
        # dropout draws for the number of samples of the micro-batch that was computed last
    several = strategy.world_size > 1 and blueprint.micro_batch < blueprint.batch_size
    if found.differentiates and several and config["checkpoint_activations"]:
        yield (
            f"checkpoint_activations=true: optimizer={option} differentiates several micro-batches at once, which "
            f"parallelism={parallelism} computes again one at a time; leave accumulate=1"
        )
    if found.averages and not strategy.is_synchronous:
        yield f"optimizer={option}: evaluates other weights than it trains, which parallelism={parallelism} cannot"
    if found.rate != "scheduled" and not isinstance(blueprint.schedule, Constant):
        warmup = f"schedule.warmup={config['schedule'].get('warmup')}: optimizer={option} does not follow a schedule"
        yield schedule_problem(config, found.rate) or warmup
    if found.rate != "scheduled" and (scaling := config["lr_scaling"]) != "none":
        yield f"lr_scaling={scaling}: optimizer={option} does not follow a schedule, so its rate is not scaled"
    joint = found.differentiates or (found.needs_closure and found.rate == "fixed")
    for name, entry in (config.get("parameter_groups") or {}).items():
        if joint and (factor := entry.get("lr_factor", 1.0)) != 1.0:
            yield f"parameter_groups.{name}.lr_factor={factor}: optimizer={option} has one rate for all weights"
    for key in ("clip_norm", "clip_value"):
        if found.line_search and config[key] is not None:
            yield f"{key}={config[key]}: optimizer={option} searches along a direction, which clipping would change"
        elif found.differentiates and config[key] is not None:
            yield f"{key}={config[key]}: optimizer={option} differentiates the loss itself, so that nothing is clipped"


def check_optimizer_for(model: nn.Module, blueprint: Blueprint) -> None:
    """Matrices over all weights, such as a Hessian, must fit into the memory of the device; batch norm over several
    ranks has no second derivatives."""
    config, weights = blueprint.config, [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in weights)
    optimizer = None
    with suppress(ConfigurationError):  # one that cannot be built has been reported
        optimizer = build_component(config, "optimizer", params=[nn.Parameter(torch.zeros(1, device="cpu"))])
    strategy = blueprint.strategy
    exchanges = strategy.world_size > 1 and strategy.is_exact(model)
    if traits(optimizer).differentiates and exchanges and any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ConfigurationError(
            f"optimizer={config['choices'].get('optimizer')}: needs second derivatives, which batch norm over several "
            "ranks does not have; choose a model without it, or parallelism=single"
        )
    needed = extra_bytes_of(optimizer, count, max((p.element_size() for p in weights), default=4))
    cuda = blueprint.device.type == "cuda"
    available = torch.cuda.get_device_properties(blueprint.device).total_memory if cuda else total_memory()
    if needed > available:
        raise ConfigurationError(
            f"optimizer={config['choices'].get('optimizer')}: matrices of {count:,} x {count:,} numbers need "
            f"{needed / 1e9:,.1f} GB; {'this device' if cuda else 'this machine'} has {available / 1e9:,.1f} GB"
        )
