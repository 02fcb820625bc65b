"""A recorded configuration that is used again: data that moved, and starting weights that are no longer needed."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from trainer.base.config import Config, ConfigValue
from trainer.base.errors import ConfigurationError
from trainer.configuration import compose

# keys that can change while the run remains the same run: training longer, the schedule then, and another parallelism
MAY_CHANGE = ("epochs", "steps", "schedule_length", "parallelism")
# keys that a checkpoint does not depend on: these; and the number of threads, which a resumed run takes from its start
_ASIDE = (*MAY_CHANGE, "choices.parallelism", "threads")
# keys of `data`, at any depth, that say where it lies or how it gets there, by the last word of their names. What is
# there is told by the checksum
_PLACES = ("root", "dir", "folder", "path", "file", "download")
# models that read weights
_FROM_LIBRARIES = ("trainer.models.from_torchvision.from_torchvision", "trainer.models.from_timm.from_timm")


def with_changes(recorded: Config, config: Config) -> Config:
    """Return the recorded configuration with what `config` changes of it while the run remains the same run."""
    changes = {key: config[key] for key in MAY_CHANGE}
    changes["choices"] = recorded["choices"] | {"parallelism": config["choices"]["parallelism"]}
    if same_data(recorded["data"], config["data"]):
        changes["data"] = config["data"]
    return {**recorded, **changes}


def is_place(key: str) -> bool:
    """Whether this key of `data` only says where the data lie."""
    name = key.rpartition(".")[2].lower()
    return name.rpartition("_")[2] in _PLACES and not name.startswith("on_")


def same_but_for_places(one: Config, other: Config) -> bool:
    """Whether two configurations differ at most in where the data lie."""
    return same_data(one["data"], other["data"]) and one == {**other, "data": one["data"]}


def same_data(one: ConfigValue, other: ConfigValue) -> bool:
    """Whether two nodes of `data` differ at most in where the data lie."""
    return bool(_stripped(one) == _stripped(other))


def _stripped(value: ConfigValue) -> ConfigValue:
    if isinstance(value, dict):
        return {key: _stripped(item) for key, item in value.items() if not is_place(str(key))}
    return [_stripped(item) for item in value] if isinstance(value, list) else value


def differences(before: ConfigValue, after: ConfigValue, where: str = "") -> Iterator[str]:
    """Describe each key, other than the places of data, that differs: `data.split_seed=1 instead of 0`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from differences(before.get(key), after.get(key), f"{where}.{key}" if where else str(key))
    elif before != after and not (where.startswith("data.") and is_place(where)):
        yield f"{where}={after} instead of {before}"


def moved_places(before: ConfigValue, after: ConfigValue, where: str = "data") -> Iterator[str]:
    """Describe each place that differs, in one line."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before:
            yield from moved_places(before[key], after.get(key), f"{where}.{key}")
    elif before != after and is_place(where):
        yield f"{where}: {before} -> {after}"


def found_again(config: Config, typed: Sequence[str]) -> Config:
    """Return the configuration with data that are no longer at their recorded root, but in DATA_ROOT.

    Only if the root came from the option, which takes it from DATA_ROOT, and was not in the overrides `typed` for the
    run.
    """
    root = (config["data"] or {}).get("root")
    is_typed = any(word.lstrip("+").startswith("data.root=") for word in typed)
    if not isinstance(root, str) or is_typed or not os.environ.get("DATA_ROOT") or Path(root).expanduser().is_dir():
        return config
    with suppress(ConfigurationError):  # an option of the user's, from a folder that is not known here
        now = compose.compose([f"data={config['choices']['data']}"])["data"]
        if now["_target_"] == config["data"]["_target_"] and Path(now["root"]).expanduser().is_dir():
            return config | {"data": config["data"] | {"root": now["root"]}}
    return config


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with the data's root and `init_from` as absolute paths."""
    data, start = config["data"], config["init_from"]
    if isinstance(data.get("root"), str):
        data = data | {"root": str(Path(data["root"]).expanduser().absolute())}
    places = {"data": data, "init_from": start and str(Path(start).absolute())}
    return without_source(config) | places


def configuration_hash(config: Config) -> str:
    """Return the SHA-256 of what must not change while a run remains the same run.

    Where the data lie and which weights training started from are left out: checkpoints contain the weights and the
    checksum of the data.
    """
    relevant = as_trained(config) | {"data": _stripped(config["data"])}
    return hashlib.sha256(json.dumps(_relevant(relevant, ""), sort_keys=True).encode()).hexdigest()


def _relevant(value: ConfigValue, where: str) -> ConfigValue:
    """Return a value as it is after it has been written to YAML and read again, without the keys set aside."""
    if isinstance(value, dict):
        inner = {key: f"{where}.{key}" if where else str(key) for key in value}
        return {str(key): _relevant(value[key], path) for key, path in inner.items() if path not in _ASIDE}
    if isinstance(value, list | tuple):
        return [_relevant(item, f"{where}[]") for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def as_trained(config: Config) -> Config:
    """Return the configuration without the weights that training started from: a checkpoint replaces them."""
    model = config["model"] or {}
    if model.get("_target_") in _FROM_LIBRARIES:
        model = model | {key: value for key, value in {"weights": None, "pretrained": False}.items() if key in model}
    return without_source(config) | {"init_from": None, "model": model}


def without_source(config: Config) -> Config:
    """Return the configuration without the run whose weights have decided which ones are pruned."""
    prune = config.get("prune")
    return config if prune is None else config | {"prune": prune | {"source": None}}
