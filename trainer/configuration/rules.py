"""The first check of a configuration, of keys and values, without torch.

It verifies that the runner's own settings are in range, that every key exists in the YAML file of its option, and that
every value has the type of the YAML file's default. `trainer.configuration.resolve` checks what needs torch:
signatures, shapes, ranges inside a component.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from trainer.base.config import Config
from trainer.base.errors import nearest, unknown
from trainer.configuration.groups import GROUPS
from trainer.configuration.settings import (
    EARLY_STOPPING,
    EVERY,
    FOLDS,
    OPTIMIZER,
    OPTIMIZER_OF,
    PARAMETER_GROUP,
    PRUNE,
    SETTINGS,
    Rule,
    duration,
    is_int,
    is_number,
    keys_named,
    whole,
)
from trainer.configuration.trust import hint, may_be_named

# files that change several keys at once
PSEUDO_GROUPS = ("experiment", "debug", "study")
SINGLE = {"_target_": "trainer.parallelism.single.Single"}  # one device
PIPELINE = {"_target_": "trainer.augmentation.Pipeline"}  # for operations that are added to an empty augmentation
# keys whose mapping may have any keys; they are checked later
OPEN = ("arguments", "coefficients", "parameter_groups")

_DECAYING = ("trainer.regularizers.L2", "trainer.regularizers.ElasticNet")


def move_decay(config: Config, typed: Iterable[str]) -> None:
    """Leave weight decay to a regularizer that decays, unless the optimizer's has been typed."""
    regularizer, optimizer = config.get("regularizer"), config.get("optimizer")
    if not isinstance(regularizer, dict) or regularizer.get("_target_") not in _DECAYING:
        return
    if isinstance(optimizer, dict) and optimizer.get("weight_decay") and "optimizer.weight_decay" not in typed:
        optimizer["weight_decay"] = 0.0


# --- the check --------------------------------------------------------------------------------------------


def check(config: Config, defaults: Config, typed: Iterable[str] = ()) -> list[str]:
    """Return every problem that can be found without torch, one line each.

    `defaults` are the same options without overrides; `typed` are the keys that the user gave.
    """
    return [*check_text(config, defaults, typed), *check_surroundings(config)]


def check_text(config: Config, defaults: Config, typed: Iterable[str] = ()) -> list[str]:
    """Return the problems that do not depend on the machine."""
    problems = [*_check_settings(config), *_check_cross_rules(config, set(typed))]
    for group in GROUPS:
        problems += _compare(config.get(group), defaults.get(group), group)
    problems += _check_top(config)
    problems += _check_optimizer(config.get("optimizer"), problems)
    problems += _check_epochs(config.get("data"), problems)
    return [*problems, *_check_named(config, problems)]


def check_surroundings(config: Config) -> list[str]:
    """Return the problems that depend on the machine: packages that are not trusted, a missing data folder."""
    groups = {group: config.get(group) for group in GROUPS}
    return [*_check_targets(groups, ""), *_check_root(config.get("data"))]


def _check_top(config: Config) -> Iterator[str]:
    top = {*SETTINGS, "early_stopping", "every", "parameter_groups", "prune", *GROUPS}
    for key, value in config.items():
        if key == "study":
            yield "study: is several runs, which the command starts: train study=..., without --multirun"
        elif key in PSEUDO_GROUPS:
            yield f"{key}: its file sets its own keys; make its first line '# @package _global_'"
        elif key not in top and key != "choices":
            yield _unknown_key("", key, top, value, keys_named(key, config))


def _check_settings(config: Config) -> Iterator[str]:
    # `epochs` and `batch_size` taken from an option are checked there
    rules = {key: rule for key, rule in SETTINGS.items() if not _from_option(config, key)}
    yield from _check_rules(config, rules, "")
    if "early_stopping" not in config:
        yield "early_stopping: is missing; early_stopping=null turns it off"
    elif config["early_stopping"] is not None:
        yield from _check_section(config["early_stopping"], EARLY_STOPPING, "early_stopping")
    yield from _check_section(config.get("every"), EVERY, "every")
    if config.get("prune") is not None:
        yield from _check_section(config["prune"], PRUNE, "prune")
    yield from _check_parameter_groups(config.get("parameter_groups"))


_RESERVED = ("decay", "no_decay", "all")


