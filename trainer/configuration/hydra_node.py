"""Checks Hydra's own node (`hydra:`) before Hydra acts on it.

Hydra imports and calls what its node names: callbacks, handlers and formatters of `logging`, launcher and sweeper. It
resolves interpolations when it does so. Files can therefore set only plain values of a few keys. Everything that runs
code is left as it is, is typed on the command line, or lies in a package that the user trusts.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import hydra._internal.hydra as hydra_itself
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import JobRuntime
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from trainer.base.config import ConfigValue
from trainer.base.errors import ConfigurationError, NotTrusted
from trainer.configuration.build import locate
from trainer.configuration.groups import GROUPS
from trainer.configuration.hydra_logging import frozen, logging_problems
from trainer.configuration.limits import bounded_loading, restart
from trainer.configuration.rules import OPEN
from trainer.configuration.settings import FOLDS
from trainer.configuration.sweeps import is_inside, swept_groups
from trainer.configuration.trust import hint, is_users

NAME = "train"  # the primary configuration, configs/train.yaml
_PREFLIGHT = {"_target_": "trainer.hydra_entry.preflight.Preflight"}
_BASIC = {
    "launcher": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "sweeper": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
_LOGGING = ("hydra_logging", "job_logging")
_FOLDS = [f"data.{key}" for key in FOLDS]
_ENVIRONMENT = "hydra.job.env_set"


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader, which returns a configuration only if nothing in it would run code that is not trusted."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose. Raises NotTrusted with every problem of Hydra's node."""
        restart()
        load = partial(
            super().load_configuration,
            config_name,
            run_mode=run_mode,
            from_shell=from_shell,
            validate_sweep_overrides=validate_sweep_overrides,
        )
        composed = load(overrides) if run_mode is RunMode.RUN else _of_sweep(load, overrides)
        if problems := list(self._problems(composed, overrides, is_job=config_name is not None)):
            raise NotTrusted(problems)
        with flag_override(composed.hydra, ["struct", "readonly"], False):
            for name in _LOGGING:
                if composed.hydra[name] is not None:
                    composed.hydra[name] = frozen(composed.hydra[name])
        return composed

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        """As Hydra does, but mappings with free keys, and data sets the keys of folds, need no plus sign."""
        parsed, repository = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        for item in parsed:
            is_open = set(item.key_or_group.split(".")) & set(OPEN) or item.key_or_group in _FOLDS
            if item.type is OverrideType.CHANGE and is_open:
                item.type = OverrideType.FORCE_ADD
        return parsed, repository

    def _problems(self, composed: DictConfig, overrides: Sequence[str], is_job: bool) -> Iterator[str]:
        """Without a primary configuration, Hydra starts no job: it shows its help."""
        typed = [item for item in OverridesParser.create().parse_overrides(list(overrides)) if item.is_hydra_override()]
        node = composed.hydra
        raw = OmegaConf.to_container(node, resolve=False)
        assert isinstance(raw, dict)
        if sorted([*raw["overrides"]["hydra"], *raw["overrides"]["task"]]) != sorted(overrides):
            yield "hydra.overrides: is written by Hydra; no file may set it"
        if is_job:
            yield from _fixed_problems(raw)
        if raw["job"].get("name") != JobRuntime.instance().get("name") and not _is_typed("hydra.job.name", typed):
            yield from _name_problems(str(raw["job"].get("name")))
        yield from _environment_problems(raw["job"]["env_set"], typed)
        yield from _callback_problems(node, raw["callbacks"], is_job)
        for kind in _BASIC:
            yield from self._plugin_problems(node, raw[kind], kind, typed)
        for name in _LOGGING:
            yield from logging_problems(node[name], raw[name], f"hydra.{name}")

    def _plugin_problems(self, node: DictConfig, raw: ConfigValue, kind: str, typed: list[Override]) -> Iterator[str]:
        """Check the launcher or the sweeper. A plug-in's settings may be commands, so they must be typed."""
        if raw is None:
            return
        where = f"hydra.{kind}"
        if not isinstance(raw, dict):
            yield f"{where}={raw}: must be written out, not referred to"
            return
        target = str(raw.get("_target_"))
        if target == _BASIC[kind]:
            yield from _basic_problems(node, raw, kind)
        elif is_users(target):
            yield from _param_problems(node, kind)
        elif not target.startswith("hydra_plugins."):
            yield f"{where}._target_={target}: is not trusted; must be a {kind} of Hydra or of a plug-in"
        elif raw != self._as_typed(kind, typed):
            yield (
                f"{where}: a file chooses or changes the plug-in {target}, which can run programs;"
                f" type hydra/{kind}=... and its settings on the command line{hint(target)}"
            )
        else:
            yield from _param_problems(node, kind)

    def _as_typed(self, kind: str, typed: list[Override]) -> ConfigValue:
        """The node of a plug-in as its own files and the typed words alone give it; None if they give none."""
        entries = [e for e in self.config_search_path.get_path() if e.provider != "command-line"]
        path = ConfigSearchPathImpl()
        path.config_search_path = entries
        words = [str(word.input_line) for word in typed if word.key_or_group != "hydra.searchpath"]
        try:
            plain = ConfigLoaderImpl(path).load_configuration(NAME, words, RunMode.MULTIRUN)
        except Exception:  # of a word that only the user's folder gives a meaning
            return None
        return OmegaConf.to_container(plain.hydra[kind], resolve=False)

    def _process_config_searchpath(
        self, config_name: str | None, parsed_overrides: list[Override], repo: CachingConfigRepository
    ) -> None:
        """Let only typed words add folders and packages, which are imported, to the search path."""
        is_ours = config_name in (None, NAME) or _is_typed("hydra.searchpath", parsed_overrides)
        found = None if is_ours or config_name is None else repo.load_config(config_name)
        if found is not None and OmegaConf.is_dict(found.config):
            raw = OmegaConf.to_container(found.config, resolve=False)
            node = raw.get("hydra") if isinstance(raw, dict) else None
            if isinstance(node, str) or (isinstance(node, dict) and node.get("searchpath")):
                raise NotTrusted(
                    f"hydra.searchpath: {config_name}.yaml must not add folders; add one with --config-dir FOLDER"
                )
        super()._process_config_searchpath(config_name, parsed_overrides, repo)


