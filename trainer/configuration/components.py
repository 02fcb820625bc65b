"""Builds components from their nodes and checks them against the contracts of their groups."""

import inspect
from pkgutil import resolve_name

from trainer.base.config import Component, Config, ConfigValue
from trainer.base.errors import ConfigurationError
from trainer.configuration.build import build, locate, problems
from trainer.configuration.groups import GROUPS
from trainer.configuration.optimizer_keys import RUNNERS
from trainer.configuration.settings import FOLDS
from trainer.contracts import Schedule, adapt
from trainer.schedules import Grown, Growth, Warmed

WARMUP_KEYS = ("warmup", "warmup_start", "warmup_shape")
GROWTH_KEYS = ("max_batch",)


def build_component(config: Config, group: str, **given: object) -> Component:
    """Build the component of a group, with all members of its contract; returns None for an empty group.

    Raises ConfigurationError if it does not fulfil the contract.
    """
    component = _adapted(config, group, given)
    return _folded(config, component) if group == "data" and _fold_keys(config["data"]) else component


def _folded(config: Config, component: Component) -> Component:
    """Divide the samples of a data set into folds, as its keys say."""
    keys = {key: value for key, value in _fold_keys(config["data"]).items() if value is not None}
    if keys.get("fold") is None and keys.get("folds") is None:
        return component
    if not {"fold", "folds"} <= keys.keys():
        raise ConfigurationError("data.fold, data.folds: both must be given, such as data.fold=0 data.folds=5")
    seed = config["data"].get("split_seed", 0)
    node = {"_target_": "trainer.data.folds.Folded", "pool": False, **keys}
    return build(node, "data", data=component, seed=seed)


def _fold_keys(node: Config) -> Config:
    """The keys of the folds in the data's node. A class whose constructor has such a key makes its own folds."""
    keys = {key: value for key, value in (node or {}).items() if key in FOLDS}
    if not keys or not node.get("_target_"):
        return {}
    parameters = inspect.signature(locate(node["_target_"], "data")).parameters
    return {} if keys.keys() & parameters else keys


def _adapted(config: Config, group: str, given: dict[str, object]) -> Component:
    component = build(node_of(config, group), group, **given)
    if component is None:
        if (config[group] or {}).get("_target_"):
            raise ConfigurationError(f"{group}._target_={config[group]['_target_']}: returns None")
        return None
    try:
        return adapt(group, resolve_name(GROUPS[group].contract), component)
    except ValueError as error:
        raise ConfigurationError(f"{group}._target_={config[group]['_target_']}: {error}") from error


def build_schedule(
    config: Config, *, steps_per_epoch: int, total_steps: int, batch_size: int, num_train: int, **given: object
) -> Schedule:
    """Build the schedule, with the growth of the batch in place of its drops if asked for, and its warm-up if there is
    one; the schedule then begins after the warm-up."""
    warmup, length = None, total_steps
    if keys := _own_keys(config["schedule"], WARMUP_KEYS):
        node = {"_target_": "trainer.schedules.Warmup", "warmup": "0step", **keys}
        warmup = build(node, "schedule", steps_per_epoch=steps_per_epoch, total_steps=total_steps)
        length -= warmup.steps
    given |= {"steps_per_epoch": steps_per_epoch, "total_steps": length}
    schedule: Schedule = build_component(config, "schedule", **given)
    if (keys := _own_keys(config["schedule"], GROWTH_KEYS)) and keys["max_batch"] is not None:
        schedule = _growing(schedule, keys["max_batch"], batch_size=batch_size, num_train=num_train)
    return Warmed(warmup, schedule) if warmup is not None and warmup.steps else schedule


def _growing(schedule: Schedule, max_batch: ConfigValue, **given: int) -> Schedule:
    try:
        return Grown(Growth(max_batch, **given), schedule)
    except ValueError as error:
        raise ConfigurationError(f"schedule.{error}") from error


def node_of(config: Config, group: str) -> Config:
    """Return a group's node without the keys that are for the runner and not for the constructor: `data.epochs`, those
    of a schedule's warm-up and growth, of folds, and some of an optimizer."""
    node = config[group] or {}
    runners: tuple[str, ...] = {"data": ("epochs",), "optimizer": RUNNERS}.get(group, ())
    if group == "data":
        runners += tuple(_fold_keys(node))
    if group == "schedule":
        runners = tuple(_own_keys(node, (*WARMUP_KEYS, *GROWTH_KEYS)))
    return {key: value for key, value in node.items() if key not in runners}


def _own_keys(node: Config, names: tuple[str, ...]) -> Config:
    """The keys in a schedule's node that are for the runner: those of the warm-up, or of the growth of the batch. A
    class whose constructor has such a key does this itself."""
    keys = {key: value for key, value in node.items() if key in names}
    if not keys or not node.get("_target_"):
        return {}
    parameters = inspect.signature(locate(node["_target_"], "schedule")).parameters
    return {} if keys.keys() & parameters else keys


def node_problems(config: Config) -> list[str]:
    """Return the problems of the nodes of all groups, without building anything."""
    return [line for group in GROUPS for line in _problems_of(config, group)]


def _problems_of(config: Config, group: str) -> list[str]:
    try:
        node = node_of(config, group)
    except ConfigurationError as error:  # its class cannot be found, or has no signature
        return error.problems
    return problems(node, group, GROUPS[group].given)
