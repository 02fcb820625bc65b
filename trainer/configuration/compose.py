"""Composes YAML files and overrides to one plain, resolved configuration."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.base.config import Config, ConfigValue
from trainer.base.errors import ConfigurationError, NotTrusted
from trainer.configuration import rules as rules
from trainer.configuration.as_written import are_as_written, options_as_written, plain
from trainer.configuration.from_python import override_list
from trainer.configuration.groups import GROUPS
from trainer.configuration.hydra_errors import blamed_by, explain
from trainer.configuration.hydra_node import NAME as NAME
from trainer.configuration.hydra_node import CheckedLoader
from trainer.configuration.hydra_state import own_hydra
from trainer.configuration.limits import bounded_loading
from trainer.configuration.optimizer_keys import rate_of, schedule_problem, with_constant_schedule
from trainer.configuration.options import config_folder as config_folder
from trainer.configuration.rules import PSEUDO_GROUPS
from trainer.configuration.settings import PRUNE_DEFAULTS

# Gearshift relies on these settings of Hydra; they must not be changed
_FIXED = {"hydra", "hydra.callbacks", "hydra.output_subdir", "hydra.job.chdir", "hydra.run", "hydra.sweep",
          "hydra.sweeper", "hydra.launcher", "hydra/callbacks"}  # fmt: skip


def slug(text: str) -> str:
    """Convert override text to a folder name, without slashes or special characters and at most 80 characters long."""
    return re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", str(text))[:80].strip("-.") or "default"


def register_resolvers() -> None:
    """Register `${slug:text}` for sweep folders; idempotent."""
    OmegaConf.register_new_resolver("slug", slug, replace=True)


# --- composing --------------------------------------------------------------------------------------------


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """Compose and check a configuration, as the command line does: `compose(["optimizer=adamw"])`.

    `config_dir` is a folder of a user's own options, as for `--config-dir`. Raises ConfigurationError with every
    problem that can be found without torch.
    """
    words = override_list(overrides, "compose")
    with loader_of(config_dir) as (loader, search):
        composed = load(loader, NAME, [*words, *search])
        return finalize(composed, composed.hydra, loader)


@contextmanager
def loader_of(config_dir: str | Path | None = None) -> Iterator[tuple[ConfigLoader, list[str]]]:
    """Context manager that returns Hydra's loader and the override that adds the user's folder to its search path."""
    search = search_path(config_dir)
    with own_hydra(), bounded_loading():
        register_resolvers()
        version.setbase("1.3")
        JobRuntime.instance().set("name", "app")
        loader = CheckedLoader(create_config_search_path(str(config_folder())))
        GlobalHydra.instance().initialize(Hydra("app", loader))
        yield loader, search


def search_path(config_dir: str | Path | None) -> list[str]:
    """Return the override that adds a folder to Hydra's search path; empty for None.

    Raises ConfigurationError if the folder does not exist, or if an option in it has the name of one of ours: Hydra
    would silently ignore both.
    """
    if config_dir is None:
        return []
    if problems := folder_problems(Path(config_dir)):
        raise ConfigurationError(problems)
    return [_searchpath([f"file://{Path(config_dir).resolve()}"])]


def folder_problems(config_dir: Path) -> list[str]:
    """Return the problems of a user's configuration folder."""
    if not config_dir.is_dir():
        return [f"config_dir={config_dir}: there is no such folder"]
    ours = config_folder()
    if config_dir.resolve() == ours:
        return []
    problems = []
    for path in sorted((*config_dir.glob("*.yaml"), *config_dir.glob("*/*.yaml"))):
        if (ours / path.relative_to(config_dir)).is_file():
            problems.append(f"{path}: has the name of a built-in option, which would be used instead; rename it")
        try:
            path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:  # Hydra's message does not name the file
            problems.append(f"{path}: cannot be read as UTF-8: {getattr(error, 'reason', error)}")
    return problems


def search_words(hydra: DictConfig) -> list[str]:
    """Return the override that gives another configuration the search path of this one; empty if it is the default."""
    folders = OmegaConf.select(hydra, "searchpath") or []
    return [_searchpath(folders)] if folders else []


def _searchpath(entries: Iterable[str]) -> str:
    quoted = ("'" + entry.replace("\\", "\\\\").replace("'", "\\'") + "'" for entry in entries)
    return f"hydra.searchpath=[{','.join(quoted)}]"


