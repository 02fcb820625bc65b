"""Builds components from their nodes and checks them against the contracts of their groups."""

from pkgutil import resolve_name

from trainer.base.config import Component, Config
from trainer.base.errors import ConfigurationError
from trainer.configuration.build import build, problems
from trainer.configuration.groups import GROUPS
from trainer.contracts import adapt


def build_component(config: Config, group: str, **given: object) -> Component:
    """Build the component of a group, with all members of its contract; returns None for an empty group.

    Raises ConfigurationError if it does not fulfil the contract.
    """
    component = build(node_of(config, group), group, **given)
    if component is None:
        return None
    try:
        return adapt(group, resolve_name(GROUPS[group].contract), component)
    except ValueError as error:
        raise ConfigurationError(f"{group}._target_={config[group]['_target_']}: {error}") from error


def node_of(config: Config, group: str) -> Config:
    """Return a group's node without `data.epochs`, which is for the runner and not for the constructor."""
    node = config[group] or {}
    return {key: value for key, value in node.items() if (group, key) != ("data", "epochs")}


def node_problems(config: Config) -> list[str]:
    """Return the problems of the nodes of all groups, without building anything."""
    return [line for group, row in GROUPS.items() for line in problems(node_of(config, group), group, row.given)]
