"""Tab completion: `eval "$(train -sc install=bash)"`, also for zsh and fish.

Hydra's own completion composes a configuration for each key press and prints its errors into the prompt. This one reads
YAML files and folders only, takes a tenth of a second, and offers nothing if something fails. Names with characters
that a shell would expand are never offered.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from trainer.base.config import Config, ConfigValue
from trainer.base.text import written
from trainer.commands import COMMANDS, ENSEMBLES, FLAG_VALUES, FLAGS, KEYS_OF_RESUME, VIEWS
from trainer.configuration.groups import GROUPS
from trainer.configuration.options import config_folder
from trainer.configuration.settings import EARLY_STOPPING, EVERY, SETTINGS, Rule
from trainer.storage.records import read_yaml

_PSEUDO = ("experiment", "debug", "study")
_WITH_RUNS = ("resume", "repeat", "evaluate")
_CONFIG, _SWEEP = "config.yaml", "multirun.yaml"
# offered for a setting whose rule allows them
_WORDS = (True, False, None, "auto", "full", "none", "linear", "sqrt", "fp32", "bf16", "fp16", "stop", "skip",
          "rollback", "cpu", "cuda", "mps", "min", "max")  # fmt: skip
_MOST = 200  # candidates
_HARMLESS = re.compile(r"[\w./=,+:%@~^-]+")

_INSTALL = {
    "bash": """
_train_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" cur="${COMP_WORDS[COMP_CWORD]}" word found IFS=$' \\t\\n'
    word="${line##*[[:space:]]}"
    [[ "$cur" == [=:] ]] && cur=""  # bash breaks words at these
    COMPREPLY=()
    while IFS= read -r found; do
        [[ -n "$found" ]] && COMPREPLY+=("${found#"${word%"$cur"}"}")
    done < <(COMP_LINE="$line" "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null)
}
complete -o nospace -o default -F _train_complete train
""",
    "zsh": """
