"""The chosen options without overrides, with which a configuration's keys and types of values are compared."""

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.base.config import Config
from trainer.base.errors import ConfigurationError
from trainer.configuration.groups import GROUPS
from trainer.configuration.hydra_errors import explain, explained
from trainer.configuration.limits import restart
from trainer.configuration.rules import PSEUDO_GROUPS
from trainer.configuration.settings import SETTINGS

_composed: dict[Hashable, Config] = {}
_MOST_COMPOSED = 256


def are_as_written(words: Iterable[str], choices: Mapping[str, str]) -> bool:
    """Whether a configuration composed with these overrides leaves every option as it is in its file."""
    return not any(group in choices for group in PSEUDO_GROUPS) and all(_changes_no_option(w, choices) for w in words)


def _changes_no_option(word: str, choices: Mapping[str, str]) -> bool:
    key, _, value = word.partition("=")
    if key in GROUPS:
        return choices.get(key) == value
    return key in SETTINGS or key.partition(".")[0] in ("every", "early_stopping")


def options_as_written(loader: ConfigLoader, name: str, ours: Path, words: tuple[str, ...]) -> Config:
    """Compose the options chosen by `words`, without any overrides.

    Composing takes as long as for the configuration itself, so the result is cached while no file in our folder
    changes. Options that involve a user's folder are cached for the loader's lifetime only.
    """
    paths = [entry.path for entry in loader.get_search_path().get_path()]
    only_ours = {path if "://" in path else f"file://{path}" for path in paths} == {
        f"file://{ours}", "pkg://hydra.conf", "structured://",
    }  # fmt: skip
    only_ours = only_ours and not any(word.startswith("hydra.searchpath") for word in words)
    known_by: Hashable = (*_stamps(ours), os.environ.get("DATA_ROOT")) if only_ours else loader
    key = (known_by, words)
    if key not in _composed:
        with explained():
            written = plain(loader.load_configuration(name, list(words), run_mode=RunMode.RUN))
        if len(_composed) == _MOST_COMPOSED:
            _composed.pop(next(iter(_composed)))
        _composed[key] = written
    return _composed[key]


def _stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Name, modification time and size of every file of options."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _stamps(Path(entry.path))
        elif entry.name.endswith(".yaml"):
            status = entry.stat()
            yield entry.path, status.st_mtime_ns, status.st_size


def plain(composed: DictConfig) -> Config:
    """Convert to resolved dicts and lists, without Hydra's own node. Raises ConfigurationError."""
    found: Config = {}
    problems = []
    restart()
    for key in composed:
        if key == "hydra":
            continue
        try:
            value = composed[key]
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            found[str(key)] = value
        except (OmegaConfBaseException, RecursionError, ValueError) as error:
            problems.append(explain(error))
    if problems:
        raise ConfigurationError(problems)
    return found
