"""`train plan [overrides]`: a run checked, measured and shown, not trained; with `-m` the trials of a sweep.

With `--show` it reads the data and draws what the augmentation makes of them: `augmentation.png`, or `--show=PATH`.
Else nothing is written.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainer import composition
from trainer.base.text import written
from trainer.commands.help import first_comment
from trainer.config import GROUPS, Config
from trainer.errors import ConfigurationError, unknown
from trainer.files import write_atomic
from trainer.preflight import trials

_SPREAD = ("weights", "gradients", "optimizer", "activations")
_FLAGS = ("-m", "--multirun", "--config-dir", "-cd", "--show")
_PICTURE = Path("augmentation.png")
_NAMES_SHOWN, _CURVE_POINTS = 4, 10_000
# on a pipe nothing is folded: lines are as long as they are
_PIPE_WIDTH, _PLOT_SIZE = 10_000, (76, 12)


def main(arguments: list[str]) -> int:
    """Raises ConfigurationError with every problem of the run, or of all trials; DataError for data to be shown."""
    overrides, config_dir, is_sweep, picture = _read(arguments)
    if is_sweep:
        _plan_sweep(overrides, config_dir)
    else:
        _plan_run(overrides, config_dir, picture)
    return 0


def _read(arguments: Sequence[str]) -> tuple[list[str], str | None, bool, Path | None]:
    """Overrides, the folder of the user's own options, whether a sweep is meant, and the picture to draw."""
    overrides: list[str] = []
    config_dir, is_sweep, picture = None, False, None
    words = iter(arguments)
    for word in words:
        flag, is_given, value = word.partition("=")
        if word in ("-m", "--multirun"):
            is_sweep = True
        elif flag in ("--config-dir", "-cd"):
            config_dir = value or next(words, "")
            if not config_dir:
                raise ConfigurationError(f"{flag}: must be followed by a folder")
        elif flag == "--show":
            picture = _new_picture(value) if is_given else _PICTURE
        elif word.startswith("-"):
            raise ConfigurationError(f"train plan: {unknown('flag', word, _FLAGS)}")
        else:
            overrides.append(word)
    if is_sweep and picture is not None:
        raise ConfigurationError("--show: draws one configuration, not a sweep; leave --multirun out")
    return overrides, config_dir, is_sweep, picture


def _new_picture(name: str) -> Path:
    """Where a picture can be written without overwriting anything. Raises ConfigurationError."""
    path = Path(name)
    if path.suffix != ".png":
        raise ConfigurationError(f"--show={name}: must name a .png file")
    if not path.parent.is_dir():
        raise ConfigurationError(f"--show={name}: there is no folder {path.parent}")
    if os.path.lexists(path):
        raise ConfigurationError(f"--show={name}: exists already; only --show alone overwrites, {_PICTURE}")
    return path


# --- one run ----------------------------------------------------------------------------------------------


def _plan_run(overrides: list[str], config_dir: str | None, picture: Path | None) -> None:
    config = composition.compose(overrides, config_dir)
    defaults = _defaults(config, config_dir)
    from trainer.blueprint import draw  # torch is not needed to know that a name is misspelt
    from trainer.estimate import cost_of, estimate

    blueprint = draw(config)
    drawn = None if picture is None else draw_augmentation(blueprint, picture)
    model = _meta_model(blueprint)
    console = _console()
    _show(console, "choices", _choices(config, config_dir))
    if changed := list(_changes(config, defaults, "")):
        _show(console, "changed keys", _grid(changed))
    _show(console, "data", _grid(_data_rows(blueprint)))
    _show(console, "model", _model_table(model, blueprint))
    _show(console, "parameter groups", _group_table(model, config))
    _show(console, *_curve(blueprint, console))
    _show(console, "steps", _grid(_step_rows(blueprint)))
    found = estimate(blueprint)
    _show(console, "estimate", _grid(_estimate_rows(blueprint, found)))
    if (cost := cost_of(blueprint, model)) is not None:
        _show(console, "parallelism", _grid(_parallelism_rows(blueprint.strategy, found, cost)))
    if drawn is not None:
        _show(console, "picture", _grid([drawn]))


def draw_augmentation(blueprint: Any, path: Path) -> tuple[str, str]:
    """Write what the augmentation makes of the run's first samples; the file's name, and what is in it."""
    from trainer.assembly import load_data, make_batches
    from trainer.build import build
    from trainer.parallelism.single import Single
    from trainer.preprocessing import ToFloat
    from trainer.reporting.augmentation_picture import draw
    from trainer.reporting.augmentation_strips import strips

    config, facts = blueprint.config, blueprint.facts
    if facts.kind != "images":
        raise ConfigurationError(f"--show: draws images; data={config['choices'].get('data')} has {facts.kind}")
    sampler = build(config["sampler"], "sampler", batch_size=blueprint.batch_size)
    augmentation = build(config["augmentation"], "augmentation")
    alone = replace(blueprint, strategy=Single())
    batches = make_batches(alone, load_data(blueprint).train, sampler, augmentation, ToFloat(), room=0)

    def name_of(target: Any) -> str:
        if facts.task != "classification":
            return " ".join(f"{value:.3g}" for value in target.flatten().tolist())
        return facts.class_names[int(target)] if facts.class_names else f"class {int(target)}"

    found = list(
        strips(
            batches,
            augmentation,
            repeats=sampler.repeats,
            settings=config["augmentation"] or {},
            name_of=name_of,
            preprocessing=str(config["choices"].get("preprocessing")),
        )
    )
    keys = {name: config["choices"].get(name) for name in ("augmentation", "data")} | {"seed": config["seed"]}
    write_atomic(path, draw(found, ", ".join(f"{name}={value}" for name, value in keys.items()), batches.images))
    return str(path), f"{len(found[0].images_KCHW)} training samples: {', '.join(strip.title for strip in found)}"


