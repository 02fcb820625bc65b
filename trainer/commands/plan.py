"""`train plan [overrides]`: check, measure and show a run without training it; with `-m`, the trials of a sweep.

`--show` reads the data and draws the effect of the augmentation to `augmentation.png`, `--show=PATH` to another file.
Nothing else is written.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from hydra.types import RunMode
from rich.text import Text

from trainer.base.config import Config
from trainer.base.errors import ConfigurationError, unknown
from trainer.configuration import compose
from trainer.configuration.as_written import plain
from trainer.configuration.groups import GROUPS
from trainer.configuration.recorded import without_source
from trainer.hydra_entry.preflight import fitting_trials
from trainer.planning.remarks import model_rows, weights_rows
from trainer.planning.sections import (
    changed_keys,
    choices_table,
    data_rows,
    estimate_rows,
    group_table,
    initial_table,
    learning_rate_curve,
    meta_model,
    model_table,
    parallelism_rows,
    penalty_table,
    step_rows,
    step_time_rows,
)
from trainer.planning.show import draw_augmentation
from trainer.reporting.console import say
from trainer.reporting.tables import format_count, make_console, make_grid, make_table, print_section
from trainer.studies.definition import define, is_study

_FLAGS = ("-m", "--multirun", "--config-dir", "-cd", "--show")
_PICTURE = Path("augmentation.png")


def main(arguments: list[str]) -> int:
    """Print the plan. Raises ConfigurationError with all problems of the run or of all trials; DataError with
    `--show` if the data cannot be read."""
    overrides, config_dir, is_sweep, picture = _read(arguments)
    if is_sweep:
        _plan_sweep(overrides, config_dir)
    else:
        _plan_run(overrides, config_dir, picture)
    return 0


def _read(arguments: Sequence[str]) -> tuple[list[str], str | None, bool, Path | None]:
    """Return overrides, the user's configuration folder, whether it is a sweep, and the picture to draw."""
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
        raise ConfigurationError("--show: draws one configuration, not a sweep; remove --multirun")
    return overrides, config_dir, is_sweep, picture


def _new_picture(name: str) -> Path:
    """Return the path of a picture to be created. Raises ConfigurationError if it exists or cannot be created."""
    path = Path(name)
    if path.suffix != ".png":
        raise ConfigurationError(f"--show={name}: must name a .png file")
    if not path.parent.is_dir():
        raise ConfigurationError(f"--show={name}: there is no folder {path.parent}")
    if os.path.lexists(path):
        raise ConfigurationError(f"--show={name}: already exists; only --show without a name overwrites ({_PICTURE})")
    return path


# --- one run ----------------------------------------------------------------------------------------------


def _plan_run(overrides: list[str], config_dir: str | None, picture: Path | None) -> None:
    if _plan_study(overrides, config_dir, picture):
        return
    config = compose.compose(overrides, config_dir)
    defaults = _defaults(config, config_dir)
    from trainer.configuration.resolve import resolve
    from trainer.planning.estimate import cost_of, estimate
    from trainer.planning.exchange import step_time

    blueprint = resolve(config)
    drawn = None if picture is None else draw_augmentation(blueprint, picture)
    model = meta_model(blueprint)
    console = make_console()
    print_section(console, "choices", choices_table(config, config_dir))
    if changed := list(changed_keys(config, defaults, "")):
        print_section(console, "changed keys", make_grid(changed))
    print_section(console, "data", make_grid(data_rows(blueprint)))
    print_section(console, "model", model_table(model, blueprint))
    if rows := list(weights_rows(blueprint, model)):
        print_section(console, "weights", make_grid(rows))
    if (initial := initial_table(blueprint, sum(p.numel() for p in model.parameters()))) is not None:
        print_section(console, *initial)
    print_section(console, "parameter groups", group_table(model, config))
    if (penalties := penalty_table(model, config)) is not None:
        print_section(console, "regularizer", penalties)
    print_section(console, *learning_rate_curve(blueprint, console))
    print_section(console, "steps", make_grid([*step_rows(blueprint), *model_rows(blueprint, model)]))
    largest = blueprint.at_largest_batch()
    found = estimate(largest)
    print_section(console, "estimate", make_grid(estimate_rows(largest, found)))
    if (cost := cost_of(largest, model)) is not None:
        different = blueprint.strategy.differences(model, blueprint.dtype)
        rows = list(parallelism_rows(blueprint.strategy, found, cost, different))
        if (time := step_time(largest, found, cost)) is not None:
            rows += step_time_rows(time, found.step_seconds)
        print_section(console, "parallelism", make_grid(rows))
    if drawn is not None:
        print_section(console, "picture", make_grid([drawn]))


