"""What a configuration may say, checked as text and numbers, without torch.

Three questions are answered here: are the runner's own settings in range, does every key exist in the YAML of
its option, and has every value the kind that the YAML's own default has. What needs torch (signatures, shapes,
ranges inside a component) is `trainer.blueprint`'s.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.base.text import SENTENCE, did_you_mean, written
from trainer.duration import parse_duration
from trainer.errors import unknown
from trainer.improvement import direction

Config = dict[str, Any]
Rule = Callable[[Any], str | None]

GROUPS = (
    "data", "preprocessing", "sampler", "augmentation", "model", "initializer", "loss", "optimizer",
    "schedule", "parallelism", "diagnostics",
)  # fmt: skip
# files that change several keys at once
PSEUDO_GROUPS = ("experiment", "debug")
# the groups whose choice may be nothing
SINGLE = {"_target_": "trainer.parallelism.single.Single"}  # one device, whatever the run was made with
MAY_BE_NOTHING = ("augmentation", "initializer", "diagnostics")
PIPELINE = {"_target_": "trainer.augmentation.Pipeline"}  # what operations are put into where there was nothing
# keys whose mapping is open: handed on as it is and checked against a signature later
OPEN = ("arguments",)
# the packages whose classes a configuration may name; `--trust` and GEARSHIFT_TRUST widen it
TRUSTED = (
    "trainer.data", "trainer.preprocessing", "trainer.samplers", "trainer.augmentation", "trainer.models",
    "trainer.initializers", "trainer.losses", "trainer.optimizers", "trainer.schedules",
    "trainer.parallelism", "trainer.diagnostics", "trainer.examples",
    "torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms", "torchvision.ops",
    "timm", "kornia", "pytorch_optimizer",
)  # fmt: skip


def trusted_packages() -> tuple[str, ...]:
    """The allow list, with what GEARSHIFT_TRUST adds (package names, separated by commas)."""
    return TRUSTED + tuple(name.strip() for name in os.environ.get("GEARSHIFT_TRUST", "").split(",") if name)


def is_trusted(module: str) -> bool:
    """Whether a dotted name lies in a trusted package."""
    return any(module == name or module.startswith(name + ".") for name in trusted_packages())


# --- rules of the runner's own settings -------------------------------------------------------------------


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(minimum: int, *words: str | None, maximum: int = 2**63 - 1) -> Rule:
    """A whole number from `minimum` to `maximum`, or one of the words (None is shown as null)."""
    at_most = f" and at most {maximum}" if maximum < 2**63 - 1 else ""
    also = "".join(f" or {'null' if word is None else word}" for word in words)

    def rule(value: Any) -> str | None:
        if (_is_int(value) and minimum <= value <= maximum) or value in words:
            return None
        too_large = " and below 2^63" if _is_int(value) and value > maximum and not at_most else ""
        known = [word for word in words if word]
        hint = did_you_mean(value, known, SENTENCE) if isinstance(value, str) else ""
        return f"must be a whole number of at least {minimum}{at_most}{too_large}{also}{hint}"

    return rule


def positive_or_null(value: Any) -> str | None:
    fine = value is None or (_is_number(value) and 0 < value < math.inf)
    return None if fine else "must be a number above 0 or null"


def not_negative(value: Any) -> str | None:
    fine = _is_number(value) and 0 <= value < math.inf
    return None if fine else "must be a number of at least 0"


def one_of(*words: Any) -> Rule:
    """One of these words."""
    shown = [written(word) for word in words]

    def rule(value: Any) -> str | None:
        if any(value == word and type(value) is type(word) for word in words):
            return None
        return f"must be one of {', '.join(shown)}{did_you_mean(value, shown, SENTENCE)}"

    return rule


def duration(value: Any) -> str | None:
    try:
        fine = math.isfinite(parse_duration(value).amount * 2**63)
    except ValueError as error:
        return str(error)
    return None if fine else "is longer than anything"


def period(value: Any) -> str | None:
    problem = duration(value)
    if problem is None and parse_duration(value).amount == 0:
        return "must be longer than nothing"
    return problem


def device(value: Any) -> str | None:
    text = str(value)
    numbered = text.startswith("cuda:") and text[5:].isdigit()
    if numbered or text in ("auto", "cpu", "cuda", "mps"):
        return None
    return "must be auto, cpu, cuda, cuda:N or mps"


def text_or_null(value: Any) -> str | None:
    return None if value is None or isinstance(value, str) else "must be text or null"


def folder_name(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        plain = value.isprintable() and value == value.strip() and not set(value) & set("/\\")
        if plain and value not in ("", ".", "..") and len(value.encode()) <= 100:
            return None
    return "must be a plain name for a folder (no slashes, at most 100 bytes) or null"


def words(value: Any) -> str | None:
    fine = isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)
    return None if fine else "must be a list, e.g. [a,b]"


def patterns(value: Any) -> str | None:
    fine = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return None if fine else "must be a list of bias, norm and patterns of names, e.g. [bias,norm,*.embed*]"


def mode(value: Any) -> str | None:
    try:
        direction("", str(value))
    except ValueError:
        return "must be min, max or auto"
    return None


SETTINGS: dict[str, Rule] = {
    "name": folder_name,
    "tags": words,
    "epochs": whole(1, None),
    "steps": whole(1, None),
    "batch_size": whole(1, "full"),
    "limit_batches": whole(1, None),
    "accumulate": whole(1),
    "micro_batch": whole(1, None, "auto"),
    "seed": whole(0),
    "deterministic": one_of(True, False),
    "device": device,
    "threads": whole(1, None, maximum=1024),
    "precision": one_of("fp32", "bf16", "fp16", "auto"),
    "compile": one_of(True, False),
    "channels_last": one_of("auto", True, False),
    "clip_norm": positive_or_null,
    "clip_value": positive_or_null,
    "no_weight_decay": patterns,
    "on_nonfinite": one_of("stop", "skip", "rollback"),
    "init_from": text_or_null,
    "profile": whole(1, None),
}
EARLY_STOPPING: dict[str, Rule] = {
    "monitor": lambda value: None if isinstance(value, str) else "must be the name of a metric",
    "mode": mode,
    "patience": whole(1),
    "min_delta": not_negative,
    "after": duration,
}


def _within(low: float, high: float, open_low: bool = False, open_high: bool = False) -> Rule:
    shown = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"

    def inside(value: Any) -> bool:
        above = _is_number(value) and (value > low or (value == low and not open_low))
        return above and (value < high or (value == high and not open_high))

    def rule(value: Any) -> str | None:
        fine = all(inside(item) for item in value) if isinstance(value, list) else inside(value)
        return None if fine else f"must be in {shown}"

    return rule


# names that mean the same in every optimizer of torch and of its relatives; torch lets a momentum of 1.5 pass
OPTIMIZER: dict[str, Rule] = {
    "lr": _within(0, math.inf, open_low=True, open_high=True),
    "momentum": _within(0, 1, open_high=True),
    "dampening": _within(0, 1),
    "betas": _within(0, 1, open_high=True),
    "eps": _within(0, math.inf, open_high=True),
    "weight_decay": _within(0, math.inf, open_high=True),
}
EVERY: dict[str, Rule] = {"log": period, "evaluate": period, "checkpoint": period}


# --- the check --------------------------------------------------------------------------------------------


def check(config: Config, defaults: Config, typed: Iterable[str] = ()) -> list[str]:
    """Every problem that can be seen without torch, a line each.

    `defaults` is the same choice of options with nothing overridden; `typed` are the keys that the user gave.
    """
    return [*check_text(config, defaults, typed), *check_surroundings(config)]


def check_text(config: Config, defaults: Config, typed: Iterable[str] = ()) -> list[str]:
    """What is wrong wherever the configuration is read."""
    problems = [*_check_settings(config), *_check_cross_rules(config, set(typed))]
    for group in GROUPS:
        problems += _compare(config.get(group), defaults.get(group), group)
    problems += _check_top(config)
    problems += _check_optimizer(config.get("optimizer"), problems)
    problems += _check_epochs(config.get("data"), problems)
    return [*problems, *_check_named(config, problems)]


def check_surroundings(config: Config) -> list[str]:
    """What the configuration needs and is not here: packages that are trusted, a folder of data."""
    groups = {group: config.get(group) for group in GROUPS}
    return [*_check_targets(groups, ""), *_check_root(config.get("data"))]


def _check_top(config: Config) -> Iterator[str]:
    top = {*SETTINGS, "early_stopping", "every", *GROUPS}
    for key, value in config.items():
        if key in PSEUDO_GROUPS:
            yield f"{key}: its file sets keys of its own; make its first line '# @package _global_'"
        elif key not in top and key != "choices":
            yield _unknown_key("", key, top, value)


def _check_settings(config: Config) -> Iterator[str]:
    # an `epochs` that comes from data.epochs is complained of there
    rules = {key: rule for key, rule in SETTINGS.items() if key != "epochs" or not _from_data(config)}
    yield from _check_rules(config, rules, "")
    if "early_stopping" not in config:
        yield "early_stopping: is missing; early_stopping=null turns it off"
    elif config["early_stopping"] is not None:
        yield from _check_section(config["early_stopping"], EARLY_STOPPING, "early_stopping")
    yield from _check_section(config.get("every"), EVERY, "every")


def _check_section(section: Any, rules: Mapping[str, Rule], name: str) -> Iterator[str]:
    if not isinstance(section, dict):
        yield f"{name}={written(section)}: must hold {', '.join(rules)}"
        return
    yield from _check_rules(section, rules, f"{name}.")
    yield from (_unknown_key(f"{name}.", key, rules, value) for key, value in section.items() if key not in rules)


def _check_rules(section: Config, rules: Mapping[str, Rule], prefix: str) -> Iterator[str]:
    for key, rule in rules.items():
        if key not in section:
            yield f"{prefix}{key}: is missing"
        elif (problem := rule(section[key])) is not None:
            yield f"{prefix}{key}={written(section[key])}: {problem}"


def _check_cross_rules(config: Config, typed: set[str]) -> Iterator[str]:
    epochs, steps = config.get("epochs"), config.get("steps")
    if {"epochs", "steps"} <= typed and epochs is not None and steps is not None:
        yield f"epochs={epochs}, steps={steps}: give one of the two"
    given = {"epochs", "steps"} <= config.keys() and not _from_data(config)
    if epochs is None and steps is None and given:
        yield "epochs=null, steps=null: one of the two must be given"
    accumulate, micro_batch = config.get("accumulate"), config.get("micro_batch")
    if isinstance(accumulate, int) and accumulate > 1 and micro_batch is not None:
        yield f"accumulate={accumulate}, micro_batch={micro_batch}: both split the batch; give one of the two"


def _compare(value: Any, default: Any, where: str) -> Iterator[str]:
    """Keys that the option's YAML does not list, or that are gone, and values of another kind than its default.

    Where another class is named its own signature decides, later.
    """
    if isinstance(default, dict) and isinstance(value, dict):
        if where == "augmentation" and value and not default:
            default = PIPELINE
        target, given = default.get("_target_"), value.get("_target_")
        if target is not None and (given is None or given == ""):
            yield f"{where}._target_={written(given)}: must name a class, such as {target}"
        if where.rpartition(".")[2] in OPEN or target != given:
            return
        is_pipeline = where == "augmentation" and target is not None
        for key, item in value.items():
            if key in default:
                yield from _compare(item, default[key], f"{where}.{key}")
            elif not is_pipeline:
                yield _unknown_key(f"{where}.", str(key), default, item)
            elif not (isinstance(item, dict) and item.get("_target_")):  # else one more operation
                yield (
                    f"{where}.{key}={written(item)}: must be an operation, e.g. "
                    "{_target_: trainer.augmentation.HorizontalFlip}"
                    + did_you_mean(key, default, f". Did you mean {where}.{{}}?")
                )
        # a part of a pipeline may be taken out; the other keys are what the run is compared by
        gone = [key for key, item in default.items() if key not in value and not isinstance(item, dict)]
        yield from (f"{where}.{key}: is missing; it cannot be deleted" for key in gone)
    elif isinstance(default, dict):
        options = f"an option of {where}" if "." not in where else "a mapping"
        yield f"{where}={written(value)}: must be {options}" + (f", or keys of it, {where}.KEY=..." if default else "")
    elif value is not None and default is not None and (kind := _mismatch(value, default)):
        such_as = "" if isinstance(default, bool) else f", such as {written(default)}"
        yield f"{where}={written(value)}: must be {kind}{such_as}"


def _mismatch(value: Any, default: Any) -> str | None:
    """What kind was wanted, or None when `value` has it. Kinds that a default may stand for are not narrowed."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if _is_int(default):
        fine = _is_int(value) or (isinstance(value, float) and math.isfinite(value))
        return None if fine else "a number"
    if isinstance(default, float):
        fine = _is_number(value) and not math.isnan(value)
        return None if fine else "a number"
    if isinstance(default, list):
        return None if isinstance(value, list) else "a list"
    if isinstance(default, str) and default and duration(default) is None:
        problem = duration(value)
        return problem and problem.removeprefix("must be ")
    if isinstance(default, str):
        return "text" if isinstance(value, dict | list) else None
    return None


