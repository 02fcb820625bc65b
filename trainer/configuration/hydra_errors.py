"""Translates errors of Hydra and OmegaConf into one line each."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from trainer.base.bounded_yaml import TooMuch
from trainer.base.config import ConfigValue
from trainer.base.errors import ConfigurationError, GearshiftError, unknown
from trainer.configuration.groups import GROUPS
from trainer.configuration.settings import SETTINGS, keys_named


@contextmanager
def explained() -> Iterator[None]:
    """Convert errors of Hydra and OmegaConf into a ConfigurationError of one line."""
    try:
        yield
    except GearshiftError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain(error)) from error


def blamed_by(error: Exception, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that an error of Hydra refers to."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return [o for o in overrides if o.partition("=")[0].lstrip("+").partition("@")[0] == group and option in o]
    named = set(re.findall(r"'([^']*)'", text)) | set(re.findall(r"(?:Multiple values for|override) (\S+?)\.?\s", text))
    return [o for o in overrides if o in text or o.partition("=")[0].lstrip("+~") in named]


def explain(
    error: BaseException,
    blamed: Sequence[str] = (),
    loader: ConfigLoader | None = None,
    composed: DictConfig | None = None,
) -> str:
    """Return one line, which starts with the override if there is only one; `composed` is without blamed overrides."""
    line = _translated(error, loader, composed)
    if len(blamed) != 1 or blamed[0] in line:
        return line
    if loader is not None and (choice := _choice_meant(blamed[0], loader)):
        line = f"an option is chosen by {choice}"
    return f"{blamed[0]}: {line.removeprefix(blamed[0].partition('=')[0].lstrip('+~') + ': ')}"


def _choice_meant(override: str, loader: ConfigLoader) -> str | None:
    """Return `model=resnet18` for `model.name=resnet18`, whose key does not exist; None if the value is no option."""
    key, _, value = override.lstrip("+").partition("=")
    group, _, name = key.partition(".")
    is_option = name in ("name", "type", "kind") and group in GROUPS and value in loader.get_group_options(group)
    return f"{group}={value}" if is_option else None


def _translated(error: BaseException, loader: ConfigLoader | None, composed: DictConfig | None) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error, loader)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        kind = "" if isinstance(error, TooMuch) else "is not YAML: "
        return f"{mark.name}, line {mark.line + 1}: {kind}{error.problem}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return _bad_key(cause)
    if isinstance(error, RecursionError):
        return "a value refers to itself"
    text = " ".join(str(error).split())
    if match := re.search(r"Could not (?:override|delete(?: from config\.)?|append) '([^']+)'", text):
        return _no_such_key(match[1], loader, composed)
    if match := re.match(r"Multiple values for (\S+)\.", text):
        return f"{match[1]} has an option already; leave out the +"
    if match := re.search(r"An item is already at '([^']+)'", text):
        return f"{match[1]} exists; leave out the +"
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__} {text}".strip()


def _missing_option(error: MissingConfigException, loader: ConfigLoader | None) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"--config-name {option}: there is no {option}.yaml"
    options = error.options or (loader.get_group_options(group) if loader is not None else [])
    return unknown("option", option, options, f"{group}=")


def _no_such_key(name: str, loader: ConfigLoader | None, composed: DictConfig | None) -> str:
    groups = [group for group in loader.list_groups("") if group != "hydra"] if loader is not None else GROUPS
    known = {*groups, *SETTINGS, "early_stopping", "every"}
    where, *rest = name.partition("@")[0].split(".")
    content: ConfigValue = {} if composed is None else OmegaConf.to_container(composed, resolve=False)
    if where not in known:
        return unknown("key", where, known, elsewhere=[] if rest else keys_named(where, content))
    if rest and composed is None:
        return f"key '{name}' does not exist"
    inside = content.get(where)
    for key in rest:
        if not isinstance(inside, dict):
            return f"{where} has no keys"
        if key not in inside:
            return unknown("key", key, [k for k in inside if not str(k).startswith("_")], f"{where}.")
        inside, where = inside[key], f"{where}.{key}"
    return f"{where} exists, but cannot be deleted or renamed"


def _options_with(group: str, key: str) -> list[str]:
    """Return the options of a group whose files have a key."""
    from trainer.configuration.compose import config_folder  # which imports this module

    files = sorted((config_folder() / group).glob("*.yaml"))
    line = re.compile(rf"^{re.escape(key)}:", re.MULTILINE)
    return [f"{group}={path.stem}" for path in files if line.search(path.read_text(encoding="utf-8"))]


def _bad_key(cause: OmegaConfBaseException) -> str:
    full = str(cause.full_key or cause.key or "")
    parent = cause.parent_node
    message = (cause.msg or str(cause)).splitlines()[0]
    if match := re.match(r"Cannot merge \w+ with (Dict|List)Config", message):
        message = f"must be a {'list' if match[1] == 'List' else 'mapping'}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{full}=???: must be given a value"
    if re.search(r"not in (struct|')", message) and isinstance(parent, DictConfig):
        prefix, dot, key = full.rpartition(".")
        known = [str(k) for k in parent if not str(k).startswith("_") and k != "hydra"]
        add = f"; to add an operation: +{full}={{_target_: ...}}" if prefix == "augmentation" else ""
        if prefix in GROUPS and (options := _options_with(prefix, key)):
            add += f"; options with this key: {', '.join(options)}"
        elsewhere = [] if prefix else keys_named(key, {name: parent._get_node(name) for name in known})
        return unknown("key", key, known, prefix + dot, elsewhere) + add
    return f"{full}: {message}" if full else message
