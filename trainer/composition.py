"""From YAML files and overrides to one plain, resolved configuration; Hydra's errors become one line each."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer import config as rules
from trainer.config import GROUPS, Config
from trainer.errors import ConfigurationError, GearshiftError, unknown

NAME = "train"
_PSEUDO_GROUPS = ("experiment", "debug")


def config_folder() -> Path:
    """The clone's `configs/` when there is one, else the copy inside the package."""
    package = Path(__file__).resolve().parent
    clone = package.parent / "configs"
    return clone if (clone / f"{NAME}.yaml").is_file() else package / "configs"


def slug(text: str) -> str:
    """Override text as a folder name: no slashes or odd characters, at most 80 characters."""
    return re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", str(text))[:80].strip("-.") or "default"


def register_resolvers() -> None:
    """`${slug:text}` for sweep folders; safe to call again."""
    OmegaConf.register_new_resolver("slug", slug, replace=True)


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """Compose and check a configuration from Python, as the command line does: `compose(["optimizer=adamw"])`.

    `config_dir` holds a user's own options, as `--config-dir` does. Raises ConfigurationError with every
    problem that can be seen without torch.
    """
    register_resolvers()
    with explained(), initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = hydra_compose(NAME, [*overrides, *search_path(config_dir)], return_hydra_config=True)
        return settle(composed, composed.hydra, GlobalHydra.instance().config_loader())


def search_path(config_dir: str | Path | None) -> list[str]:
    """The override that makes Hydra look for options in a folder, too; none for None.

    Raises ConfigurationError where there is no such folder, which Hydra would pass over.
    """
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        raise ConfigurationError(f"config_dir={config_dir}: there is no such folder")
    return [_searchpath([f"file://{Path(config_dir).resolve()}"])]


def _searchpath(entries: Iterable[str]) -> str:
    quoted = ("'" + entry.replace("\\", "\\\\").replace("'", "\\'") + "'" for entry in entries)
    return f"hydra.searchpath=[{','.join(quoted)}]"


def settle(composed: DictConfig, hydra: DictConfig, loader: ConfigLoader) -> Config:
    """Resolve what Hydra composed into plain containers and check it as far as text goes.

    `hydra` is Hydra's own node. The choice made in each group is kept under `choices`. Raises
    ConfigurationError with every problem.
    """
    choices = {group: option for group, option in hydra.runtime.choices.items() if "/" not in group and option}
    typed = typed_keys(hydra.overrides.task)
    folders = OmegaConf.select(hydra, "searchpath") or []
    search = [_searchpath(folders)] if folders else []
    defaults = loader.load_configuration(
        NAME,
        [*(f"{g}={o}" for g, o in choices.items() if g not in _PSEUDO_GROUPS and g in GROUPS), *search],
        run_mode=RunMode.RUN,
    )
    config = plain(composed)
    if config.get("steps") is not None and "epochs" not in typed:
        config["epochs"] = None
    config["choices"] = choices
    if problems := rules.check(config, plain(defaults), typed):
        raise ConfigurationError(problems)
    return config


def plain(composed: DictConfig) -> Config:
    """Everything but Hydra's own node, resolved, as dicts and lists. Raises ConfigurationError."""
    try:
        return {
            str(key): OmegaConf.to_container(composed[key], resolve=True)
            if OmegaConf.is_config(composed[key])
            else composed[key]
            for key in composed
            if key != "hydra"
        }
    except OmegaConfBaseException as error:
        raise ConfigurationError(_explain(error)) from error


def typed_keys(overrides: Iterable[str]) -> list[str]:
    """The keys that overrides speak of."""
    return [override.partition("=")[0].lstrip("+~") for override in overrides]


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A finished configuration with keys changed and options of groups exchanged.

    Raises ConfigurationError for a key that does not exist; what results is not checked further.
    """
    with explained():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        chosen = [str(o.input_line) for o in parsed if o.key_or_group in GROUPS]
        kept = [f"{g}={o}" for g, o in config["choices"].items() if g in GROUPS]
        node = OmegaConf.create(config)
        if chosen:
            fresh = compose([*kept, *chosen])
            for group in {o.key_or_group for o in parsed} & set(GROUPS):
                node[group], node.choices[group] = fresh[group], fresh["choices"][group]
        OmegaConf.set_struct(node, True)
        for item in parsed:
            if item.key_or_group not in GROUPS:
                OmegaConf.select(node, item.key_or_group, throw_on_missing=True)
                OmegaConf.update(node, item.key_or_group, item.value(), merge=True)
        changed: Config = plain(node)
    if changed.get("steps") is not None and "steps" in typed_keys(overrides):
        changed["epochs"] = None
    if changed.get("epochs") is not None and "epochs" in typed_keys(overrides):
        changed["steps"] = None
    return changed


def check_settings(config: Config) -> None:
    """Check the runner's own settings of a finished configuration. Raises ConfigurationError."""
    if problems := rules.check(config, config):
        raise ConfigurationError(problems)


@contextmanager
def explained() -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors into a ConfigurationError of one line."""
    try:
        yield
    except GearshiftError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_explain(error)) from error


def _explain(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': {str(error).splitlines()[0]}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return _bad_key(cause)
    text = " ".join(str(error).split())
    if match := re.search(r"Could not override '([^']+)'", text):
        return _no_such_group(match[1])
    return text


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not error.options:
        return str(error).splitlines()[0]
    return unknown("option", option, error.options, f"{group}=")


def _no_such_group(name: str) -> str:
    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    return unknown("key", name.partition("@")[0], [*groups, *rules.SETTINGS, "early_stopping", "every"])


def _bad_key(cause: OmegaConfBaseException) -> str:
    full = str(cause.full_key or cause.key or "")
    parent: Any = cause.parent_node
    message = (cause.msg or str(cause)).splitlines()[0]
    if re.search(r"not in (struct|')", message) and isinstance(parent, DictConfig):
        prefix, dot, key = full.rpartition(".")
        known = [str(k) for k in parent if not str(k).startswith("_") and k != "hydra"]
        return unknown("key", key, known, prefix + dot)
    return f"{full}: {message}" if full else message