def _defaults(config: Config, config_dir: str | None) -> Config:
    """The same choices of options, and nothing else."""
    chosen = [f"{group}={option}" for group, option in config["choices"].items() if group in GROUPS]
    with composition.loader_of(config_dir) as (loader, search):
        return composition.plain(composition.load(loader, composition.NAME, [*chosen, *search]))


def _choices(config: Config, config_dir: str | None) -> RenderableType:
    """Group, option, and what the first comment line of its file says of it."""
    folders = [composition.config_folder(), *([] if config_dir is None else [Path(config_dir)])]
    rows = []
    for group in sorted(config["choices"], key=_place):
        option = config["choices"][group]
        paths = (folder / group / f"{option}.yaml" for folder in folders)
        path = next((path for path in paths if path.is_file()), None)
        rows.append((group, str(option), "" if path is None else first_comment(path)))
    return _grid(rows)


def _place(group: str) -> int:
    """Groups in the order of `train.yaml`; experiment and debug, which change them, behind."""
    return GROUPS.index(group) if group in GROUPS else len(GROUPS)


def _changes(config: Any, defaults: Any, where: str) -> Iterator[tuple[str, str]]:
    """Keys whose values are not what their files say, as they would be typed."""
    for key, value in config.items():
        name = f"{where}{key}"
        if name == "choices":
            continue
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from _changes(value, default, f"{name}.")
        elif value != default:
            yield f"{name}={written(value)}", f"instead of {written(default)}"


def _data_rows(blueprint: Any) -> Iterator[tuple[str, str]]:
    from trainer.estimate import as_a_rank

    facts, config = blueprint.facts, blueprint.config
    names = ": " + _some(facts.class_names, 10) if facts.class_names else ""
    outputs = f"{facts.num_outputs} classes{names}" if facts.task == "classification" else f"{facts.num_outputs} values"
    yield "task", f"{facts.task}, {outputs}"
    shape = f"{'x'.join(map(str, facts.input_shape))} (channels, height, width)"
    yield "a sample", shape if facts.kind == "images" else f"{math.prod(facts.input_shape)} numbers"
    yield "samples", f"{facts.num_train:,} train, {facts.num_val:,} val, {facts.num_test:,} test"
    with as_a_rank(blueprint.strategy):
        storage = blueprint.data.storage() if hasattr(blueprint.data, "storage") else {}
        rows = [*storage.items(), *_border_row(blueprint)]
    yield from rows
    is_present = getattr(blueprint.data, "is_present", None)
    if is_present is not None and not is_present():
        yield "files", f"not in {config['data'].get('root', 'place')} yet: the run downloads them first"


def _border_row(blueprint: Any) -> Iterator[tuple[str, str]]:
    """What another layout for the augmentation costs."""
    from trainer.estimate import bordered_bytes

    facts = blueprint.facts
    needed, fits = bordered_bytes(blueprint)
    if not needed:
        return
    plain = facts.num_train * math.prod(facts.input_shape)
    use = "lie between black borders, for faster crops" if fits else "do not fit between borders: crops are slower"
    yield "training images", f"{_size(plain)}; with borders {_size(needed)} ({needed / plain:.2f} times): {use}"


def _meta_model(blueprint: Any) -> Any:
    import torch

    with torch.device("meta"):
        return blueprint.build_model()


def _model_table(model: Any, blueprint: Any) -> RenderableType:
    from trainer.reporting.model_table import render, summarize

    return render(summarize(model, tuple(blueprint.facts.input_shape)))


def _group_table(model: Any, config: Config) -> RenderableType:
    from trainer.parameter_groups import parameter_groups

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    table = _table("group", "weight decay", "parameters", "tensors", left=("names",))
    for group in parameter_groups(model, config["optimizer"].get("weight_decay", 0.0), config["no_weight_decay"]):
        tensors = group["params"]
        count = sum(parameter.numel() for parameter in tensors)
        shown = _some([names[id(parameter)] for parameter in tensors], _NAMES_SHOWN)
        table.add_row(group["name"], f"{group['weight_decay']:g}", f"{count:,}", f"{len(tensors):,}", Text(shown))
    return table


def _curve(blueprint: Any, console: Console) -> tuple[str, RenderableType]:
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
    if hasattr(blueprint.schedule, "observe"):
        title += f" (as if {blueprint.schedule.monitor} improved at every evaluation)"
    return title, Text(drawn, no_wrap=True)


