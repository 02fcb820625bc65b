"""From a composed configuration to a blueprint: the second check, and the last before anything heavy happens."""

import os
from typing import Any

import torch

from trainer import metrics
from trainer.base.device import _memory, choose_device
from trainer.base.duration import parse_duration
from trainer.base.errors import ConfigurationError, one_line
from trainer.base.improvement import Improvement
from trainer.base.precision import choose_dtype
from trainer.base.rank import place
from trainer.configuration.blueprint import Blueprint, _micro_batch
from trainer.configuration.build import problems
from trainer.configuration.checks import (
    _augmentation_problems,
    _check_model_of,
    _check_optimizer,
    _check_preprocessing,
    _contradictions,
    _data_problems,
    _line,
    _metric_problems,
    _monitor_problem,
    _sampler_problems,
    metric_names,
)
from trainer.configuration.groups import RUNTIME, _build_part, _node
from trainer.configuration.rules import GROUPS, Config
from trainer.early_stopping import EarlyStopping


def draw(config: Config) -> Blueprint:
    """Check a composed configuration and work out what it means.

    Raises ConfigurationError with every problem, a line each; nothing was written or allocated.
    """
    found = [line for group in GROUPS for line in problems(_node(config, group), group, RUNTIME.get(group, ()))]
    broken = {line.partition(":")[0].partition(".")[0].partition("=")[0] for line in found}
    parts: dict[str, Any] = {}
    for group in ("data", "preprocessing", "sampler", "augmentation", "initializer", "loss", "diagnostics",
                  "parallelism"):  # fmt: skip
        if group not in broken:
            runtime = {"batch_size": _number(config["batch_size"])} if group == "sampler" else {}
            _collect(
                found, lambda group=group, runtime=runtime: parts.update({group: _build_part(config, group, **runtime)})
            )
    if "data" not in parts or "loss" not in parts:
        raise ConfigurationError(found)
    return _draw(config, parts, found, broken)


def _draw(config: Config, parts: dict[str, Any], found: list[str], broken: set[str]) -> Blueprint:
    data, loss, strategy = parts["data"], parts["loss"], parts.get("parallelism")
    try:
        facts = data.facts()
    except (ValueError, OSError) as error:  # a folder has to be looked at
        raise ConfigurationError([*found, _line("data", error)]) from error
    found += _data_problems(config, data, facts)
    samples = facts.num_train
    batch_size = samples if config["batch_size"] == "full" else config["batch_size"]
    if config["limit_batches"] is not None:
        samples = min(samples, config["limit_batches"] * batch_size)
    steps_per_epoch = -(-samples // batch_size)
    total_steps = config["steps"] or config["epochs"] * steps_per_epoch
    found += _metric_problems(config, loss, facts)
    found += _augmentation_problems(config, parts.get("augmentation"), loss, facts)
    found += _sampler_problems(config, parts.get("sampler"), loss, facts, strategy)
    if hasattr(parts.get("preprocessing"), "check"):
        _collect(found, lambda: _check_preprocessing(parts["preprocessing"], facts))
    found += _contradictions(config, total_steps)
    device = torch.device("cpu")
    try:
        device = choose_device(config["device"], several=getattr(strategy, "devices", 1) != 1)
    except ConfigurationError as error:
        found += error.problems

    if strategy is not None:
        _collect(found, lambda: _settle_ranks(strategy, device))

    def steps(text: str) -> int:
        return parse_duration(text).steps(steps_per_epoch, total_steps)

    stopping = config["early_stopping"]
    monitor = "val/loss" if stopping is None else stopping["monitor"]
    blueprint = Blueprint(
        config=config, data=data, facts=facts, loss=loss, schedule=None, strategy=strategy, device=device,
        dtype=choose_dtype(config["precision"], device),
        metrics=metrics.available(loss.metrics.get(facts.task, ()), facts.num_outputs),
        batch_size=batch_size, micro_batch=_micro_batch(config, batch_size),
        steps_per_epoch=steps_per_epoch, total_steps=total_steps,
        every_log=steps(config["every"]["log"]), every_evaluate=steps(config["every"]["evaluate"]),
        every_checkpoint=steps(config["every"]["checkpoint"]), monitor=monitor,
        best=Improvement(monitor, "auto" if stopping is None else stopping["mode"]),
        early_stopping=None if stopping is None else EarlyStopping(
            monitor, stopping["mode"], stopping["patience"], stopping["min_delta"], steps(stopping["after"])
        ),
    )  # fmt: skip
    if "schedule" not in broken:
        _collect(found, lambda: _build_schedule(blueprint))
        if hasattr(blueprint.schedule, "monitor"):
            found += _monitor_problem("schedule.monitor", blueprint.schedule.monitor, metric_names(loss, facts))
    if "optimizer" not in broken:
        _collect(found, lambda: _check_optimizer(blueprint))
    if "model" not in broken:
        _collect(found, lambda: _check_model_of(blueprint))
    if found:
        raise ConfigurationError(found)
    return blueprint


def _number(batch_size: Any) -> int:
    """A batch size to try things out with, before it is known how many samples `full` is."""
    return batch_size if isinstance(batch_size, int) else 1


def _collect(found: list[str], action: Any) -> None:
    try:
        action()
    except ConfigurationError as error:
        found += error.problems
    except ValueError as error:
        found.append(one_line(error))


_RANKS_PER_CORE = 4  # more would only wait for one another


_BYTES_PER_RANK = 300e6  # of a process with torch in it, before it has any data


def _settle_ranks(strategy: Any, device: torch.device) -> None:
    """How many processes there will be. Raises ValueError for more than there can be."""
    here = place()
    if here is not None:
        strategy.plan(here.local_size, here.machines)
        if device.type == "cuda" and strategy.devices > torch.cuda.device_count():
            raise ValueError(
                f"parallelism.devices={strategy.devices}: this machine has {torch.cuda.device_count()} CUDA devices"
            )
        return
    strategy.plan(torch.cuda.device_count() if device.type == "cuda" else None, 1)
    cores = os.cpu_count() or 1
    room = min(_RANKS_PER_CORE * cores, int(_memory() // _BYTES_PER_RANK))
    if device.type == "cpu" and strategy.devices > room:
        raise ValueError(
            f"parallelism.devices={strategy.devices}: this machine has {cores} cores and {_memory() / 1e9:.0f} GB of "
            f"memory, enough for {room} processes"
        )


def _build_schedule(blueprint: Blueprint) -> None:
    steps = {"steps_per_epoch": blueprint.steps_per_epoch, "total_steps": blueprint.total_steps}
    blueprint.schedule = _build_part(blueprint.config, "schedule", **steps)
