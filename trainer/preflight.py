"""The Hydra callback that checks everything before Hydra makes any folder."""

import hashlib
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trainer import composition, run_folder
from trainer.config import Config
from trainer.console import exit_on_error
from trainer.errors import ConfigurationError


class Preflight(Callback):
    """Errors end the program here: Hydra turns exceptions of a callback into warnings, but not SystemExit."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the run and make its folder, exclusively, with the configuration in it."""
        with exit_on_error():
            settled = check(config)
            typed = list(config.hydra.overrides.task)
            exact = any(override.startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra)
            wanted = Path(config.hydra.run.dir)
            if not exact:
                wanted = wanted.with_name(f"{wanted.name}-{run_folder.default_name(settled)}")
            folder = run_folder.create(wanted, settled, typed, exact=exact)
            with read_write(config), open_dict(config):
                config.hydra.run.dir = str(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every trial of a sweep before the first one starts, and name the sweep after what it is."""
        with exit_on_error():
            check_trials(config)
            with read_write(config), open_dict(config):
                path = Path(config.hydra.sweep.dir)
                if path.name == "auto":
                    config.hydra.sweep.dir = str(path.with_name(sweep_hash(config)))


def settle(composed: DictConfig, hydra: DictConfig) -> Config:
    """Resolve and check as text what Hydra composed; `hydra` is its own node. Raises ConfigurationError."""
    return composition.settle(composed, hydra, GlobalHydra.instance().config_loader())


def check(composed: DictConfig) -> Config:
    """Both checks, text and parts. Raises ConfigurationError with every problem."""
    settled = settle(composed, composed.hydra)
    from trainer.blueprint import draw  # torch is not needed to know that a name is misspelt

    draw(settled)
    return settled


def trials(config: DictConfig) -> list[list[str]]:
    """The overrides of each trial of a grid, in the order in which Hydra's own sweeper runs them.

    Empty for other sweepers, whose trials are not known beforehand.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    given = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        return []
    return BasicSweeper.split_arguments(parser.parse_overrides(given), None)[0]


def check_trials(config: DictConfig) -> None:
    """Raises ConfigurationError with the problems of all trials, each with the overrides that cause it."""
    loader = GlobalHydra.instance().config_loader()
    name = config.hydra.job.config_name
    found: dict[str, str] = {}
    for overrides in trials(config):
        try:
            with composition.explained():
                check(loader.load_configuration(name, overrides, run_mode=RunMode.RUN))
        except ConfigurationError as error:
            for problem in error.problems:
                found.setdefault(problem, " ".join(overrides))
    if found:
        raise ConfigurationError(f"{problem} [trial {trial}]" for problem, trial in found.items())


def sweep_hash(config: DictConfig) -> str:
    """Eight hex digits of what was typed, so that typing it again finds the same folder."""
    text = "\n".join(sorted([*config.hydra.overrides.task, *config.hydra.overrides.hydra]))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
