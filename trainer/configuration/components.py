"""Components: built from their nodes, and held against the contract of their group."""

from pkgutil import resolve_name

from trainer.base.config import Component, Config
from trainer.base.errors import ConfigurationError
from trainer.configuration.build import build, problems
from trainer.configuration.groups import GROUPS
from trainer.contracts import adapt


def build_component(config: Config, group: str, **given: object) -> Component:
    """The object of a group with every capability of its contract; None where the group is nothing.

    Raises ConfigurationError for one that is not what the group asks for.
    """
    component = build(node_of(config, group), group, **given)
    if component is None:
        return None
    try:
        return adapt(group, resolve_name(GROUPS[group].contract), component)
    except ValueError as error:
        raise ConfigurationError(f"{group}._target_={config[group]['_target_']}: {error}") from error


def node_of(config: Config, group: str) -> Config:
    """A group's node as its constructor sees it: `data.epochs` is a suggestion to the runner."""
    node = config[group] or {}
    return {key: value for key, value in node.items() if (group, key) != ("data", "epochs")}


def node_problems(config: Config) -> list[str]:
    """What is wrong with the nodes of all groups, found without building anything."""
    return [line for group, row in GROUPS.items() for line in problems(node_of(config, group), group, row.given)]