def _of_sweep(load: Callable[[list[str]], DictConfig], overrides: list[str]) -> DictConfig:
    """Compose the configuration of a sweep, which Hydra does with the default options of the groups that are swept.

    Overrides of these options' keys would be refused there; every trial has them.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = swept_groups(item.key_or_group for item in parsed if item.is_sweep_override())
    try:
        composed = load([str(item.input_line) for item in parsed if not is_inside(item, swept)])
    except ConfigCompositionException:  # the axes of a file are known when everything is composed
        composed = load([str(item.input_line) for item in parsed if not is_inside(item, GROUPS)])
        swept |= swept_groups(map(str, OmegaConf.select(composed, "hydra.sweeper.params") or ()))
        composed = load([str(item.input_line) for item in parsed if not is_inside(item, swept)])
    typed = [item for item in parsed if not item.is_hydra_override()]
    if composed.hydra.overrides.task == [item.input_line for item in typed if not is_inside(item, swept)]:
        with flag_override(composed.hydra, ["struct", "readonly"], False):
            composed.hydra.overrides.task = [str(item.input_line) for item in typed]
    return composed  # else a file has written there, which is refused


@contextmanager
def checked_loading() -> Iterator[None]:
    """Context manager in which every loader that Hydra creates is a `CheckedLoader`, and files have limits."""
    before = vars(hydra_itself)["ConfigLoaderImpl"]
    vars(hydra_itself)["ConfigLoaderImpl"] = CheckedLoader
    try:
        with bounded_loading():
            yield
    finally:
        vars(hydra_itself)["ConfigLoaderImpl"] = before


def _fixed_problems(raw: ConfigValue) -> Iterator[str]:
    """Check the settings with which Hydra would write elsewhere than into the run's folder."""
    if raw["output_subdir"] is not None:
        yield f"hydra.output_subdir={raw['output_subdir']}: must be left as it is, null"
    if raw["job"]["chdir"] not in (False, None):
        yield f"hydra.job.chdir={raw['job']['chdir']}: must be left as it is, false"
    subdir = str(raw["sweep"].get("subdir", ""))
    if subdir.startswith("/") or ".." in subdir.split("/"):
        yield f"hydra.sweep.subdir={subdir}: must be a folder inside that of the sweep"


def _is_typed(key: str, typed: list[Override]) -> bool:
    return any(item.key_or_group == key for item in typed)


def _name_problems(name: str) -> Iterator[str]:
    """The name of a job becomes that of files, and a word in the scripts of plug-ins."""
    if not re.fullmatch(r"\w[\w.+=,-]*", name):
        yield f"hydra.job.name={name}: must be letters, digits and _.+=,- only"