_train_complete() {
    local -a found
    found=("${(@f)$(COMP_LINE="${words[1,CURRENT-1]} $PREFIX" ${words[1]} -sc query=zsh 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -S '' -- $found; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u }
compdef _train_complete train
""",
    "fish": """
function __train_complete
    set -lx COMP_LINE (commandline -cp)
    train -sc query=fish 2>/dev/null
end
complete -c train -f -a '(__train_complete)'
""",
}
_UNINSTALL = {
    "bash": "complete -r train; unset -f _train_complete",
    "zsh": "compdef -d train; unfunction _train_complete",
    "fish": "complete -e -c train; functions -e __train_complete",
}


def asked(arguments: Sequence[str]) -> str | None:
    """Return `query=SHELL`, `install=SHELL` or `uninstall=SHELL` if that is all that the command line asks for."""
    if len(arguments) == 2 and arguments[0] in ("-sc", "--shell-completion"):
        action, _, shell = arguments[1].partition("=")
        if action in ("query", "install", "uninstall") and shell in _INSTALL:
            return arguments[1]
    return None


def answer(action: str) -> None:
    """Print a script of the shell, or one candidate per line for the command line in COMP_LINE."""
    kind, _, shell = action.partition("=")
    if kind != "query":
        print((_INSTALL if kind == "install" else _UNINSTALL)[shell].strip())
        return
    with suppress(Exception):  # an error must not be printed into the prompt
        line = os.environ.get("COMP_LINE", "")
        point = os.environ.get("COMP_POINT", "")
        found = candidates(line[: int(point)] if point.isdigit() else line)
        print("\n".join(found), flush=True)


def candidates(line: str) -> list[str]:
    """Return what may stand in place of the last word of a command line."""
    words = line.split()[1:]
    current = words.pop() if words and not line[-1:].isspace() else ""
    found = _found(words, current)
    return sorted({word for word in found if word.startswith(current) and _HARMLESS.fullmatch(word)})[:_MOST]


def _found(words: list[str], current: str) -> Iterator[str]:
    command = words[0] if words and words[0] in (*COMMANDS, "help") else ""
    before = words[-1] if words else ""
    if before in FLAG_VALUES or before in ("--config-dir", "-cd", "--trust"):
        yield from FLAG_VALUES.get(before, ())
        return
    if current.startswith("-"):
        flag, is_value, _ = current.partition("=")
        if is_value:
            yield from (f"{flag}={value}" for value in FLAG_VALUES.get(flag, ()))
            return
        yield from (flag for flag in FLAGS.get(command, ()) if flag not in words)
        return
    if not words:
        yield from (*COMMANDS, "help")
    has_run = any(Path(word).is_dir() for word in words[1:])
    if command == "evaluate" or (command in _WITH_RUNS and not has_run):
        yield from _folders(command, current)
    if command == "help":
        yield from COMMANDS
        yield from (word if _is_choice(word) else word.rstrip("=") for word in _overrides(command, words, current))
        return
    if current.startswith("hydra") and not command:
        yield from _of_hydra(current)
        return
    yield from _overrides(command, words, current)


def _is_choice(word: str) -> bool:
    """Whether a word chooses an option of a group, or would."""
    return word.partition("=")[0] in (*GROUPS, *_PSEUDO) and "=" in word


# --- run folders ------------------------------------------------------------------------------------------


def _folders(command: str, current: str) -> Iterator[str]:
    """Run folders where they usually are and where the word points, otherwise the folders on the way."""
    place = Path(current) if current.endswith("/") else Path(current).parent
    near = [path for path in place.glob("*") if path.is_dir() and not path.name.startswith(".")]
    usual = (path for pattern in ("outputs/*/*", "outputs/sweeps/*/*") for path in Path().glob(pattern))
    marks = (_CONFIG, _SWEEP) if command == "resume" else (_CONFIG,)
    runs = [str(path) for path in (*near, *usual) if any((path / mark).is_file() for mark in marks)]
    yield from [run for run in runs if run.startswith(current)] or (f"{path}/" for path in near)


# --- overrides --------------------------------------------------------------------------------------------


class _Options:
    """Keys and values that the words before the current one leave: of a run's file, or of the chosen options' files."""

    def __init__(self, folders: list[Path], words: Sequence[str], recorded: Config | None) -> None:
        self.folders, self.words, self.recorded = folders, words, recorded
        self.top = read_yaml(folders[0] / "train.yaml")
        defaults = [entry for entry in self.top.pop("defaults") if isinstance(entry, dict)]
        self.top.pop("hydra", None)
        self.chosen = {k: str(v) for entry in defaults for k, v in entry.items() if not k.startswith("override")}
        for word in words:
            key, _, value = word.lstrip("+").partition("=")
            if key in self.chosen:
                self.chosen[key] = value.split(",")[0]

    def groups(self) -> list[str]:
        return [*self.chosen, *self._of_users()]

    def options(self, group: str) -> list[str]:
        return [path.stem for folder in self.folders for path in folder.glob(f"{group}/*.yaml")]

    def node(self, key: str) -> ConfigValue:
        """The value of a key, with the part of the chosen option."""
        first, _, rest = key.partition(".")
        node = self._first(first)
        for part in rest.split(".") if rest else []:
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def _first(self, name: str) -> ConfigValue:
        is_typed = any(word.lstrip("+").startswith(f"{name}=") for word in self.words)
        if self.recorded is not None and not is_typed:
            return self.recorded.get(name)
        if name not in self.chosen or name in _PSEUDO:
            return self.top.get(name)
        files = [folder / name / f"{self.chosen[name]}.yaml" for folder in self.folders]
        return next((read_yaml(path) for path in files if path.is_file()), None)

    def _of_users(self) -> list[str]:
        return [path.name for folder in self.folders[1:] for path in folder.iterdir() if path.name not in self.chosen]


def _overrides(command: str, words: list[str], current: str) -> Iterator[str]:
    prefix = re.match(r"[+~]*", current)
    assert prefix is not None
    mark, word = prefix.group(), current[prefix.end() :]
    options = _options(command, words)
    key, is_value, _ = word.partition("=")
    found = _values(command, options, key, word) if is_value else _keys(command, options, word)
    yield from (mark + item for item in found)


def _options(command: str, words: list[str]) -> _Options:
    folders, recorded = [config_folder()], None
    for index, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            given = Path(value or "".join(words[index + 1 : index + 2]))
            folders += [given] if given.is_dir() else []
        if command in _WITH_RUNS and recorded is None and (Path(word) / _CONFIG).is_file():
            recorded = read_yaml(Path(word) / _CONFIG)
    return _Options(folders, words, recorded)


def _keys(command: str, options: _Options, word: str) -> Iterator[str]:
    section, dot, _ = word.rpartition(".")
    if dot:
        node = options.node(section)
        for name, value in node.items() if isinstance(node, dict) else ():
            if not name.startswith("_"):
                yield from _endings(f"{section}.{name}", value)
        return
    if command == "evaluate":
        yield from ("tta=", "ensemble=")
    for group in options.groups():
        if command == "resume" and group not in KEYS_OF_RESUME:
            continue
        yield f"{group}="
        if isinstance(options.node(group), dict) and group not in _PSEUDO:
            yield f"{group}."
    for name, value in options.top.items():
        if command != "resume" or name in KEYS_OF_RESUME:
            yield from _endings(name, value)
    if command == "resume":
        yield "data."


def _endings(name: str, value: ConfigValue) -> Iterator[str]:
    yield f"{name}." if isinstance(value, dict) else f"{name}="


def _values(command: str, options: _Options, key: str, word: str) -> Iterator[str]:
    if command == "evaluate" and key == "tta":
        yield from (f"tta={view}" for view in VIEWS)
    elif command == "evaluate" and key == "ensemble":
        yield from (f"ensemble={kind}" for kind in ENSEMBLES)
    elif key == "early_stopping":
        yield "early_stopping=null"
    elif key in options.groups():
        done = word[: max(word.rfind("="), word.rfind(",")) + 1]  # a sweep lists several options
        yield from (f"{done}{option}" for option in options.options(key))
    else:
        node = options.node(key)
        words = list(_allowed(key)) or (["true", "false"] if isinstance(node, bool) else [])
        shown = [] if node is None or isinstance(node, dict) else [written(node).replace(", ", ",")]
        yield from (f"{key}={value}" for value in words or shown)


def _allowed(key: str) -> Iterator[str]:
    """The words that a setting allows."""
    section, _, name = key.rpartition(".")
    rules: Mapping[str, Rule] = {"": SETTINGS, "early_stopping": EARLY_STOPPING, "every": EVERY}.get(section, {})
    rule = rules.get(name)
    if rule is not None and rule("any text") is not None:
        yield from (written(word) for word in _WORDS if rule(word) is None)


def _of_hydra(current: str) -> Iterable[str]:
    """Keys and options of Hydra's own node, which only Hydra knows."""
    from contextlib import redirect_stdout
    from io import StringIO

    from trainer.hydra_entry.hydra import run_hydra

    os.environ["COMP_LINE"] = f"train {current}"
    with redirect_stdout(StringIO()) as out:
        run_hydra(["-sc", "query=bash"])
    return out.getvalue().split()