def _check_parameter_groups(groups: object) -> Iterator[str]:
    if not isinstance(groups, dict):
        such_as = "{head: {match: 'head.*', frozen: true}}"
        yield f"parameter_groups={_show(groups)}: must be groups by name, such as {such_as}"
        return
    for name, group in groups.items():
        where = f"parameter_groups.{name}"
        if name in _RESERVED or "/" in str(name):
            yield f"{where}: is not a name for a group; {', '.join(_RESERVED)} and names with a slash are taken"
        if not isinstance(group, dict):
            yield f"{where}={_show(group)}: must hold {', '.join(PARAMETER_GROUP)}"
            continue
        given = {key: rule for key, rule in PARAMETER_GROUP.items() if key in group or key == "match"}
        yield from _check_rules(group, given, f"{where}.")
        yield from (_unknown_key(f"{where}.", k, PARAMETER_GROUP, v) for k, v in group.items() if k not in given)
        if group.get("frozen") is True and group.get("unfreeze_at") is not None:
            yield f"{where}: frozen=true, unfreeze_at={group['unfreeze_at']}: give one of the two"


def _check_section(section: object, rules: Mapping[str, Rule], name: str) -> Iterator[str]:
    if not isinstance(section, dict):
        yield f"{name}={_show(section)}: must hold {', '.join(rules)}"
        return
    yield from _check_rules(section, rules, f"{name}.")
    yield from (_unknown_key(f"{name}.", key, rules, value) for key, value in section.items() if key not in rules)


def _check_rules(section: Config, rules: Mapping[str, Rule], prefix: str) -> Iterator[str]:
    for key, rule in rules.items():
        if key not in section:
            yield f"{prefix}{key}: is missing"
        elif (problem := rule(section[key])) is not None:
            yield f"{prefix}{key}={_show(section[key])}: {problem}"


def _check_cross_rules(config: Config, typed: set[str]) -> Iterator[str]:
    epochs, steps = config.get("epochs"), config.get("steps")
    if {"epochs", "steps"} <= typed and epochs is not None and steps is not None:
        yield f"epochs={epochs}, steps={steps}: give one of the two"
    given = {"epochs", "steps"} <= config.keys() and not _from_option(config, "epochs")
    if epochs is None and steps is None and given:
        yield "epochs=null, steps=null: one of the two must be given"
    accumulate, micro_batch = config.get("accumulate"), config.get("micro_batch")
    if isinstance(accumulate, int) and accumulate > 1 and micro_batch is not None:
        yield f"accumulate={accumulate}, micro_batch={micro_batch}: both split the batch; give one of the two"


def _compare(value: object, default: object, where: str) -> Iterator[str]:
    """Yield unknown and missing keys, and values whose type differs from that of the option's default.

    If the user names another class, its signature is checked later instead.
    """
    if isinstance(default, dict) and isinstance(value, dict):
        if where == "augmentation" and value and not default:
            default = PIPELINE
        target, given = default.get("_target_"), value.get("_target_")
        if target is not None and (given is None or given == ""):
            yield f"{where}._target_={_show(given)}: must name a class, such as {target}"
        if where.rpartition(".")[2] in OPEN or target != given:
            return
        is_pipeline = where == "augmentation" and target is not None
        for key, item in value.items():
            if where == "data" and key in FOLDS and key not in default:
                yield from _check_rules({key: item}, {key: FOLDS[key]}, "data.")
            elif key in default:
                yield from _compare(item, default[key], f"{where}.{key}")
            elif not is_pipeline:
                yield _unknown_key(f"{where}.", str(key), default, item)
            elif not (isinstance(item, dict) and item.get("_target_")):  # else one more operation
                suggestion = nearest(str(key), default)
                yield (
                    f"{where}.{key}={_show(item)}: must be an operation, e.g. "
                    "{_target_: trainer.augmentation.HorizontalFlip}"
                    + (f". Did you mean {where}.{suggestion}?" if suggestion else "")
                )
        # operations of a pipeline may be deleted, other keys may not
        gone = [key for key, item in default.items() if key not in value and not isinstance(item, dict)]
        yield from (f"{where}.{key}: is missing; it cannot be deleted" for key in gone)
    elif isinstance(default, dict):
        options = f"an option of {where}" if "." not in where else "a mapping"
        yield f"{where}={_show(value)}: must be {options}" + (f", or its keys, {where}.KEY=..." if default else "")
    elif value is not None and default is not None and (kind := _mismatch(value, default)):
        such_as = "" if isinstance(default, bool) else f", such as {_show(default)}"
        yield f"{where}={_show(value)}: must be {kind}{such_as}"


