"""Resolves a composed configuration to a blueprint: the second check, and the last one before any expensive work.

Checks signatures, ranges inside components, data facts, shapes (the model runs once on torch's meta device, which
allocates nothing; a small one on the CPU) and the rules between them. All problems are raised together.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import torch

from trainer import metrics
from trainer.base.collector import resume_collection
from trainer.base.config import Component, Config
from trainer.base.device import choose_device, total_memory
from trainer.base.duration import parse_duration
from trainer.base.errors import ConfigurationError, one_line
from trainer.base.improvement import Improvement, direction
from trainer.base.precision import choose_dtype
from trainer.base.rank import rank_info
from trainer.base.timeline import Timeline
from trainer.base.without_compiler import keep_compiler_out
from trainer.configuration import checks
from trainer.configuration.blueprint import Blueprint, micro_batch_size
from trainer.configuration.build import is_foreign
from trainer.configuration.components import build_component, build_schedule, node_problems
from trainer.configuration.groups import GROUPS
from trainer.configuration.optimizer_checks import check_optimizer
from trainer.configuration.parameter_group_checks import check_pruning
from trainer.configuration.probe import calling, key_of
from trainer.configuration.probe_input import (
    check_augmentation_calls,
    check_preprocessing_calls,
    check_sampler_calls,
    facts_problems,
)
from trainer.configuration.probe_loss import check_loss_calls, declaration_problems, metric_problems
from trainer.configuration.probe_model import check_initializer_calls
from trainer.configuration.probe_steps import (
    check_averaging_calls,
    check_diagnostics_calls,
    check_optimizer_calls,
    check_regularizer_calls,
    check_schedule_calls,
)
from trainer.configuration.probe_strategy import calling_strategy, check_plan, check_strategy_calls
from trainer.configuration.weights_checks import check_averaging
from trainer.contracts import Sampler, Schedule
from trainer.data.facts import DataFacts, DataSet
from trainer.early_stopping import EarlyStopping
from trainer.parallelism.single import Single
from trainer.parallelism.strategy import Strategy
from trainer.schedules import Constant

# built later, because their arguments or their device depend on other components
_LATER = ("model", "optimizer", "schedule", "averaging")


def resolve(config: Config) -> Blueprint:
    """Check a composed configuration and build its blueprint, without writing files or loading data.

    Raises ConfigurationError with every problem, one per line.
    """
    resume_collection()  # torch is loaded
    if not config["compile"]:
        keep_compiler_out()
    found = node_problems(config)
    broken = {line.partition(":")[0].partition(".")[0].partition("=")[0] for line in found}
    built: dict[str, Component] = {}
    for group in GROUPS:
        if group not in (*_LATER, *broken):
            found += problems_of(lambda group=group: built.update({group: _build(config, group)}))  # type: ignore[misc]
    if "data" not in built or "loss" not in built:
        raise ConfigurationError(found)
    facts = _facts(config, built, found)
    strategy: Strategy = built.get("parallelism", Single())
    found += _component_problems(config, built, facts, strategy)
    device = torch.device("cpu")
    try:
        device = choose_device(config["device"], several=strategy.devices != 1)
    except ConfigurationError as error:
        found += error.problems
    if "parallelism" in built:
        found += problems_of(lambda: plan_ranks(config, strategy, device))
    blueprint, more = _draft(config, built, facts, strategy, device, has_schedule="schedule" not in broken)
    found += more
    if "optimizer" not in broken:
        found += problems_of(lambda: check_optimizer(blueprint))
        found += problems_of(lambda: check_averaging(blueprint))
    found += check_pruning(blueprint)
    if "model" not in broken:
        found += problems_of(lambda: checks.check_model(blueprint))
    if not found:
        found += _problems_of_calls(blueprint, built)
    if found:
        raise ConfigurationError(found)
    return blueprint


def _facts(config: Config, built: dict[str, Component], found: list[str]) -> DataFacts:
    """Return the facts of the data. Raises ConfigurationError, with the problems in `found`, if they are no facts or if
    the loss cannot be asked about them."""
    try:
        with calling(key_of(config, "data"), "facts()"):
            facts: DataFacts = built["data"].facts()
    except ConfigurationError as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | OSError) and not is_foreign(built["data"]):  # from scanning a folder
            raise ConfigurationError([*found, checks.line_of("data", cause)]) from cause
        raise ConfigurationError([*found, *error.problems]) from error
    if problems := [*facts_problems(config, facts), *declaration_problems(config, built["loss"])]:
        raise ConfigurationError([*found, *problems])
    if problems := list(metric_problems(config, built["loss"], facts)):
        raise ConfigurationError([*found, *problems])
    return facts


def _problems_of_calls(blueprint: Blueprint, built: dict[str, Component]) -> list[str]:
    """Call each component of the user's once, as a run would. All other checks have found no problem."""
    config, facts, loss = blueprint.config, blueprint.facts, blueprint.loss
    names, augmentation = checks.metric_names(loss, facts), built.get("augmentation")
    mixes = augmentation is not None and augmentation.mixing is not None

    def sampler() -> Sampler:
        made: Sampler = build_component(config, "sampler", batch_size=blueprint.batch_size)
        return made

    def schedule() -> Schedule:
        an_epoch, total = blueprint.steps_per_epoch, blueprint.schedule_steps
        return build_schedule(
            config, steps_per_epoch=an_epoch, total_steps=total, batch_size=blueprint.batch_size,
            num_train=facts.num_train, directions=loss.directions,
        )  # fmt: skip

    calls: tuple[Callable[[], None], ...] = (
        lambda: check_loss_calls(config, loss, facts, mixes=mixes, listens=built["sampler"].listens),
        lambda: check_sampler_calls(config, sampler, facts),
        lambda: check_preprocessing_calls(config, lambda: build_component(config, "preprocessing"), facts),
        lambda: check_augmentation_calls(config, augmentation, facts),
        lambda: check_initializer_calls(blueprint, built.get("initializer")),
        lambda: check_schedule_calls(config, schedule, blueprint.schedule_steps, names),
        lambda: check_optimizer_calls(config, blueprint.build_optimizer),
        lambda: check_regularizer_calls(config, lambda: build_component(config, "regularizer")),
        lambda: check_averaging_calls(
            config, lambda: build_component(config, "averaging", **blueprint.for_averaging), blueprint.timeline.moments
        ),
        lambda: check_diagnostics_calls(config, built.get("diagnostics")),
        lambda: check_strategy_calls(blueprint, lambda: build_component(config, "parallelism")),
    )
    return [line for call in calls for line in problems_of(call)]


