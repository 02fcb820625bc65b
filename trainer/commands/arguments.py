"""Parses the arguments of a sub-command and reads the configuration of the run that they name."""

import os
from contextlib import suppress
from pathlib import Path

from trainer.base.config import Config
from trainer.base.errors import ConfigurationError, DataError
from trainer.configuration import compose
from trainer.configuration import rules as rules
from trainer.configuration.recorded import found_again
from trainer.storage import identity, run_folder


def split(command: str, arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Split arguments into folders and overrides.

    Raises ConfigurationError for every flag and every folder that does not exist.
    """
    # the name of a trial's folder may contain an equals sign, too
    overrides = [word for word in arguments if "=" in word and "/" not in word.partition("=")[0]]
    overrides = [word for word in overrides if not word.startswith("-") and not os.path.exists(word)]  # noqa: PTH110
    folders = [word for word in arguments if word not in overrides]
    problems = []
    for word in folders:
        if word.startswith("-"):
            problems.append(f"train {command} has no option {word}")
        elif os.path.isfile(word):  # noqa: PTH113 (a Path raises for a name that is too long)
            problems.append(f"{word}: is a file, not a run folder")
        elif not os.path.isdir(word):  # noqa: PTH112
            problems.append(f"{word}: there is no such run folder")
    if problems:
        raise ConfigurationError(problems)
    return [Path(word) for word in folders], overrides


def run_and_overrides(command: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """Return the one folder and the overrides. Raises ConfigurationError for any other number of folders."""
    folders, overrides = split(command, arguments)
    if len(folders) != 1:
        raise ConfigurationError(f"train {command} takes one run folder: train {command} RUN [key=value ...]")
    return folders[0], overrides


def recorded_configuration(folder: Path) -> Config:
    """Read the configuration of a run, without checking what it needs from this machine.

    Raises DataError if the file is damaged, ConfigurationError if there is none.
    """
    if (folder / run_folder.SWEEP).is_file():
        raise ConfigurationError(f"{folder} is a sweep; name one of its runs")
    if (folder / run_folder.LEDGER).is_file():
        raise ConfigurationError(f"{folder} is a study; name one of its runs")
    config = run_folder.read_configuration(folder)
    if problems := rules.check_text(config, config):
        raise DataError(f"{folder / run_folder.CONFIG} is damaged or from another version: {problems[0]}")
    return config


def changed_configuration(folder: Path, recorded: Config, overrides: list[str]) -> Config:
    """Return the recorded configuration with overrides, and with the data where they are now.

    Raises ConfigurationError with every problem, also if the data folder does not exist or a package is not trusted;
    DataError if the recorded one has been edited or is that of another run.
    """
    config = found_again(recorded, run_folder.read_overrides(folder))
    if overrides:
        config = compose.override(config, overrides)
    elif problems := rules.check_surroundings(config):
        raise ConfigurationError(problems)
    check_recorded(folder, recorded)
    return config


def check_recorded(folder: Path, recorded: Config) -> None:
    """Raise DataError if the recorded configuration has been edited or is that of another run."""
    run_folder.check_unchanged(folder)
    record = None
    with suppress(DataError):  # a resumed run reports a damaged record
        record = identity.read_record(folder)
    if record is not None:
        identity.check_configuration(folder, recorded, record)
