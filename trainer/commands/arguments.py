"""Reading the words after a sub-command."""

from pathlib import Path

from trainer.errors import ConfigurationError


def split(command: str, arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Folders and overrides. Raises ConfigurationError for a flag, or a folder that does not exist."""
    overrides = [word for word in arguments if "=" in word and not Path(word).exists()]
    folders = [Path(word) for word in arguments if word not in overrides]
    for folder in folders:
        if str(folder).startswith("-"):
            raise ConfigurationError(f"train {command} has no option {folder}")
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: there is no such run folder")
    return folders, overrides


def run_and_overrides(command: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """Exactly one folder, and overrides."""
    folders, overrides = split(command, arguments)
    if len(folders) != 1:
        raise ConfigurationError(f"train {command} takes one run folder: train {command} RUN [key=value ...]")
    return folders[0], overrides