def _build(config: Config, group: str) -> Component:
    """Build a component that does not depend on the data."""
    # a provisional batch size, as the number of samples that `full` means is not yet known
    size = config["batch_size"] if isinstance(config["batch_size"], int) else 1
    return build_component(config, group, **({"batch_size": size} if group == "sampler" else {}))


def _component_problems(
    config: Config, built: dict[str, Component], facts: DataFacts, strategy: Strategy
) -> Iterator[str]:
    """Check the rules between the data and each of the other components."""
    loss = built["loss"]
    yield from checks.check_data(config, built["data"], facts)
    yield from checks.check_loss(config, loss, facts)
    yield from checks.check_augmentation(config, built.get("augmentation"), loss, facts)
    yield from checks.check_sampler(config, built.get("sampler"), loss, facts, strategy)
    if "preprocessing" in built:
        yield from checks.check_preprocessing(built["preprocessing"], facts)
    yield from checks.check_contradictions(config, _lengths(config, facts)[2])


def _lengths(config: Config, facts: DataFacts) -> tuple[int, int, int]:
    """Return samples per step and per epoch, and the length of the run, in steps of this size."""
    samples = facts.num_train
    batch_size = samples if config["batch_size"] == "full" else config["batch_size"]
    if config["limit_batches"] is not None:
        samples = min(samples, config["limit_batches"] * batch_size)
    return batch_size, samples, config["steps"] or config["epochs"] * -(-samples // batch_size)


def _draft(
    config: Config,
    built: dict[str, Component],
    facts: DataFacts,
    strategy: Strategy,
    device: torch.device,
    has_schedule: bool,
) -> tuple[Blueprint, list[str]]:
    """Return the blueprint and the problems of its schedule, which is replaced by a constant one if it cannot be
    built, so that further checks can run."""
    batch_size, samples, total_steps = _lengths(config, facts)
    steps_per_epoch = -(-samples // batch_size)
    data: DataSet = built["data"]
    loss, stopping = built["loss"], config["early_stopping"]
    schedule: Schedule = Constant()
    problems: list[str] = []

    def steps(text: str) -> int:
        return parse_duration(text).steps(steps_per_epoch, total_steps)

    schedule_steps = total_steps if config["schedule_length"] is None else steps(config["schedule_length"])
    if has_schedule:
        try:
            checks.check_schedule_monitor(config, loss, facts)  # first: its direction is looked up by its name
            schedule = build_schedule(
                config, steps_per_epoch=steps_per_epoch, total_steps=schedule_steps, batch_size=batch_size,
                num_train=facts.num_train, directions=loss.directions,
            )  # fmt: skip
        except ConfigurationError as error:
            problems += error.problems
        problems += checks.check_schedule(config, schedule, loss, facts, strategy, built.get("sampler"))

    timeline = Timeline(
        samples, batch_size, total_steps, schedule.batch_sizes, lambda size: micro_batch_size(config, size)
    )
    every_log, log_restarts = _log_times(config["every"], steps, total_steps)
    monitor, mode = "val/loss", "min"
    if stopping is not None:
        monitor = stopping["monitor"]
        with suppress(ValueError):  # one that is not known has been reported
            mode = direction(monitor, stopping["mode"], loss.directions)
    return Blueprint(
        config=config, data=data, facts=facts, loss=loss, schedule=schedule, strategy=strategy, device=device,
        dtype=choose_dtype(config["precision"], device),
        metrics=metrics.available(loss.metrics.get(facts.task, ()), facts.num_outputs),
        batch_size=batch_size, micro_batch=micro_batch_size(config, batch_size),
        timeline=timeline, schedule_steps=schedule_steps,
        every_log=every_log, log_restarts=log_restarts, every_evaluate=steps(config["every"]["evaluate"]),
        every_checkpoint=steps(config["every"]["checkpoint"]), monitor=monitor,
        best=Improvement(monitor, mode),
        early_stopping=None if stopping is None else EarlyStopping(
            monitor, mode, stopping["patience"], stopping["min_delta"], timeline.step_at(steps(stopping["after"]))
        ),
        others={group: item for group, item in built.items() if not GROUPS[group].is_wired and item is not None},
    ), problems  # fmt: skip


_LONGEST_LOG_INTERVAL = 50  # steps


def _log_times(every: Config, steps: Callable[[str], int], total_steps: int) -> tuple[int, int]:
    """Return the steps between two logs, and those after which they are counted anew.

    `auto` divides the time between two evaluations evenly. Short runs log about a hundred times, so that a warm-up of
    the learning rate has several points.
    """
    if every["log"] != "auto":
        return steps(every["log"]), total_steps
    evaluate = steps(every["evaluate"])
    intervals = -(-evaluate // min(_LONGEST_LOG_INTERVAL, steps("1%")))
    return -(-evaluate // intervals), evaluate


def problems_of(check: Callable[[], Iterable[str] | None]) -> list[str]:
    """Return the problems that a check yields or raises."""
    found: list[str] = []
    try:
        for line in check() or ():
            found.append(line)
    except ConfigurationError as error:
        found += error.problems
    except ValueError as error:
        found.append(one_line(error))
    return found


_RANKS_PER_CORE = 4  # more would only slow one another down
_BYTES_PER_RANK = 300e6  # of a process that has imported torch, without data


def plan_ranks(config: Config, strategy: Strategy, device: torch.device) -> None:
    """Determine the number of processes. Raises ValueError if the machine cannot run that many."""
    info, available = rank_info(), torch.cuda.device_count() if device.type == "cuda" else None
    with calling_strategy(config, strategy, "plan()"):
        strategy.plan(info.local_size if info is not None else available, info.machines if info is not None else 1)
    check_plan(config, strategy)
    if info is not None:
        if device.type == "cuda" and int(strategy.devices) > torch.cuda.device_count():
            raise ValueError(
                f"parallelism.devices={strategy.devices}: this machine has {torch.cuda.device_count()} CUDA devices"
            )
        return
    cores, memory = os.cpu_count() or 1, total_memory()
    room = min(_RANKS_PER_CORE * cores, int(memory // _BYTES_PER_RANK))
    if device.type == "cpu" and int(strategy.devices) > room:
        raise ValueError(
            f"parallelism.devices={strategy.devices}: this machine has {cores} cores and {memory / 1e9:.0f} GB of "
            f"memory, enough for {room} processes"
        )
