"""Type aliases for values of a configuration, JSON, and objects of foreign classes."""

from collections.abc import Callable
from typing import Any

ConfigValue = Any
"""A value of YAML: None, bool, number, text, list or mapping."""
Config = dict[str, ConfigValue]
"""A YAML mapping as plain Python values: the whole configuration or a node of it. `configs/` defines its keys, and
`configuration/rules.py` checks them."""

Json = Any
"""A value as `json` reads and writes it: None, bool, number, text, list, or dict with text keys."""
JsonObject = dict[str, Json]
"""An object in one of our JSON files; the code that writes it documents its keys."""
Component = Any
"""An object built from a `_target_`, of any class; `contracts.adapt` checks it against its group's contract."""
Annotation = Any
"""A type annotation, as `typing.get_type_hints` returns it."""
Target = Callable[..., Component]
"""The class or function named by a `_target_`."""