def _mismatch(value: object, default: object) -> str | None:
    """Return the expected type if `value` does not have it, else None; types that a default may represent are
    accepted."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if is_int(default):
        fine = is_int(value) or (isinstance(value, float) and math.isfinite(value))
        return None if fine else "a number"
    if isinstance(default, float):
        fine = is_number(value) and not math.isnan(value)
        return None if fine else "a number"
    if isinstance(default, list):
        if not isinstance(value, list):
            return "a list"
        return "a list without nan" if any(isinstance(item, float) and math.isnan(item) for item in value) else None
    if isinstance(default, str) and default and duration(default) is None:
        problem = duration(value)
        return problem and problem.removeprefix("must be ")
    if isinstance(default, str):
        return "text" if isinstance(value, dict | list) else None
    return None


def _check_optimizer(optimizer: object, known: list[str]) -> Iterator[str]:
    if not isinstance(optimizer, dict):
        return
    for key, rule in {**OPTIMIZER, **OPTIMIZER_OF.get(str(optimizer.get("_target_")), {})}.items():
        if key in optimizer and not _known(f"optimizer.{key}", known):
            problem = rule(optimizer[key])
            if problem is not None:
                yield f"optimizer.{key}={_show(optimizer[key])}: {problem}"


def check_study(node: Config, written: Config) -> list[str]:
    """Return the problems of the keys of a study, whose file has the content `written`."""
    found = [*_compare(node, written, "study"), *_check_targets({"study": node}, "")]
    return found if found or node.get("_target_") else ["study: names no class; its file needs a line _target_"]


def _check_targets(node: object, where: str) -> Iterator[str]:
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _check_targets(item, f"{where}[{index}]")
    if not isinstance(node, dict):
        return
    target = node.get("_target_")
    if target not in (None, "") and not (isinstance(target, str) and may_be_named(target)):
        yield f"{where}._target_={_show(target)}: is not in a trusted package{hint(target)}"
    for key, item in node.items():
        yield from _check_targets(item, f"{where}.{key}".lstrip("."))


def _check_named(config: Config, known: list[str]) -> Iterator[str]:
    """Every group must have an option and name a class; some may be empty instead."""
    for group in GROUPS:
        node = config.get(group)
        named = isinstance(node, dict) and node.get("_target_")
        nothing = node in (None, {}) and GROUPS[group].may_be_nothing
        if not named and not nothing and not _known(group, known):
            yield f"{group}={_show(node)}: names no class; its file needs a line _target_: PACKAGE.CLASS"
        elif not isinstance(config["choices"].get(group), str) and not _known(group, known):
            yield f"choices.{group}: is missing"


def _known(key: str, problems: list[str]) -> bool:
    return any(problem.startswith((f"{key}=", f"{key}.", f"{key}:")) for problem in problems)


def _from_option(config: Config, key: str) -> bool:
    """Whether a setting has the default that the optimizer's or the data's option gives it."""
    nodes = [config.get(group) for group in ("optimizer", "data")]
    given = [node[key] for node in nodes if isinstance(node, dict) and key in node]
    return key in ("epochs", "batch_size") and bool(given) and bool(given[0] == config.get(key))


def _check_epochs(data: object, known: list[str]) -> Iterator[str]:
    if isinstance(data, dict) and "epochs" in data and not _known("data.epochs", known):
        problem = whole(1)(data["epochs"])
        if problem is not None:
            yield f"data.epochs={_show(data['epochs'])}: {problem}"


def _check_root(data: object) -> Iterator[str]:
    """A data folder that the user names must exist; downloads create only the default `data`."""
    root = data.get("root") if isinstance(data, dict) else None
    if not isinstance(root, str) or root == "data" or Path(root).expanduser().is_dir():
        return
    what = "is a file" if Path(root).expanduser().exists() else "there is no such folder"
    is_photographs = isinstance(data, dict) and str(data.get("_target_")).endswith(".ImageFolder")
    named = "of the photographs" if is_photographs else "with the data sets (or set DATA_ROOT)"
    yield f"data.root={root}: {what}; name the folder {named}"


def _unknown_key(prefix: str, key: str, known: Iterable[str], value: object, elsewhere: Iterable[str] = ()) -> str:
    names = [str(k) for k in known if not str(k).startswith("_")]
    shown = "" if isinstance(value, dict) else f"={_show(value)}"
    return f"{prefix}{key}{shown}: {unknown('key', str(key), names, prefix, elsewhere)}"


def _show(value: object) -> str:
    """Return the value as it would be typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_show(item)}" for key, item in value.items()) + "}"
    return str(value)