def _check_optimizer(optimizer: Any, known: list[str]) -> Iterator[str]:
    if not isinstance(optimizer, dict):
        return
    for key, rule in OPTIMIZER.items():
        if key in optimizer and not _known(f"optimizer.{key}", known):
            problem = rule(optimizer[key])
            if problem is not None:
                yield f"optimizer.{key}={written(optimizer[key])}: {problem}"


def _check_targets(node: Any, where: str) -> Iterator[str]:
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _check_targets(item, f"{where}[{index}]")
    if not isinstance(node, dict):
        return
    target = node.get("_target_")
    if target not in (None, "") and not (isinstance(target, str) and is_trusted(target)):
        package = str(target).partition(".")[0]
        hint = f"; if you trust its code: --trust {package}" if package.isidentifier() else ""
        yield f"{where}._target_={written(target)}: is not in a trusted package{hint}"
    for key, item in node.items():
        yield from _check_targets(item, f"{where}.{key}".lstrip("."))


def _check_named(config: Config, known: list[str]) -> Iterator[str]:
    """A group may be nothing where that is an option; the others must name a class. All have been chosen."""
    for group in GROUPS:
        node = config.get(group)
        named = isinstance(node, dict) and node.get("_target_")
        nothing = node in (None, {}) and group in MAY_BE_NOTHING
        if not named and not nothing and not _known(group, known):
            yield f"{group}={written(node)}: names no class; its file needs a line _target_: PACKAGE.CLASS"
        elif not isinstance(config["choices"].get(group), str) and not _known(group, known):
            yield f"choices.{group}: is missing"


