"""`train --help`: commands, then every group with its options; `train help optimizer=sgdw`: one option.

Reads YAML and the catalogue only; imports no Hydra and no torch.
"""

from itertools import dropwhile
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from trainer.base.errors import ConfigurationError
from trainer.base.text import NAME, did_you_mean, written
from trainer.commands import COMMANDS
from trainer.configuration.options import catalogue_entry, config_folder, first_comment


def print_help(arguments: list[str]) -> None:
    """Print everything that can be typed, on one page, or the options that follow the word `help`.

    Raises ConfigurationError for an option that does not exist.
    """
    chosen = [word for word in arguments[1:] if "=" in word and not word.startswith("-")]
    if arguments[:1] == ["help"] and chosen:
        folders = [config_folder(), *_user_folders(arguments)]
        print("\n\n".join(_option(word, folders) for word in chosen), flush=True)
        return
    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as page:  # rich itself would exit with code 1 on a broken pipe
        _show(console, arguments)
    print(page.get(), end="", flush=True)


def _show(console: Console, arguments: list[str]) -> None:
    folders = [config_folder(), *_user_folders(arguments)]
    defaults = _defaults(folders[0])
    usage = {
        "train [key=value ...]": "a run, such as train optimizer=adamw schedule=cosine_warmup",
        "train -m key=a,b ...": "a sweep, such as train -m optimizer=sgd,adamw seed=1,2",
        "train help group=option": "an option: rule, source, what it was checked against, keys",
    }
    usage |= {f"train {name} ...": meaning for name, meaning in COMMANDS.items()}
    for words, meaning in usage.items():
        console.print(f"[bold]{escape(f'{words:24}')}[/] {escape(meaning)}")
    console.print("\nSettings of the runner ([bold]configs/train.yaml[/] explains each):")
    console.print("  " + escape(" ".join(f"{k}={v}" for k, v in _settings(folders[0]).items())))
    console.print("\nGroups and their options (* is the default), each with its own keys: group.key=value")
    for group, options in _groups(folders).items():
        console.print(f"[bold]{group}[/]")
        for option, meaning in options.items():
            mark = "*" if defaults.get(group) == option else " "
            console.print(f"  {mark} {option:18} {escape(meaning)}")
    console.print(
        "\nFlags: --multirun -m, --cfg job, --info, --config-dir DIR, --config-name NAME, "
        "--resume=auto (continue the run that the same command began before, or begin it), --trust PACKAGE, --debug, "
        "--hydra-help"
    )


def _option(word: str, folders: list[Path]) -> str:
    """An option's entry in the catalogue, and its keys with their defaults and meanings as they are in its file."""
    group, _, option = word.partition("=")
    groups = _groups(folders)
    if group not in groups:
        hint = did_you_mean(group, groups, NAME)
        raise ConfigurationError(f"train help {word}: '{group}' is not a group.{hint} Groups: {', '.join(groups)}")
    if option not in groups[group]:
        hint = did_you_mean(option, groups[group], NAME)
        options = ", ".join(groups[group])
        raise ConfigurationError(f"train help {word}: '{option}' is not an option.{hint} Options: {options}")
    path = next(path for folder in folders if (path := folder / group / f"{option}.yaml").is_file())
    text = path.read_text(encoding="utf-8").rstrip()
    entry = catalogue_entry(word)
    if entry is None:
        return f"train {word}\n\n{text}"
    keys = "\n".join(dropwhile(lambda line: line.startswith("#"), text.splitlines()))
    return f"train {word}\n\n{entry}" + (f"\n\nKeys and defaults:\n\n{keys}" if keys else "")


def _user_folders(arguments: list[str]) -> list[Path]:
    """Folders given by `--config-dir` or `-cd`. Raises ConfigurationError if one does not exist."""
    found = []
    for index, word in enumerate(arguments):
        name, _, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = Path(value or (arguments[index + 1 : index + 2] or [""])[0])
            if not folder.is_dir():
                raise ConfigurationError(f"--config-dir {folder}: there is no such folder")
            found.append(folder)
    return found


def _defaults(folder: Path) -> dict[str, str]:
    entries = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def _settings(folder: Path) -> dict[str, object]:
    values = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    shown = {key: value for key, value in values.items() if key not in ("defaults", "hydra")}
    return {key: written(value).replace(": ", ":") for key, value in shown.items()}


def _groups(folders: list[Path]) -> dict[str, dict[str, str]]:
    """Group -> option -> the first comment line of its file."""
    found: dict[str, dict[str, str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            if path.parent.name != "hydra":
                found.setdefault(path.parent.name, {})[path.stem] = first_comment(path)
    order = [*_defaults(folders[0]), *found]
    return {group: found[group] for group in dict.fromkeys(order) if group in found}
