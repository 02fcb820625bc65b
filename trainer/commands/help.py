"""`train --help`: commands, then every group with its options; `train help WORD`: an option, a group, a key, a command.

Reads YAML and the catalogue only; imports no Hydra and no torch.
"""

import re
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from trainer.base.errors import ConfigurationError
from trainer.base.text import NAME, did_you_mean, written
from trainer.commands import COMMANDS, USAGE
from trainer.configuration.options import catalogue_entry, config_folder, first_comment


def print_help(arguments: list[str]) -> None:
    """Print everything that can be typed, on one page, or what the words after `help` mean.

    Raises ConfigurationError for a word that means nothing.
    """
    chosen = _words(arguments[1:]) if arguments[:1] == ["help"] else []
    if chosen:
        folders = [config_folder(), *_user_folders(arguments)]
        print("\n\n".join(_about(word, folders) for word in chosen), flush=True)
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
        "train help WORD": "a group, a key such as optimizer.lr or epochs, or a command",
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


def _about(word: str, folders: list[Path]) -> str:
    """An option, the options of a group, the options with a key, a setting of the runner, or a sub-command."""
    groups, settings = _groups(folders), _settings(folders[0])
    first, _, key = word.partition(".")
    if "=" in word:
        return _option(word, folders)
    if word in COMMANDS:
        return f"{USAGE[word]}\n\n{COMMANDS[word]}"
    if word in groups:
        default = _defaults(folders[0]).get(word)
        shown = (f"  {'*' if name == default else ' '} {name:18} {text}" for name, text in groups[word].items())
        return "\n".join([f"train {word}=OPTION (* is the default)\n", *shown])
    if first in groups and (lines := list(_lines_of_key(first, key, folders))):
        return "\n".join([f"train {word}=VALUE, with these options and defaults\n", *lines])
    if first in settings:
        return f"train {word}=VALUE\n\n{_setting(first, folders[0])}"
    hint = did_you_mean(word, [*groups, *settings, *COMMANDS], NAME)
    raise ConfigurationError(
        f"train help {word}: '{word}' is neither a group, a key nor a command.{hint} See train --help"
    )


def _lines_of_key(group: str, key: str, folders: list[Path]) -> Iterator[str]:
    """The line of a key in the file of each option that has it."""
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            found = re.search(rf"^{re.escape(key)}:.*", path.read_text(encoding="utf-8"), re.MULTILINE)
            if found and not key.startswith("_"):
                yield f"  {path.stem:18} {found.group()}"


def _setting(name: str, folder: Path) -> str:
    """A setting of the runner as it is in the file, with the comment above it."""
    lines = (folder / "train.yaml").read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith(f"{name}:"))
    last = first + 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    while last < len(lines) and lines[last].startswith(" "):
        last += 1
    return "\n".join(lines[first:last])


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


def _words(arguments: list[str]) -> list[str]:
    """The words that are neither flags nor their values."""
    flags = ("--config-dir", "-cd", "--trust")
    before = ["", *arguments]
    return [word for word, flag in zip(arguments, before, strict=False) if word[:1] != "-" and flag not in flags]


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