def load(loader: ConfigLoader, name: str, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> DictConfig:
    """Compose with Hydra. Raises ConfigurationError with every problem.

    Hydra stops at the first problem: the override that causes it is removed, and the rest is composed and checked.
    """
    problems, rest = read_overrides(overrides, is_sweep=mode is RunMode.MULTIRUN)
    failures: list[tuple[Exception, list[str]]] = []
    composed = None
    while composed is None:
        try:
            composed = loader.load_configuration(name, rest, run_mode=mode)
        except NotTrusted:
            raise
        except Exception as error:  # any error while composing is caused by the input
            blamed = blamed_by(error, rest)
            failures.append((error, blamed))
            if not blamed:
                break
            rest = [text for text in rest if text not in blamed]
    problems += [explain(error, blamed, loader, composed) for error, blamed in failures]
    if composed is None:
        raise ConfigurationError(problems) from failures[-1][0]
    if problems:
        try:
            if mode is RunMode.RUN:
                finalize(composed, composed.hydra, loader)
        except ConfigurationError as error:
            problems += error.problems
        raise ConfigurationError(problems)
    return composed


def read_overrides(overrides: Sequence[str], *, is_sweep: bool = False) -> tuple[list[str], list[str]]:
    """Return the problems of the overrides' syntax, and the overrides without problems."""
    problems, fine, seen = [], [], dict[str, str]()
    for text in overrides:
        try:
            item = _parse(text)
        except ConfigurationError as error:
            problems += error.problems
            continue
        key = item.get_key_element().lstrip("+")
        if problem := _word_problem(item, is_sweep):
            problems.append(problem)
        elif key in seen:
            problems.append(f"{seen[key]}, {text}: {key} is given twice; give one of the two")
        else:
            if not item.is_delete():
                seen[key] = text
            fine.append(text)
    return problems, fine


def _parse(text: str) -> Override:
    key, equals, _ = text.partition("=")
    bare = key.lstrip("+~")
    try:
        text.encode()
        item = OverridesParser.create().parse_override(text)
        if not item.key_or_group:
            raise HydraException("there is nothing before the equals sign")
    except (HydraException, UnicodeEncodeError) as error:
        if isinstance(error, UnicodeEncodeError):
            hint = "it is not UTF-8"
        elif not equals:
            hint = "it is neither key=value nor, as the first word, a command"
        elif re.fullmatch(r"\w+([./]\w+)*(@[\w.]+)?", bare):
            hint = f"a value with special characters is quoted: {_quoted(text)}"
        else:
            hint = "an override is key=value, such as optimizer.lr=0.1"
        shown = text.encode(errors="backslashreplace").decode()
        raise ConfigurationError(f"cannot read '{shown}': {hint}") from error
    return item


def _quoted(text: str) -> str:
    """Return an override as it is typed in a shell if its value, or what its list contains, is text."""
    key, _, value = text.partition("=")
    is_list = value.startswith("[") and value.endswith("]") and not set(value[1:-1]) & set("[]{}'\"")
    items = value[1:-1].split(",") if is_list else [value]
    texts = ",".join("'" + item.strip().replace("\\", "\\\\").replace("'", "\\'") + "'" for item in items)
    word = f"{key}=[{texts}]" if is_list else f"{key}={texts}"
    return shlex.quote(word) if set(word) & set('"$`!') or "\\\\" in word else f'"{word}"'


def _without_sweep(item: Override) -> str:
    """How to type values with commas that are no sweep."""
    key, _, value = str(item.input_line).partition("=")
    axis = item.value()
    if not isinstance(axis, ChoiceSweep) or not axis.simple_form:
        return ""
    return f"; a list is written {shlex.quote(f'{key}=[{value}]')}, text {_quoted(str(item.input_line))}"


def _word_problem(item: Override, is_sweep: bool) -> str | None:
    text, group = str(item.input_line), item.key_or_group
    if item.is_sweep_override():
        if not is_sweep:
            return f"{text}: several values are a sweep, which needs -m{_without_sweep(item)}"
        return None
    if group in _FIXED or group.startswith("hydra.callbacks.") or (item.is_delete() and group.startswith("hydra.")):
        return f"{text}: cannot be changed"
    if group == "hydra.searchpath":
        return _search_problem(text, item.value())
    if group not in (*GROUPS, *PSEUDO_GROUPS) or item.is_delete():
        return None
    value = item.value()
    if isinstance(value, dict) and group in GROUPS:
        return None  # several keys of the option at once
    if isinstance(value, str):
        return None
    options = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    return f"{text}: must be the name of one option: {', '.join(options)}"


def _search_problem(text: str, value: object) -> str | None:
    """Return the problem of a search path, if any: Hydra silently ignores folders that do not exist."""
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        return f"{text}: must be a list of folders, [file://FOLDER] or [pkg://PACKAGE]"
    missing = [e for e in value if e.startswith("file://") and not Path(e.removeprefix("file://")).is_dir()]
    return f"{text}: there is no such folder as {', '.join(missing)}" if missing else None


def finalize(composed: DictConfig, hydra: DictConfig, loader: ConfigLoader) -> Config:
    """Resolve a composed configuration to plain containers and check keys and values.

    `hydra` is Hydra's own node. The option chosen in each group is stored under `choices`. Raises ConfigurationError
    with every problem.
    """
    choices = {group: option for group, option in hydra.runtime.choices.items() if "/" not in group and option}
    if choices.get("study") == "none":  # a single run has no such key
        del choices["study"]
    typed = typed_keys(typed_words(hydra))
    search = search_words(hydra)
    config = plain(composed)
    if hydra.job.config_name == NAME and are_as_written(typed_words(hydra), choices):
        defaults = config
    else:
        chosen = tuple(f"{group}={option}" for group, option in choices.items() if group in GROUPS)
        defaults = options_as_written(loader, NAME, config_folder(), (*chosen, *search))
    if config.get("study") == {}:
        del config["study"]
    if config.get("prune", {}) is None:  # which runs of earlier versions do not have
        del config["prune"]
    elif isinstance(config.get("prune"), dict):
        config["prune"] = PRUNE_DEFAULTS | config["prune"]
    config, defaults = _with_operations(config), _without_removed(defaults, typed_words(hydra))
    if isinstance(config.get("name"), int) and not isinstance(config["name"], bool):
        config["name"] = str(config["name"])
    if config.get("epochs") is not None and config.get("steps") is not None:
        # the user's value replaces that of an option or default; if the user gave both, it is an error
        if "steps" not in typed and "epochs" in typed:
            config["steps"] = None
        elif "epochs" not in typed:
            config["epochs"] = None
    if "choices" in config:
        raise ConfigurationError("choices: is set by Gearshift; choose options with GROUP=OPTION")
    config["choices"] = choices
    rules.move_decay(config, typed)
    if problems := rules.check(config, defaults, typed):
        raise ConfigurationError(problems)

    def written(*words: str) -> ConfigValue:
        return options_as_written(loader, NAME, config_folder(), (*words, *search))["schedule"]

    return with_constant_schedule(config, typed, written)


def _with_operations(config: Config) -> Config:
    """Put operations that were added to an empty augmentation into a pipeline."""
    operations = config.get("augmentation")
    if not isinstance(operations, dict) or not operations or "_target_" in operations:
        return config
    return config | {"augmentation": rules.PIPELINE | operations}


def _without_removed(defaults: Config, words: Iterable[str]) -> Config:
    """Remove the operations that the user deleted: one added under the same name is the user's own."""
    operations = defaults.get("augmentation")
    if not isinstance(operations, dict):
        return defaults
    removed = {word.partition("=")[0].removeprefix("~augmentation.") for word in words if word.startswith("~")}
    kept = {name: node for name, node in operations.items() if name not in removed or not isinstance(node, dict)}
    return defaults | {"augmentation": kept}


def typed_words(hydra: DictConfig, part: str = "task") -> list[str]:
    """Return the overrides as they were typed; `part` is task, or hydra for those of Hydra's own settings."""
    words = OmegaConf.to_container(hydra.overrides[part], resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


def typed_keys(overrides: Iterable[str]) -> list[str]:
    """Return the keys of overrides."""
    return [override.partition("=")[0].lstrip("+~") for override in overrides]


# --- a finished configuration -----------------------------------------------------------------------------


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Apply overrides of keys and of groups' options to a finished configuration and check it.

    Raises ConfigurationError with every problem.
    """
    problems, fine = read_overrides(overrides)
    parsed = [_parse(text) for text in fine]
    problems += [f"{o.input_line}: must be key=value here" for o in parsed if o.is_add() or o.is_force_add()]
    problems += [f"{o.input_line}: nothing can be deleted here" for o in parsed if o.is_delete()]
    changes = [o for o in parsed if not (o.is_add() or o.is_force_add() or o.is_delete())]
    chosen = {o.key_or_group: str(o.input_line) for o in changes if o.key_or_group in GROUPS}
    before = config
    if chosen:
        try:
            fresh = compose(list(chosen.values()))
            before = _exchanged(config, fresh, chosen)
        except ConfigurationError as error:
            problems += error.problems
    node = OmegaConf.create(before)
    OmegaConf.set_struct(node, True)
    typed = []
    for item in changes:
        if item.key_or_group in GROUPS:
            continue
        try:
            OmegaConf.update(node, item.key_or_group, item.value(), merge=True)
            typed.append(item.key_or_group)
        except OmegaConfBaseException as error:
            problems.append(explain(error, [str(item.input_line)]))
    changed = plain(node)
    if "steps" in typed and "epochs" not in typed and changed.get("steps") is not None:
        changed["epochs"] = None
    if "epochs" in typed and "steps" not in typed and changed.get("epochs") is not None:
        changed["steps"] = None
    problems += rules.check(changed, before, typed)
    if not problems and (problem := schedule_problem(changed, rate_of(changed["optimizer"]))):
        problems.append(problem)
    if problems:
        raise ConfigurationError(problems)
    return changed


def _exchanged(config: Config, fresh: Config, chosen: Iterable[str]) -> Config:
    """Return the configuration with the options chosen anew, and with what another optimizer needs."""
    groups = set(chosen)
    settings: Config = {}
    if "optimizer" in groups:
        if rate_of(fresh["optimizer"]) != "scheduled":
            groups.add("schedule")
        nodes = (config["optimizer"], fresh["optimizer"])
        settings = {key: fresh[key] for key in ("batch_size",) if any(key in node for node in nodes)}
    choices = config["choices"] | {group: fresh["choices"][group] for group in groups}
    return config | {group: fresh[group] for group in groups} | settings | {"choices": choices}
