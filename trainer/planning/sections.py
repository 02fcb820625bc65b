"""The sections of `train plan`."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from trainer.base.config import Config, ConfigValue
from trainer.configuration import compose
from trainer.configuration.groups import GROUPS
from trainer.configuration.options import first_comment
from trainer.reporting.tables import _PLOT_SIZE, _count, _grid, _size, _some, _table, _time, _two_digits

if TYPE_CHECKING:
    from torch import nn

    from trainer.configuration.blueprint import Blueprint
    from trainer.parallelism.sizes import Cost
    from trainer.parallelism.strategy import Strategy
    from trainer.planning.estimate import Estimate

_SPREAD = ("weights", "gradients", "optimizer", "activations")


_NAMES_SHOWN, _CURVE_POINTS = 4, 10_000


def _choices(config: Config, config_dir: str | None) -> RenderableType:
    """Group, option, and what the first comment line of its file says of it."""
    folders = [compose.config_folder(), *([] if config_dir is None else [Path(config_dir)])]
    rows = []
    for group in sorted(config["choices"], key=_place):
        option = config["choices"][group]
        paths = (folder / group / f"{option}.yaml" for folder in folders)
        path = next((path for path in paths if path.is_file()), None)
        rows.append((group, str(option), "" if path is None else first_comment(path)))
    return _grid(rows)


def _place(group: str) -> int:
    """Groups in the order of `train.yaml`; experiment and debug, which change them, behind."""
    return list(GROUPS).index(group) if group in GROUPS else len(GROUPS)


def _changes(
    config: Mapping[str, ConfigValue], defaults: Mapping[str, ConfigValue], where: str
) -> Iterator[tuple[str, str]]:
    """Keys whose values are not what their files say, as they would be typed."""
    for key, value in config.items():
        name = f"{where}{key}"
        if name == "choices":
            continue
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from _changes(value, default, f"{name}.")
        elif value != default:
            yield f"{name}={_typed(value)}", f"instead of {_typed(default)}"


def _typed(value: ConfigValue) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")


def _data_rows(blueprint: "Blueprint") -> Iterator[tuple[str, str]]:
    from trainer.planning.estimate import as_a_rank

    facts, config = blueprint.facts, blueprint.config
    names = ": " + _some(facts.class_names, 10) if facts.class_names else ""
    outputs = f"{facts.num_outputs} classes{names}" if facts.task == "classification" else f"{facts.num_outputs} values"
    yield "task", f"{facts.task}, {outputs}"
    shape = f"{'x'.join(map(str, facts.input_shape))} (channels, height, width)"
    yield "a sample", shape if facts.kind == "images" else f"{math.prod(facts.input_shape)} numbers"
    yield "samples", f"{facts.num_train:,} train, {facts.num_val:,} val, {facts.num_test:,} test"
    with as_a_rank(blueprint.strategy):
        storage = blueprint.data.storage()
        rows = [*storage.items(), *_border_row(blueprint)]
    yield from rows
    if not blueprint.data.is_present():
        yield "files", f"not in {config['data'].get('root', 'place')} yet: the run downloads them first"


def _border_row(blueprint: "Blueprint") -> Iterator[tuple[str, str]]:
    """What another layout for the augmentation costs."""
    from trainer.planning.estimate import bordered_bytes

    facts = blueprint.facts
    needed, fits = bordered_bytes(blueprint)
    if not needed:
        return
    plain = facts.num_train * math.prod(facts.input_shape)
    use = "lie between black borders, for faster crops" if fits else "do not fit between borders: crops are slower"
    yield "training images", f"{_size(plain)}; with borders {_size(needed)} ({needed / plain:.2f} times): {use}"


def _meta_model(blueprint: "Blueprint") -> "nn.Module":
    import torch

    with torch.device("meta"):
        return blueprint.build_model()


def _model_table(model: "nn.Module", blueprint: "Blueprint") -> RenderableType:
    from trainer.reporting.model_table import render, summarize

    return render(summarize(model, tuple(blueprint.facts.input_shape)))


def _group_table(model: "nn.Module", config: Config) -> RenderableType:
    from trainer.optimizers.parameter_groups import parameter_groups

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    table = _table("group", "weight decay", "parameters", "tensors", left=("names",))
    for group in parameter_groups(model, config["optimizer"].get("weight_decay", 0.0), config["no_weight_decay"]):
        tensors = group["params"]
        count = sum(parameter.numel() for parameter in tensors)
        shown = _some([names[id(parameter)] for parameter in tensors], _NAMES_SHOWN)
        table.add_row(group["name"], f"{group['weight_decay']:g}", f"{count:,}", f"{len(tensors):,}", Text(shown))
    return table


def _curve(blueprint: "Blueprint", console: Console) -> tuple[str, RenderableType]:
    """The learning rate of the first parameter group in every optimizer step."""
    import torch

    from trainer.reporting.text_plot import plot

    lr = blueprint.build_optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    total = blueprint.total_steps
    steps = range(0, total, max(1, total // _CURVE_POINTS))
    rates = [lr * blueprint.schedule.factor(step) for step in steps]
    width, height = _PLOT_SIZE
    drawn = plot(rates, max(30, min(width, console.width - 3)), height, "step", "lr", (0, steps[-1]))
    title = f"learning rate: {rates[0]:.3g} first, {max(rates):.3g} highest, {rates[-1]:.3g} last"
    if blueprint.schedule.listens:
        title += f" (as if {blueprint.schedule.monitor} improved at every evaluation)"
    return title, Text(drawn, no_wrap=True)


def _step_rows(blueprint: "Blueprint") -> Iterator[tuple[str, str]]:
    total, an_epoch, config = blueprint.total_steps, blueprint.steps_per_epoch, blueprint.config
    yield "length", f"{_count(total, 'step')} = {total / an_epoch:.4g} epochs of {_count(an_epoch, 'step')}"
    parts = -(-blueprint.batch_size // blueprint.micro_batch)
    split = f", computed {blueprint.micro_batch:,} at a time" if parts > 1 else ""
    yield "batch", f"{_count(blueprint.batch_size, 'sample')}{split}"
    if warmup := blueprint.schedule.warmup:
        yield "warm-up", _count(warmup, "step")
    moments = {
        "log": blueprint.every_log,
        "evaluate": blueprint.every_evaluate,
        "checkpoint": blueprint.every_checkpoint,
    }
    for name, every in moments.items():
        yield name, f"every {_count(every, 'step')} ({-(-total // every):,} in all)"
    stopping = config["early_stopping"]
    if stopping is not None:
        yield (
            "early stopping",
            f"after {stopping['patience']} evaluations in a row without a better {blueprint.monitor}",
        )


def _estimate_rows(blueprint: "Blueprint", found: "Estimate") -> Iterator[tuple[str, str]]:
    import torch

    precision = "fp32" if blueprint.dtype is None else str(blueprint.dtype).removeprefix("torch.")
    yield (
        "measured",
        (
            f"just now: {found.measured_steps:,} steps of {found.measured_samples:,} random samples, "
            f"{blueprint.device}, {torch.get_num_threads()} threads, {precision}"
        ),
    )
    evaluations = -(-blueprint.total_steps // blueprint.every_evaluate)
    total = blueprint.total_steps * found.step_seconds + evaluations * found.evaluation_seconds
    where = " on one device" if blueprint.strategy.world_size > 1 else ""
    more = ", if it does not stop early" if blueprint.config["early_stopping"] is not None else ""
    notes = " (not compiled)" if blueprint.config["compile"] else ""
    without = "" if found.reading_seconds is None else ", without reading photographs"
    yield "time", f"about {_time(total)} for all steps and evaluations{without}{where}{more}"
    yield "", f"a step {_time(found.step_seconds)}{notes}, an evaluation {_time(found.evaluation_seconds)}"
    if found.reading_seconds is not None:
        workers = blueprint.data.workers
        a_step = blueprint.batch_size * found.reading_seconds / max(1, workers)
        by = f"{_count(workers, 'worker')}, meanwhile, where there are cores for them" if workers else "this process"
        yield "reading", f"a photograph {_time(found.reading_seconds)}, those of a step {_time(a_step)} by {by}"
    yield "memory", f"about {_size(found.bytes)}{where}, beside what Python and torch take"
    parts = {name: getattr(found, name) for name in (*_SPREAD, "data")} | _undo_copy(found.undo)
    yield "", ", ".join(f"{name} {_size(size)}" for name, size in parts.items())


def _undo_copy(size: int) -> dict[str, int]:
    """What is kept to undo a step of a closure optimizer, for which see `on_nonfinite` and `micro_batch`."""
    return {"copy to undo a step": size} if size else {}


def _parallelism_rows(strategy: "Strategy", found: "Estimate", cost: "Cost") -> Iterator[tuple[str, str]]:
    shares = strategy.data_size
    mesh = f" = {_count(shares, 'share')} of the samples x {strategy.world_size // shares} parts of the model"
    yield "ranks", f"{strategy.world_size}{mesh if shares < strategy.world_size else ''}"
    rows = ", ".join(f"{name} {_size(round(sent.bytes))}" for name, sent in cost.sent.items())
    yield "sent", f"{_size(round(cost.total.bytes))} a step and rank: {rows}"
    memory = {name: round(getattr(found, name) * getattr(cost, name)) for name in _SPREAD} | {"data": found.data}
    if found.keeps_undo:
        memory |= _undo_copy(memory["weights"] + memory["optimizer"])
    yield "memory", f"about {_size(sum(memory.values()))} a rank, beside what Python and torch take"
    yield "", ", ".join(f"{name} {_size(size)}" for name, size in memory.items())
    yield (
        "speed-up",
        f"at best {_two_digits(cost.speed_up)} over one such device: computing alone, sending and waiting left out",
    )
