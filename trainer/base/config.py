"""Names for what has no type of its own: values of a configuration, JSON, and objects of other people's classes."""

from collections.abc import Callable
from typing import Any

ConfigValue = Any
"""A value of YAML: None, bool, number, text, list or mapping."""
Config = dict[str, ConfigValue]
"""A mapping of YAML as plain Python values: the whole configuration or a node of it. What a key holds is what
`configs/` says; `configuration/rules.py` has checked it."""

Json = Any
"""A value as `json` reads and writes it: None, bool, number, text, list, or dict by text."""
JsonObject = dict[str, Json]
"""An object of a JSON file of ours, by key; what it holds is said where it is written."""
Component = Any
"""An object that a `_target_` builds, whatever its class; `contracts.adapt` holds it against its group's contract."""
Target = Callable[..., Component]
"""The class or function that a `_target_` names."""