def _defaults(config: Config, config_dir: str | None) -> Config:
    """Compose the same options without any further overrides."""
    chosen = [f"{group}={option}" for group, option in config["choices"].items() if group in GROUPS]
    with compose.loader_of(config_dir) as (loader, search):
        return plain(compose.load(loader, compose.NAME, [*chosen, *search]))


# --- a study ----------------------------------------------------------------------------------------------


def _plan_study(overrides: list[str], config_dir: str | None, picture: Path | None) -> bool:
    """List the members of a study, and what they cost; returns whether it is one. Raises ConfigurationError."""
    if not any(word.lstrip("+").startswith("study") or word.startswith("experiment=") for word in overrides):
        return False
    with compose.loader_of(config_dir) as (loader, search):
        composed = compose.load(loader, compose.NAME, [*overrides, *search])
        if not is_study(composed):
            return False
        if picture is not None:
            raise ConfigurationError("--show: draws one configuration, not a study")
        found = define(composed, composed.hydra, loader, None)
    from trainer.configuration.resolve import resolve
    from trainer.planning.estimate import estimate

    table, total = make_table("member", "steps", "parameters", left=("needs", "overrides")), 0
    for member, config in zip(found.members, found.configs, strict=True):
        steps, parameters = _trial(without_source(config) if member.needs else config)
        total += steps
        needs = ", ".join(member.needs)
        table.add_row(member.name, f"{steps:,}", f"{parameters:,}", needs, Text(" ".join(member.overrides)))
    console = make_console()
    print_section(console, f"study={found.option}: {len(found.members)} runs, {total:,} steps", table)
    first = resolve(found.configs[0])
    print_section(console, "estimate of the first member", make_grid(estimate_rows(first, estimate(first))))
    return True


# --- a sweep ----------------------------------------------------------------------------------------------


def _plan_sweep(overrides: list[str], config_dir: str | None) -> None:
    """Check and list every trial. Raises ConfigurationError with the problems of all trials."""
    with compose.loader_of(config_dir) as (loader, search):
        config = compose.load(loader, compose.NAME, [*overrides, *search], RunMode.MULTIRUN)
        (grid, notes), of_hydra = fitting_trials(config), list(config.hydra.overrides.hydra)
    if not grid:
        raise ConfigurationError(
            f"hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']}: chooses its trials during the sweep, "
            "so they cannot be listed"
        )
    table = make_table("trial", "steps", "parameters", left=("overrides",))
    found: dict[str, str] = {}
    for number, trial in enumerate(grid):
        try:
            steps, parameters = _trial(compose.compose([*trial, *of_hydra]))
            table.add_row(str(number), f"{steps:,}", f"{parameters:,}", Text(" ".join(trial)))
        except ConfigurationError as error:
            for problem in error.problems:
                found.setdefault(problem, " ".join(trial))
    if found:
        raise ConfigurationError(f"{problem} [trial {trial}]" for problem, trial in found.items())
    print_section(make_console(), format_count(len(grid), "trial"), table)
    for note in notes:
        say(note)


def _trial(config: Config) -> tuple[int, int]:
    """Return the number of steps and of parameters."""
    from trainer.configuration.resolve import resolve

    blueprint = resolve(config)
    return blueprint.total_steps, sum(parameter.numel() for parameter in meta_model(blueprint).parameters())