def _known(key: str, problems: list[str]) -> bool:
    return any(problem.startswith((f"{key}=", f"{key}.", f"{key}:")) for problem in problems)


def _from_data(config: Config) -> bool:
    data = config.get("data")
    return isinstance(data, dict) and "epochs" in data and data["epochs"] == config.get("epochs")


def _check_epochs(data: Any, known: list[str]) -> Iterator[str]:
    if isinstance(data, dict) and "epochs" in data and not _known("data.epochs", known):
        problem = whole(1)(data["epochs"])
        if problem is not None:
            yield f"data.epochs={written(data['epochs'])}: {problem}"


def _check_root(data: Any) -> Iterator[str]:
    """A folder of data that was named must exist; only the default `data` is ever made by a download."""
    root = data.get("root") if isinstance(data, dict) else None
    if not isinstance(root, str) or root == "data" or Path(root).expanduser().is_dir():
        return
    what = "is a file" if Path(root).expanduser().exists() else "there is no such folder"
    yield f"data.root={root}: {what}; name the folder that holds the data sets (or set DATA_ROOT)"


def _unknown_key(prefix: str, key: str, known: Iterable[str], value: Any) -> str:
    names = [str(k) for k in known if not str(k).startswith("_")]
    shown = "" if isinstance(value, dict) else f"={written(value)}"
    return f"{prefix}{key}{shown}: {unknown('key', str(key), names, prefix)}"
