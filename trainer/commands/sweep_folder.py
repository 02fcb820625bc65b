"""`train resume SWEEP`: what the folder of a sweep may ask for by itself, and what must be typed again.

A folder may come from someone else. Its own words therefore never widen what is looked at or what runs: a folder of
options, a plug-in, an environment variable or a search path that it names is used only if it is typed again.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.base.config import ConfigValue
from trainer.base.errors import ConfigurationError, DataError, one_line
from trainer.configuration.groups import GROUPS
from trainer.configuration.rules import PSEUDO_GROUPS
from trainer.storage.records import read_yaml
from trainer.storage.run_folder import LEDGER, SWEEP

# Hydra's settings that only name folders and count: a sweep folder may ask for them by itself
_HARMLESS = (
    "hydra.sweep.subdir", "hydra.verbose", "hydra.sweeper.max_batch_size", "hydra.job.config.override_dirname",
)  # fmt: skip
_LOGGING = ("hydra/job_logging", "hydra/hydra_logging")  # Hydra's own options, checked as all of its node
_BASIC = ("hydra/launcher=basic", "hydra/sweeper=basic")


def take_config_dir(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the arguments without `--config-dir FOLDER`, and the folder. Raises ConfigurationError."""
    rest: list[str] = []
    found = None
    words = iter(arguments)
    for word in words:
        flag, is_given, value = word.partition("=")
        if flag not in ("--config-dir", "-cd"):
            rest.append(word)
            continue
        found = value if is_given else next(words, "")
        if not found:
            raise ConfigurationError(f"{flag}: must be followed by a folder")
    return rest, found


def resume_sweep(folder: Path, typed: list[str], config_dir: str | None) -> int:
    """Run the unfinished trials of a sweep. Raises ConfigurationError with everything that must be typed again."""
    from trainer.hydra_entry.hydra import run_hydra

    recorded, name, folders = _recorded(folder)
    _check_typed(folder / SWEEP, recorded, typed, folders if config_dir is None else [])
    words = ["--multirun", *recorded, f"hydra.sweep.dir={quoted(str(folder))}", f"--config-name={name}"]
    return run_hydra([*words, *([f"--config-dir={config_dir}"] if config_dir is not None else [])])


def resume_study(folder: Path, typed: list[str], config_dir: str | None) -> int:
    """Run the unfinished members of a study. Raises ConfigurationError with everything that must be typed again."""
    from trainer.hydra_entry.hydra import run_hydra
    from trainer.studies.ledger import Ledger

    recorded = Ledger(folder).words()
    if (damaged := next(_not_as_written(recorded), None)) is not None:
        raise DataError(f"{folder / LEDGER} is damaged: {damaged!r} is no override")
    _check_typed(folder / LEDGER, recorded, typed, [])
    words = [*recorded, f"hydra.run.dir={quoted(str(folder))}"]
    return run_hydra([*words, *([f"--config-dir={config_dir}"] if config_dir is not None else [])])


def _check_typed(path: Path, recorded: list[str], typed: list[str], folders: list[str]) -> None:
    """Raise ConfigurationError for words that are not recorded, or that a folder cannot ask for and that are not typed.

    `folders` are those of options that must be named again.
    """
    folder = path.parent
    unknown = [word for word in typed if word not in recorded]
    if unknown:
        raise ConfigurationError(f"{folder} is resumed as it is; start another one for {' '.join(unknown)}")
    asked = [word for word in recorded if word not in typed and not _is_harmless(word)]
    missing = [*asked, *(f"--config-dir {shlex.quote(name)}" for name in folders)]
    if missing:
        again = [word if word.startswith("--config-dir ") else shlex.quote(word) for word in missing]
        raise ConfigurationError(
            f"{path}: asks for {' '.join(missing)}, which a folder cannot ask for by itself; if you trust it:"
            f" train resume {shlex.quote(str(folder))} {' '.join([*map(shlex.quote, typed), *again])}"
        )


def _recorded(folder: Path) -> tuple[list[str], str, list[str]]:
    """The overrides of a sweep, its primary configuration, and its folders of options. Raises DataError."""
    path = folder / SWEEP
    try:
        hydra = read_yaml(path)["hydra"]
        overrides, sources = hydra["overrides"], hydra["runtime"]["config_sources"]
        own = [word for word in overrides["hydra"] if not word.startswith(("hydra.mode=", "hydra.sweep.dir="))]
        words, name = [*overrides["task"], *own], hydra["job"]["config_name"]
        folders = [source["path"] for source in sources if source["provider"] == "command-line"]
        damaged = next(_not_as_written([*words, name, *folders]), None)
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {one_line(error)}") from error
    if damaged is not None or not re.fullmatch(r"[\w-]+", name):
        raise DataError(f"{path} is damaged: {name if damaged is None else damaged!r} is not what Hydra writes")
    return words, name, folders


def _not_as_written(texts: Sequence[ConfigValue]) -> Iterator[ConfigValue]:
    """What is no line of text, and flags, which Hydra does not record."""
    for text in texts:
        if not isinstance(text, str) or not text.isprintable() or text.startswith("-"):
            yield text


def _is_harmless(word: str) -> bool:
    """Whether an override changes keys and options of ours only, or a setting of Hydra that runs nothing."""
    key, _, value = word.partition("=")
    key = key.lstrip("+~")
    if re.match(r"[\s'\"]*hydra\b", key):
        in_list = any(key == name or key.startswith(f"{name}.") for name in _HARMLESS)
        return in_list or word in _BASIC or (key in _LOGGING and bool(re.fullmatch(r"[\w-]+", value)))
    group = key.partition("@")[0]
    is_group = group in (*GROUPS, *PSEUDO_GROUPS) or "/" in group
    return not is_group or (".." not in value and "$" not in value)  # an option of ours, not a file elsewhere


def quoted(text: str) -> str:
    """Quote a text so that Hydra's override parser reads it back unchanged."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
