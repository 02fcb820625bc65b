"""Composing a configuration in two thirds of the time: the tests compose some two thousand.

Each YAML file is parsed once per process and its forks, and no map for interpolations is built for files without a
defaults list. What is composed is the same; a test compares both.
"""

import copy
import io
from functools import cache
from typing import Any

import yaml
from hydra._internal import defaults_list as hydra_defaults
from omegaconf import DictConfig, ListConfig, OmegaConf

_load = OmegaConf.load
_interpolation_map = hydra_defaults._create_interpolation_map


def install() -> None:
    OmegaConf.load = _load_file  # type: ignore[method-assign]
    hydra_defaults._create_interpolation_map = _map_where_needed


def uninstall() -> None:
    OmegaConf.load = _load  # type: ignore[method-assign]
    hydra_defaults._create_interpolation_map = _interpolation_map


def _load_file(file_: Any) -> DictConfig | ListConfig:
    if not isinstance(file_, io.TextIOBase):
        return _load(file_)
    try:
        return copy.deepcopy(_parse(file_.read()))
    except yaml.YAMLError:  # whose message names the file
        file_.seek(0)
        return _load(file_)


@cache
def _parse(text: str) -> DictConfig | ListConfig:
    return _load(io.StringIO(text))


def _map_where_needed(overrides: Any, defaults: Any, self_added: bool) -> DictConfig | None:
    return _interpolation_map(overrides, defaults, self_added) if defaults else None