def _environment_problems(raw: ConfigValue, typed: list[Override]) -> Iterator[str]:
    """Environment variables decide which code is loaded: only typed ones are set."""
    allowed: dict[str, str] = {}
    for item in typed:
        key, value = item.key_or_group, item.value()
        if key.startswith(f"{_ENVIRONMENT}."):
            allowed[key.removeprefix(f"{_ENVIRONMENT}.")] = str(value)
        elif key == _ENVIRONMENT and isinstance(value, dict):
            allowed |= {str(name): str(text) for name, text in value.items()}
    for name, value in (raw if isinstance(raw, dict) else {"": raw}).items():
        is_unchanged = value == os.environ.get(name) and "${" not in str(value)
        if str(value) != allowed.get(name) and not is_unchanged:
            yield f"{_ENVIRONMENT}.{name}={value}: must be typed on the command line, not set by a file"


def _callback_problems(node: DictConfig, raw: ConfigValue, is_job: bool) -> Iterator[str]:
    if is_job and (not isinstance(raw, dict) or raw.get("preflight") != _PREFLIGHT):
        yield "hydra.callbacks.preflight: must be left as it is"
    for name, callback in (raw if isinstance(raw, dict) else {}).items():
        where = f"hydra.callbacks.{name}"
        if name == "preflight":
            continue
        if not isinstance(callback, dict):
            yield f"{where}={callback}: must be written out, not referred to; it is not trusted"
            continue
        for target in _targets(callback):
            yield from _users_problems(target, where)
        yield from _resolved_problems(node.callbacks, name, where, callback)


def _resolved_problems(parent: DictConfig, name: str, where: str, raw: ConfigValue) -> Iterator[str]:
    """Interpolations may stand for text and numbers, not for nodes: those would be called."""
    try:
        resolved = OmegaConf.to_container(parent, resolve=True)
    except OmegaConfBaseException as error:
        yield f"{where}: {str(error).splitlines()[0]}"
        return
    assert isinstance(resolved, dict)
    if list(_targets(resolved[name])) != list(_targets(raw)):
        yield f"{where}: an interpolation in it stands for a node, which is not trusted; write it out"


def _targets(node: ConfigValue) -> Iterator[str]:
    """The names of everything that Hydra would call in a node."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _targets(item)


def _users_problems(target: str, where: str) -> Iterator[str]:
    """A class for Hydra to call must be defined in a package that the user trusts."""
    if not is_users(target):
        yield f"{where}._target_={target}: is not trusted{hint(target)}"
        return
    try:
        locate(target, where)
    except ConfigurationError as error:
        yield from error.problems


def _basic_problems(node: DictConfig, raw: ConfigValue, kind: str) -> Iterator[str]:
    """Check the keys of Hydra's own launcher and sweeper, which Hydra passes to them."""
    known = {"_target_", *(("max_batch_size", "params") if kind == "sweeper" else ())}
    for key in raw:
        if key not in known:
            yield f"hydra.{kind}.{key}: is not trusted; known are {', '.join(sorted(known - {'_target_'})) or 'none'}"
    if isinstance(raw.get("max_batch_size"), dict | list):
        yield f"hydra.{kind}.max_batch_size: must be a number"
    yield from _param_problems(node, kind)


def _param_problems(node: DictConfig, kind: str) -> Iterator[str]:
    """The axes of a sweep become overrides: they must be those of keys outside Hydra's node."""
    if kind != "sweeper" or "params" not in node.sweeper or node.sweeper.params is None:
        return
    where = "hydra.sweeper.params"
    raw = OmegaConf.to_container(node.sweeper, resolve=False)
    assert isinstance(raw, dict)
    try:
        params = OmegaConf.to_container(node.sweeper.params, resolve=True)
    except OmegaConfBaseException as error:
        yield f"{where}: {str(error).splitlines()[0]}"
        return
    if not isinstance(raw["params"], dict) or not isinstance(params, dict):
        yield f"{where}: must be written out, not referred to"
        return
    for key, value in ((str(key), value) for key, value in params.items()):
        if re.match(r"[\s'\"+~]*hydra\b", key):
            yield f"{where}.{key}: must be typed on the command line, as {key}=..., not set by a file"
        elif isinstance(value, dict) or "_target_" in str(value):
            yield f"{where}.{key}: must be values, such as 1,2,3"