def _step_rows(blueprint: Any) -> Iterator[tuple[str, str]]:
    total, an_epoch, config = blueprint.total_steps, blueprint.steps_per_epoch, blueprint.config
    yield "length", f"{_count(total, 'step')} = {total / an_epoch:.4g} epochs of {_count(an_epoch, 'step')}"
    parts = -(-blueprint.batch_size // blueprint.micro_batch)
    split = f", computed {blueprint.micro_batch:,} at a time" if parts > 1 else ""
    yield "batch", f"{_count(blueprint.batch_size, 'sample')}{split}"
    if warmup := getattr(blueprint.schedule, "warmup", None):
        yield "warm-up", _count(warmup, "step")
    for name in ("log", "evaluate", "checkpoint"):
        every = getattr(blueprint, f"every_{name}")
        yield name, f"every {_count(every, 'step')} ({-(-total // every):,} in all)"
    stopping = config["early_stopping"]
    if stopping is not None:
        yield (
            "early stopping",
            f"after {stopping['patience']} evaluations in a row without a better {blueprint.monitor}",
        )


def _estimate_rows(blueprint: Any, found: Any) -> Iterator[tuple[str, str]]:
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
    parts = ("weights", "gradients", "optimizer", "activations", "data")
    yield "", ", ".join(f"{name} {_size(getattr(found, name))}" for name in parts)


def _parallelism_rows(strategy: Any, found: Any, cost: Any) -> Iterator[tuple[str, str]]:
    shares = getattr(strategy, "data_size", strategy.world_size)
    mesh = f" = {_count(shares, 'share')} of the samples x {strategy.world_size // shares} parts of the model"
    yield "ranks", f"{strategy.world_size}{mesh if shares < strategy.world_size else ''}"
    rows = ", ".join(f"{name} {_size(round(sent.bytes))}" for name, sent in cost.sent.items())
    yield "sent", f"{_size(round(cost.total.bytes))} a step and rank: {rows}"
    memory = {name: round(getattr(found, name) * getattr(cost, name)) for name in _SPREAD} | {"data": found.data}
    yield "memory", f"about {_size(sum(memory.values()))} a rank, beside what Python and torch take"
    yield "", ", ".join(f"{name} {_size(size)}" for name, size in memory.items())
    yield (
        "speed-up",
        f"at best {_two_digits(cost.speed_up)} over one such device: computing alone, sending and waiting left out",
    )


# --- a sweep ----------------------------------------------------------------------------------------------


def _plan_sweep(overrides: list[str], config_dir: str | None) -> None:
    """Every trial, checked; all problems of all trials are raised together."""
    with composition.loader_of(config_dir) as (loader, search):
        config = composition.load(loader, composition.NAME, [*overrides, *search], RunMode.MULTIRUN)
        grid, of_hydra = trials(config), list(config.hydra.overrides.hydra)
    if not grid:
        raise ConfigurationError(
            f"hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']}: chooses its trials as it goes, "
            "so there is no list of them"
        )
    table = _table("trial", "steps", "parameters", left=("overrides",))
    found: dict[str, str] = {}
    for number, trial in enumerate(grid):
        try:
            steps, parameters = _trial(composition.compose([*trial, *of_hydra]))
            table.add_row(str(number), f"{steps:,}", f"{parameters:,}", Text(" ".join(trial)))
        except ConfigurationError as error:
            for problem in error.problems:
                found.setdefault(problem, " ".join(trial))
    if found:
        raise ConfigurationError(f"{problem} [trial {trial}]" for problem, trial in found.items())
    _show(_console(), _count(len(grid), "trial"), table)


def _trial(config: Config) -> tuple[int, int]:
    """Steps and parameters."""
    from trainer.blueprint import draw

    blueprint = draw(config)
    return blueprint.total_steps, sum(parameter.numel() for parameter in _meta_model(blueprint).parameters())


# --- on the screen ----------------------------------------------------------------------------------------


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _show(console: Console, title: str, body: RenderableType) -> None:
    """A titled section; lines end where their text ends."""
    with console.capture() as captured:
        console.print(Group(Text(title, style="bold"), body))
    for line in captured.get().splitlines():
        print(line.rstrip())
    print()


def _grid(rows: Any) -> Table:
    """Words side by side; the last column takes the room there is."""
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*(Text(f"  {cell}" if place == 0 else cell) for place, cell in enumerate(row)))
    return grid


def _table(*right: str, left: Sequence[str]) -> Table:
    """The first of `right` stands on the left all the same: it names the row."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(right):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for name in left:
        table.add_column(name, overflow="fold")
    return table


def _some(names: Sequence[str], most: int) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _time(seconds: float) -> str:
    for limit, unit, name in ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "h"), (120, 60, "min"), (1, 1, "s")):
        if seconds >= limit:
            return f"{_two_digits(seconds / unit)} {name}"
    return f"{_two_digits(seconds * 1e3)} ms"


def _size(count: int) -> str:
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= limit:
            return f"{_two_digits(count / limit)} {unit}"
    return f"{count} B"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"
