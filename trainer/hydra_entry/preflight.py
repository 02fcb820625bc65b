"""Hydra callback that checks everything before Hydra creates a folder."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trainer.base.config import Config, ConfigValue
from trainer.base.errors import ConfigurationError
from trainer.configuration import compose
from trainer.configuration.as_written import options_as_written
from trainer.configuration.hydra_errors import explained
from trainer.configuration.recorded import without_source
from trainer.configuration.sweeps import Trials, fitting
from trainer.hydra_entry.sweep_table import print_trials
from trainer.launching import folder_of_earlier_attempt
from trainer.reporting.console import exit_on_error, say
from trainer.storage import run_folder
from trainer.studies.definition import define, is_study

_MOST_TRIALS = 10_000
# settings that do not affect other checks: trials that differ only in these are checked once
_INDEPENDENT = ("seed", "name", "tags")


class Preflight(Callback):
    """Checks runs and sweeps. Errors exit the program: Hydra turns a callback's exceptions, except SystemExit, into
    warnings."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Check the run, and exclusively create its folder with the configuration in it."""
        with exit_on_error():
            if is_study(config):
                _set_run_folder(config, check_study(config))
                return
            exact = _is_given(config, "hydra.run.dir")
            problems = folder_problems("hydra.run.dir", config.hydra.run.dir) if exact else []
            finalized = check(config, problems)
            if (earlier := folder_of_earlier_attempt()) is not None:
                _set_run_folder(config, earlier)
                return
            wanted = Path(config.hydra.run.dir)
            if not exact:
                wanted = wanted.with_name(f"{wanted.name}-{run_folder.default_name(finalized)}")
            folder = run_folder.create(wanted, finalized, compose.typed_words(config.hydra), exact=exact)
            _set_run_folder(config, folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Check every trial of a sweep before the first one starts; name the sweep by its hash if it has no name."""
        with exit_on_error():
            if not _is_given(config, "hydra.sweep.dir") and config.get("name") is None:
                _name_sweep(config, sweep_hash(config))
            grid, notes = fitting_trials(config)
            check_trials(config, grid, _sweep_folder_problems(Path(config.hydra.sweep.dir)))
            if grid:
                run_grid(grid)
            for note in notes:
                say(note)

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        """Print the table of trials."""
        with exit_on_error():
            print_trials(Path(config.hydra.sweep.dir))


def finalize(composed: DictConfig, hydra: DictConfig) -> Config:
    """Resolve the composed configuration and check keys and values; `hydra` is Hydra's own node.

    Raises ConfigurationError.
    """
    return compose.finalize(composed, hydra, GlobalHydra.instance().config_loader())


def check(composed: DictConfig, known: list[str] | None = None) -> Config:
    """Check keys and values, then components.

    Raises ConfigurationError with every problem, those in `known` first; DataError if the weights of `init_from`
    are damaged.
    """
    problems = list(known or [])
    try:
        finalized = finalize(composed, composed.hydra)
        if not problems:
            check_parts(finalized)
            return finalized
    except ConfigurationError as error:
        problems += error.problems
    raise ConfigurationError(problems)


def check_parts(finalized: Config) -> None:
    """Check what needs torch: signatures, shapes, devices, and the weights of `init_from` and `prune.source`."""
    from trainer.configuration.resolve import resolve

    blueprint = resolve(finalized)
    start, prune = finalized["init_from"], finalized.get("prune")
    if start is None and (prune is None or prune["source"] is None):
        return
    import torch

    from trainer.assembly.pruning import masks_of, prunable
    from trainer.assembly.weights import fitting_weights

    with torch.device("meta"):
        model = blueprint.build_model()
    if start is not None:
        fitting_weights(model, Path(start), is_strict=finalized["init_strict"])
    if prune is not None and prune["source"] is not None:
        masks_of(prunable(model), Path(prune["source"]), prune["share"], prune["scope"])


def check_study(composed: DictConfig) -> Path:
    """Check every member of a study, and return its folder, with the ledger in it.

    Raises ConfigurationError with the problems of all members.
    """
    asked = Path(composed.hydra.run.dir) if _is_given(composed, "hydra.run.dir") else None
    found = define(composed, composed.hydra, GlobalHydra.instance().config_loader(), asked)
    problems = folder_problems("name" if asked is None else "hydra.run.dir", str(found.folder))
    if found.folder.is_dir() and any(found.folder.iterdir()) and not (found.folder / run_folder.LEDGER).is_file():
        problems.append(f"{found.folder}: is not empty and not the folder of a study")
    for member, config in zip(found.members, found.configs, strict=True):
        try:
            check_parts(without_source(config) if member.needs else config)  # which does not exist yet
        except ConfigurationError as error:
            problems += [f"{line} [{member.name}]" for line in error.problems if not any(line in p for p in problems)]
    if problems:
        raise ConfigurationError(problems)
    found.open_ledger()
    return found.folder


def _set_run_folder(config: DictConfig, folder: Path) -> None:
    with read_write(config), open_dict(config):
        config.hydra.run.dir = str(folder)


# --- folders ----------------------------------------------------------------------------------------------


def _is_given(config: DictConfig, key: str) -> bool:
    return key in compose.typed_keys(compose.typed_words(config.hydra, "hydra"))


def folder_problems(key: str, folder: str) -> list[str]:
    """Reasons why this folder cannot be created, found without trying."""
    line = f"{key}={folder}: "
    if not folder.strip() or Path(folder) == Path():
        return [line + "must name a folder"]
    nearest = Path(folder).absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        return [f"{line}{'is' if nearest == Path(folder).absolute() else f'{nearest} is'} not a folder"]
    return [] if os.access(nearest, os.W_OK | os.X_OK) else [f"{line}{nearest} is not writable"]


def _sweep_folder_problems(folder: Path) -> list[str]:
    if problems := folder_problems("hydra.sweep.dir", str(folder)):
        return problems
    used = folder.is_dir() and any(folder.iterdir()) and not (folder / run_folder.SWEEP).is_file()
    return [f"hydra.sweep.dir={folder}: is not empty and not the folder of a sweep"] if used else []


def _name_sweep(config: DictConfig, name: str) -> None:
    """Set the sweep folder, also as an override, because each trial is composed anew from the overrides."""
    folder = str(Path(config.hydra.sweep.dir).with_name(name))
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = folder
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")


# --- sweeps -----------------------------------------------------------------------------------------------


def fitting_trials(config: DictConfig) -> tuple[Trials, list[str]]:
    """Return the trials of a grid in the order of Hydra's basic sweeper, and a line for each word that some leave out.

    Empty for other sweepers, whose trials are not known in advance. Raises ConfigurationError for an invalid grid.
    """
    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        return [], []
    loader, search = GlobalHydra.instance().config_loader(), compose.search_words(config.hydra)

    def option_of(group: str, option: str) -> ConfigValue:
        try:
            words = (f"{group}={option}", *search)
            return options_as_written(loader, compose.NAME, compose.config_folder(), words).get(group)
        except ConfigurationError:  # the check of its trial tells what is wrong
            return None

    return fitting(_trials(config), option_of)


def run_grid(grid: Trials) -> None:
    """Make Hydra's basic sweeper run these trials, which have been checked; `own_grid` undoes it."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    def split(overrides: list[Override], batch: int | None) -> list[Trials]:
        return [list(chunk) for chunk in BasicSweeper.split_overrides_to_chunks(grid, batch)]

    BasicSweeper.split_arguments = staticmethod(split)  # type: ignore[method-assign, assignment]


@contextmanager
def own_grid() -> Iterator[None]:
    """Context manager that undoes `run_grid` when it exits."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    before = vars(BasicSweeper)["split_arguments"]
    try:
        yield
    finally:
        BasicSweeper.split_arguments = before  # type: ignore[method-assign]


def _trials(config: DictConfig) -> Trials:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    with explained():
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        params = OmegaConf.select(config, "hydra.sweeper.params") or {}
        given = [f"{key}={value}" for key, value in params.items()] + compose.typed_words(config.hydra)
        overrides = parser.parse_overrides(given)
    _check_grid(overrides)
    with explained():
        return BasicSweeper.split_arguments(overrides, None)[0]


def _check_grid(overrides: list[Override]) -> None:
    """Raise ConfigurationError for axes that are infinite, empty, shuffled or not a list of values."""
    problems, sizes = [], []
    for override in overrides:
        if not override.is_sweep_override():
            continue
        line, axis = f"{override.input_line}: ", override.value()
        if not override.is_discrete_sweep():
            problems.append(line + "must be a list of values: a,b,c or range(1,4)")
            continue
        if getattr(axis, "shuffle", False):
            problems.append(line + "must not be shuffled: a repeated sweep continues in the same order")
        size = _size(axis)
        if not 0 < size < math.inf:
            problems.append(line + ("has no values" if size == 0 else "never ends"))
        sizes.append(size)
    total = math.prod(sizes)
    if not problems and total > _MOST_TRIALS:
        problems.append(f"the sweep has {total:,.0f} trials; must be at most {_MOST_TRIALS:,}")
    if problems:
        raise ConfigurationError(problems)


def _size(axis: object) -> float:
    if isinstance(axis, ChoiceSweep):
        return len(axis.list)
    if isinstance(axis, RangeSweep):
        assert axis.start is not None and axis.stop is not None
        return max(0, math.ceil((axis.stop - axis.start) / axis.step)) if axis.step else math.inf
    return 1  # a glob over the names of options: few values


def check_trials(config: DictConfig, grid: Trials, known: list[str] | None = None) -> None:
    """Raise ConfigurationError with the problems of all trials, each with the overrides that cause it."""
    loader = GlobalHydra.instance().config_loader()
    problems = list(known or [])
    found: dict[str, str] = {}
    seen: set[str] = set()
    if len(grid) > 1 and not OmegaConf.is_interpolation(config.hydra.sweep, "subdir"):
        problems.append(f"hydra.sweep.subdir={config.hydra.sweep.subdir}: must differ between trials")
    for number, overrides in enumerate(grid):
        try:
            _check_trial(loader, config, overrides, number, seen)
        except ConfigurationError as error:
            for problem in error.problems:
                found.setdefault(problem, " ".join(overrides))
    problems += [f"{problem} [trial {trial}]" for problem, trial in found.items()]
    if problems:
        raise ConfigurationError(problems)


def _check_trial(loader: ConfigLoader, config: DictConfig, overrides: list[str], number: int, seen: set[str]) -> None:
    """Check a trial; its components only if no trial in `seen` has the same."""
    from trainer.assembly.run_folder_of import for_resuming

    hydra = [o for o in compose.typed_words(config.hydra, "hydra") if not o.startswith("hydra.mode=")]
    composed = compose.load(loader, config.hydra.job.config_name, [*hydra, *overrides])
    finalized = for_resuming(finalize(composed, composed.hydra), _trial_folder(config, composed, number))
    alike = repr({key: value for key, value in finalized.items() if key not in _INDEPENDENT})
    if alike not in seen:
        check_parts(finalized)
        seen.add(alike)


def _trial_folder(config: DictConfig, composed: DictConfig, number: int) -> Path:
    """The folder of a trial, which exists if the sweep is resumed; Hydra sets its number when it starts."""
    with read_write(composed), open_dict(composed):
        composed.hydra.job.num = number
    return Path(config.hydra.sweep.dir) / str(composed.hydra.sweep.subdir)


def sweep_hash(config: DictConfig) -> str:
    """Eight hex digits of the overrides' hash, so that repeating the command finds the same folder."""
    typed = [o for o in compose.typed_words(config.hydra, "hydra") if not o.startswith("hydra.mode=")]
    text = "\n".join([*compose.typed_words(config.hydra), *typed])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
