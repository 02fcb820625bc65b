"""Limits on what Hydra and OmegaConf make of a few lines of a file: aliases, nesting and interpolations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import omegaconf._utils as omegaconf_utils
from omegaconf.base import Container
from omegaconf.errors import InterpolationResolutionError

from trainer.base.bounded_yaml import BoundedLoader
from trainer.base.config import ConfigValue

if TYPE_CHECKING:
    import yaml

_MOST_RESOLVED = 1_000  # interpolations while one configuration is composed; ours have about 15
_resolved = 0


def restart() -> None:
    """Count the interpolations of another configuration."""
    global _resolved
    _resolved = 0


@contextmanager
def bounded_loading() -> Iterator[None]:
    """Context manager in which files beyond the limits are refused, whoever loads them with OmegaConf.

    `${a}${a}` in a chain of 40 values, or a list of them, stands for as much as an alias of YAML does.
    """
    loader, resolve = vars(omegaconf_utils)["get_yaml_loader"], vars(Container)["resolve_parse_tree"]

    def bounded_loader() -> type["yaml.SafeLoader"]:
        return type("BoundedOmegaConfLoader", (loader(), BoundedLoader), {})

    def counted(self: Container, *args: ConfigValue, **kwargs: ConfigValue) -> ConfigValue:
        global _resolved
        _resolved += 1
        if _resolved > _MOST_RESOLVED:
            raise InterpolationResolutionError(f"its interpolations (${{...}}) are more than {_MOST_RESOLVED:,}")
        return resolve(self, *args, **kwargs)

    vars(omegaconf_utils)["get_yaml_loader"] = bounded_loader
    Container.resolve_parse_tree = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(omegaconf_utils)["get_yaml_loader"] = loader
        Container.resolve_parse_tree = resolve  # type: ignore[method-assign]
