"""The sections of `train plan`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from trainer.base.config import Config, ConfigValue
from trainer.base.text import join_names
from trainer.configuration import compose
from trainer.configuration.groups import GROUPS
from trainer.configuration.optimizer_keys import rate_of
from trainer.configuration.options import first_comment
from trainer.reporting.tables import (
    PLOT_SIZE,
    format_count,
    format_size,
    format_time,
    make_grid,
    make_table,
    two_digits,
)

if TYPE_CHECKING:
    from torch import nn

    from trainer.configuration.blueprint import Blueprint
    from trainer.parallelism.sizes import Cost
    from trainer.parallelism.strategy import Strategy
    from trainer.planning.estimate import Estimate
    from trainer.planning.exchange import StepTime
    from trainer.planning.timing import Spread

_SPREAD = ("weights", "gradients", "optimizer", "activations")

_BUSY = 0.15  # fraction of the time waited for a processor, from which on times are not to be trusted
_NAMES_SHOWN, _CURVE_POINTS = 4, 10_000


def choices_table(config: Config, config_dir: str | None) -> RenderableType:
    """Return a table of groups, their options, and the description of each option."""
    folders = [compose.config_folder(), *([] if config_dir is None else [Path(config_dir)])]
    rows = []
    for group in sorted(config["choices"], key=_position):
        option = config["choices"][group]
        paths = (folder / group / f"{option}.yaml" for folder in folders)
        path = next((path for path in paths if path.is_file()), None)
        rows.append((group, str(option), "" if path is None else first_comment(path)))
    return make_grid(rows)


def _position(group: str) -> int:
    """Sort key: groups in the order of `train.yaml`, then experiment and debug."""
    return list(GROUPS).index(group) if group in GROUPS else len(GROUPS)


def changed_keys(
    config: Mapping[str, ConfigValue], defaults: Mapping[str, ConfigValue], where: str
) -> Iterator[tuple[str, str]]:
    """Yield the keys whose values differ from their files, as overrides."""
    for key, value in config.items():
        name = f"{where}{key}"
        if name == "choices":
            continue
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from changed_keys(value, default, f"{name}.")
        elif value != default:
            yield f"{name}={_typed(value)}", f"instead of {_typed(default)}"


def _typed(value: ConfigValue) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")


def data_rows(blueprint: "Blueprint") -> Iterator[tuple[str, str]]:
    from trainer.planning.estimate import as_a_rank

    facts, config = blueprint.facts, blueprint.config
    names = ": " + join_names(facts.class_names, 10) if facts.class_names else ""
    outputs = f"{facts.num_outputs} classes{names}" if facts.task == "classification" else f"{facts.num_outputs} values"
    yield "task", f"{facts.task}, {outputs}"
    shape = f"{'x'.join(map(str, facts.input_shape))} (channels, height, width)"
    yield "a sample", shape if facts.kind == "images" else f"{math.prod(facts.input_shape)} numbers"
    yield "samples", f"{facts.num_train:,} train, {facts.num_val:,} val, {facts.num_test:,} test"
    with as_a_rank(blueprint.strategy):
        storage = blueprint.data.storage()
        rows = [*storage.items(), *_border_row(blueprint)]
    yield from rows
    yield from _augmentation_rows(blueprint)
    if not blueprint.data.is_present():
        yield "files", f"not in {config['data'].get('root', 'place')} yet: the run downloads them first"


def _augmentation_rows(blueprint: "Blueprint") -> Iterator[tuple[str, str]]:
    """Yield what does not suit the images, with the setting that helps."""
    from trainer.configuration.components import build_component
    from trainer.contracts import Augmentation

    augmentation: Augmentation | None = build_component(blueprint.config, "augmentation")
    if augmentation is not None and blueprint.facts.kind == "images":
        for notice in augmentation.notices(blueprint.facts.input_shape, blueprint.facts.class_names):
            yield "augmentation", notice


def _border_row(blueprint: "Blueprint") -> Iterator[tuple[str, str]]:
    """Yield the memory of the augmentation's own layout of the training images."""
    from trainer.planning.estimate import bordered_bytes

    facts = blueprint.facts
    needed, fits = bordered_bytes(blueprint)
    if not needed:
        return
    plain = facts.num_train * math.prod(facts.input_shape)
    use = "stored with black borders, for faster crops" if fits else "too large for memory, so crops are slower"
    yield (
        "training images",
        f"{format_size(plain)}; with borders {format_size(needed)} ({needed / plain:.2f} times): {use}",
    )


