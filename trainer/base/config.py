"""The type of a configuration that has been composed."""

from typing import Any

Config = dict[str, Any]
"""A mapping of YAML as plain Python values: the whole configuration or a node of it. What a key holds is what
`configs/` says; `configuration/rules.py` has checked it."""