def meta_model(blueprint: "Blueprint") -> "nn.Module":
    import torch

    with torch.device("meta"):
        return blueprint.build_model()


def model_table(model: "nn.Module", blueprint: "Blueprint") -> RenderableType:
    from trainer.reporting.model_table import render, summarize

    return render(summarize(model, tuple(blueprint.facts.input_shape)))


_ROWS_SHOWN = 24
_LARGEST = 20_000_000  # parameters of a model that is initialized for the table below, which takes half a second


def initial_table(blueprint: "Blueprint", num_parameters: int) -> tuple[str, RenderableType] | None:
    """The outputs of each layer at step 0 for random samples; returns a title and a table, or None for large models."""
    import torch

    from trainer.assembly.weights import make_model
    from trainer.initializers.activations import following
    from trainer.initializers.weights import left_alone
    from trainer.reporting.initial_outputs import FirstOutputs

    if num_parameters > _LARGEST:
        return None
    shape = tuple(blueprint.facts.input_shape)
    samples = torch.randn((min(64, blueprint.batch_size), *shape), generator=torch.Generator().manual_seed(0))
    model = make_model(blueprint, lambda count: samples[:count])
    after = {id(module): name for name, module in model.named_modules()}
    activations = {after[layer]: name for layer, (name, _) in following(model, shape).items()}
    table = make_table("layer", "mean", "variance", left=("activation after it",))
    first = FirstOutputs(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model(samples)
    rows = first.read()
    every = -(-len(rows) // _ROWS_SHOWN)
    for row in (*rows[:-1:every], rows[-1]) if rows else ():
        table.add_row(row.layer, f"{row.mean:.2g}", f"{row.variance:.2g}", activations.get(row.layer, ""))
    option = blueprint.config["choices"].get("initializer")
    some = f"each {every}. of {len(rows)} layers" if every > 1 else "layers"
    title = f"outputs of {some} at step 0, initializer={option}, for samples from N(0, 1)"
    kept = left_alone(model)
    if option != "default" and kept:
        title += f"; left alone: {join_names(kept, _NAMES_SHOWN)}"
    return title, table


def group_table(model: "nn.Module", config: Config) -> RenderableType:
    from trainer.optimizers.parameter_groups import parameter_groups

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    table = make_table("group", "lr", "weight decay", "parameters", "tensors", left=("names",))
    for group in parameter_groups(model, config):
        tensors = group["params"]
        count = sum(parameter.numel() for parameter in tensors)
        shown = join_names([names[id(parameter)] for parameter in tensors], _NAMES_SHOWN)
        lr = group.get("lr", config["optimizer"].get("lr"))
        decay = f"{group['weight_decay']:g}" if "weight_decay" in group else ""
        rate = f"{lr:g}" if isinstance(lr, int | float) else ""
        table.add_row(group["name"], rate, decay, f"{count:,}", f"{len(tensors):,}", Text(shown))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        count = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
        table.add_row("frozen", "", "", f"{count:,}", f"{len(frozen):,}", Text(join_names(frozen, _NAMES_SHOWN)))
    return table


def penalty_table(model: "nn.Module", config: Config) -> RenderableType | None:
    """The coefficients of the regularizer, if there is one."""
    from trainer.configuration.components import build_component
    from trainer.optimizers.parameter_groups import excluded_names
    from trainer.regularizers.regularizer import Regularizer

    regularizer: Regularizer | None = build_component(config, "regularizer")
    if regularizer is None:
        return None
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = regularizer.coefficients_of(sizes, excluded_names(model, config["no_weight_decay"]))
    table = make_table("coefficient", "parameters", "tensors", left=("names",))
    for coefficient in dict.fromkeys(found.values()):
        names = [name for name, value in found.items() if value == coefficient]
        count = sum(sizes[name] for name in names)
        table.add_row(f"{coefficient:g}", f"{count:,}", f"{len(names):,}", Text(join_names(names, _NAMES_SHOWN)))
    return table


def learning_rate_curve(blueprint: "Blueprint", console: Console) -> tuple[str, RenderableType]:
    """Plot the learning rate of the first parameter group; returns a title and the plot."""
    import torch

    from trainer.reporting.text_plot import plot

    lr = blueprint.build_optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    total = blueprint.total_steps
    steps = range(0, total, max(1, total // _CURVE_POINTS))
    rates = [lr * blueprint.factor(step) for step in steps]
    width, height = PLOT_SIZE
    drawn = plot(rates, max(30, min(width, console.width - 3)), height, "step", "lr", (0, steps[-1]))
    title = f"learning rate: {rates[0]:.3g} first, {max(rates):.3g} highest, {rates[-1]:.3g} last"
    if blueprint.schedule.listens:
        title += f" (as if {blueprint.schedule.monitor} improved at every evaluation)"
    return title, Text(drawn, no_wrap=True)


def step_rows(blueprint: "Blueprint") -> Iterator[tuple[str, str]]:
    from trainer.configuration.lengths import length_notices, robbins_monro_verdict

    timeline, an_epoch, config = blueprint.timeline, blueprint.steps_per_epoch, blueprint.config
    total = timeline.moments
    of_first = " of the first batch size" if timeline.grows else ""
    epochs = f"{total / an_epoch:.4g} epochs of {format_count(an_epoch, 'step')}{of_first}"
    yield "length", f"{format_count(timeline.total_steps, 'step')} = {epochs}"
    parts = -(-blueprint.batch_size // blueprint.micro_batch)
    split = f", in micro-batches of {blueprint.micro_batch:,}" if parts > 1 else ""
    yield "batch", f"{format_count(blueprint.batch_size, 'sample')}{_about_full_batches(config)}{split}"
    for phase in timeline.phases[1:]:
        begins = f"epoch {blueprint.epochs_at(phase.step):.4g}"
        yield "", f"{format_count(phase.batch_size, 'sample')} from step {phase.step:,} ({begins}) on"
    if timeline.grows:
        yield "", f"{format_count(timeline.total_steps, 'update')} instead of {total:,} with batches that do not grow"
    rate = rate_of(config["optimizer"])
    if rate != "scheduled":
        yield "rate", f"{rate}: optimizer={config['choices'].get('optimizer')} does not follow a schedule"
    if timeline.grows:
        yield "durations", "below: in steps of the first batch size"
    if warmup := blueprint.schedule.warmup:
        yield "warm-up", format_count(warmup, "step")
    yield from length_notices(blueprint)
    if blueprint.lr_scale != 1:
        scaling, reference = config["lr_scaling"], config["reference_batch"]
        yield (
            "lr scaling",
            f"{scaling}: {blueprint.lr_scale:.4g} times optimizer.lr, which is for batches of {reference:,}",
        )
    if rate == "scheduled":
        yield "Robbins-Monro", robbins_monro_verdict(blueprint)
    yield "log", f"every {format_count(blueprint.every_log, 'step')} and at each evaluation"
    moments = {
        "evaluate": blueprint.every_evaluate,
        "checkpoint": blueprint.every_checkpoint,
    }
    for name, every in moments.items():
        yield name, f"every {format_count(every, 'step')} ({-(-total // every):,} in all)"
    stopping = config["early_stopping"]
    if stopping is not None:
        yield (
            "early stopping",
            f"after {stopping['patience']} evaluations in a row without a better {blueprint.monitor}",
        )


def _about_full_batches(config: Config) -> str:
    """Return that the optimizer has, or lacks, the whole training set that it needs."""
    option, wanted = config["choices"].get("optimizer"), config["optimizer"].get("batch_size")
    if config["batch_size"] == "full":
        return ", the whole training set" + (f", as optimizer={option} needs" if wanted == "full" else "")
    return f"; optimizer={option} is meant for the whole training set" if wanted == "full" else ""


def estimate_rows(blueprint: "Blueprint", found: "Estimate") -> Iterator[tuple[str, str]]:
    import torch

    from trainer.planning.timing import Spread

    precision = "fp32" if blueprint.dtype is None else str(blueprint.dtype).removeprefix("torch.")
    yield (
        "measured",
        (
            f"just now: {found.measured_steps:,} steps of {found.measured_samples:,} random samples, "
            f"{blueprint.device}, {format_count(torch.get_num_threads(), 'thread')}, {precision}"
        ),
    )
    evaluations = -(-blueprint.timeline.moments // blueprint.every_evaluate)
    total = found.step.times(_steps_as_measured(blueprint)).plus(Spread(*3 * (evaluations * found.evaluation_seconds,)))
    where = " on one device" if blueprint.strategy.world_size > 1 else ""
    more = ", if it does not stop early" if blueprint.config["early_stopping"] is not None else ""
    notes = " (not compiled)" if blueprint.config["compile"] else ""
    without = "" if found.reading_seconds is None else ", without reading photographs"
    yield "time", f"about {time_range(total)} for all steps and evaluations{without}{where}{more}"
    yield (
        "",
        f"{format_time(found.step_seconds)} per step{notes}, {format_time(found.evaluation_seconds)} per evaluation",
    )
    if found.reading_seconds is not None:
        workers = blueprint.data.workers
        a_step = blueprint.batch_size * found.reading_seconds / max(1, workers)
        by = f"{format_count(workers, 'worker')}, in parallel if there are enough cores" if workers else "this process"
        photograph = format_time(found.reading_seconds)
        yield "reading", f"{photograph} per photograph, {format_time(a_step)} per step by {by}"
    if found.waiting > _BUSY:
        yield "busy", busy_notice(found.waiting)
    yield "memory", f"{memory_range(found.bytes, found.most_bytes)}{where}, without Python and torch"
    parts = {name: getattr(found, name) for name in (*_SPREAD, "data")} | _present(found.averages, found.undo)
    yield "", ", ".join(f"{name} {format_size(size)}" for name, size in parts.items())
    if found.more is not None:
        copy = format_size(found.copy)
        yield "", f"up to {format_size(found.more)} more measured in steps and evaluations, and {copy} at a checkpoint"


def _steps_as_measured(blueprint: "Blueprint") -> int:
    """The number of steps of `blueprint.batch_size`, of which one has been measured, that use the run's samples."""
    timeline = blueprint.timeline
    return -(-timeline.moments * timeline.phases[0].batch_size // blueprint.batch_size)


def time_range(total: "Spread") -> str:
    """A time, with its range if that is not the same to two digits."""
    about, low, high = (format_time(seconds) for seconds in total)
    return about if low == about == high else f"{about}, {low} to {high}"


def busy_notice(waiting: float) -> str:
    return f"this process waited for a processor {waiting:.0%} of the time, so that times are too high"


def memory_range(least: int, most: int | None) -> str:
    """Bytes from those in tensors to the largest that were measured, if that is known and not the same."""
    low = format_size(least)
    high = low if most is None else format_size(most)
    return f"about {low}" if low == high else f"about {low} to {high}"


def _present(averages: int, undo: int) -> dict[str, int]:
    """Memory of averaged weights, and of the copy for undoing a closure optimizer's step, of runs that have them."""
    return {name: size for name, size in {"averages": averages, "copy to undo a step": undo}.items() if size}


def parallelism_rows(
    strategy: "Strategy", found: "Estimate", cost: "Cost", differences: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """`differences` are those from a run on one device. No rank takes more beyond the tensors than one device."""
    shards = strategy.data_size
    mesh = f" = {format_count(shards, 'shard')} of the batch x {strategy.world_size // shards} parts of the model"
    yield "ranks", f"{strategy.world_size}{mesh if shards < strategy.world_size else ''}"
    for difference in differences:
        yield "not equal", difference
    rows = ", ".join(f"{name} {format_size(round(sent.bytes))}" for name, sent in cost.sent.items())
    yield "sent", f"{format_size(round(cost.total.bytes))} per step and rank: {rows}"
    memory = {name: round(getattr(found, name) * getattr(cost, name)) for name in _SPREAD} | {"data": found.data}
    undo = memory["weights"] + memory["optimizer"] if found.keeps_undo else 0
    memory |= _present(round(found.averages * cost.optimizer), undo)
    each, copy = sum(memory.values()), round(cost.collected * found.copy)
    most = None if found.more is None else each + found.more
    yield "memory", f"{memory_range(each, most)} per rank, without Python and torch"
    yield "", ", ".join(f"{name} {format_size(size)}" for name, size in memory.items())
    needed = f"{memory_range(each + copy, most and most + copy)} at a checkpoint"
    yield "main rank", f"{needed}, of which {format_size(copy)} are a copy of weights and optimizer state"
    yield (
        "speed-up",
        f"at best {two_digits(cost.speed_up)} over one such device: computation only, no communication or waiting",
    )


def step_time_rows(time: "StepTime", one_process: float) -> Iterator[tuple[str, str]]:
    """Compare the time of a step with that of one process."""
    messages = f"{format_count(round(time.messages), 'message')} of at least {format_time(time.latency)}"
    parts = f"{format_time(time.computation)} computation and {format_time(time.communication)} for {messages}"
    yield "time", f"about {format_time(time.total)} per step on this machine: {parts}, measured just now"
    if time.total < one_process:
        yield "", f"{two_digits(one_process / time.total)} times as fast as one process ({format_time(one_process)})"
    else:
        yield "", f"one process is faster: {format_time(one_process)} per step; larger batches and models gain more"
