"""From the words of a command line to the runs of a study, all checked before the first one starts."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from trainer.base.config import Config
from trainer.base.errors import ConfigurationError, DataError
from trainer.configuration import compose, rules
from trainer.configuration.as_written import options_as_written, plain
from trainer.configuration.build import build
from trainer.configuration.recorded import configuration_hash, differences
from trainer.storage import run_folder
from trainer.studies.ledger import Entry, Ledger
from trainer.studies.study import Member, Study

ROOT = Path("outputs/studies")


@dataclass(frozen=True)
class Definition:
    """A study: its option's name, its folder, what was typed (`shared`: for all members), and its members with their
    configurations."""

    option: str
    study: Study
    folder: Path
    words: tuple[str, ...]
    shared: tuple[str, ...]
    members: tuple[Member, ...]
    configs: tuple[Config, ...]

    def open_ledger(self) -> Ledger:
        """Return the ledger with all members in it. Raises ConfigurationError if one was begun as something else."""
        ledger = Ledger(self.folder)
        for member, config in zip(self.members, self.configs, strict=True):
            before = None
            with suppress(ConfigurationError, DataError):  # it has not begun; or resuming it tells what is wrong
                before = run_folder.read_configuration(self.folder / member.name)
            if before is not None and configuration_hash(before) != configuration_hash(config):
                raise ConfigurationError(ledger.other_definition(member.name, ", ".join(differences(before, config))))
        wanted = [
            Entry(number, member.name, member.overrides, member.needs, configuration_hash(config))
            for number, (member, config) in enumerate(zip(self.members, self.configs, strict=True))
        ]
        ledger.open(self.option, self.words, wanted)
        return ledger


def is_study(composed: DictConfig) -> bool:
    """Whether a composed configuration asks for several runs."""
    return bool(OmegaConf.select(composed, "study"))


def define(composed: DictConfig, hydra: DictConfig, loader: ConfigLoader, folder: Path | None) -> Definition:
    """Return the study that a composed configuration asks for; in `folder`, or else in one named after its words.

    Raises ConfigurationError with the problems of the study and of all its members' keys and values.
    """
    words = tuple(word for word in compose.typed_words(hydra) if not _is_of_study(word))
    all_words = tuple(sorted(compose.typed_words(hydra)))
    option = str(hydra.runtime.choices.get("study"))
    study = _build(composed, hydra, loader, option)
    name = composed.get("name") or f"{option}-{hashlib.sha256(chr(10).join(all_words).encode()).hexdigest()[:8]}"
    folder = folder or ROOT / str(name)
    members = tuple(study.members(folder))
    _check_members(members, option)
    own = [word for word in compose.typed_words(hydra, "hydra") if not word.startswith(("hydra.mode=", "hydra.run."))]
    problems: dict[str, str] = {}
    configs = []
    for member in members:
        try:
            configs.append(_configuration(loader, hydra.job.config_name, [*own, *words], member))
        except ConfigurationError as error:
            for problem in error.problems:
                problems.setdefault(problem, member.name)
    if problems:
        raise ConfigurationError([f"{problem} [{member}]" for problem, member in problems.items()])
    typed = tuple(compose.typed_words(hydra))
    return Definition(option, study, folder, typed, words, members, tuple(configs))


def _build(composed: DictConfig, hydra: DictConfig, loader: ConfigLoader, option: str) -> Study:
    node = plain(composed)["study"]
    words = (f"study={option}", *compose.search_words(hydra))
    written = options_as_written(loader, compose.NAME, compose.config_folder(), words)["study"]
    if not isinstance(node, dict):
        raise ConfigurationError(f"study={node}: must be an option, such as study=k_fold")
    if problems := rules.check_study(node, written):
        raise ConfigurationError(problems)
    study: object = build(node, "study")
    if not isinstance(study, Study):
        raise ConfigurationError(f"study._target_={node['_target_']}: is no trainer.studies.study.Study")
    return study


def _check_members(members: Sequence[Member], option: str) -> None:
    """Members are folders, and each is after those that it needs."""
    seen: set[str] = set()
    for member in members:
        if not re.fullmatch(r"[\w][\w.=,+-]*", member.name) or member.name in seen:
            raise ConfigurationError(f"study={option}: '{member.name}' is not a name for one more folder")
        if missing := [name for name in member.needs if name not in seen]:
            raise ConfigurationError(f"study={option}: {member.name} needs {missing[0]}, which is not before it")
        seen.add(member.name)


def _configuration(loader: ConfigLoader, name: str, words: Sequence[str], member: Member) -> Config:
    """Compose a member: what was typed, with the member's own overrides in the place of those of the same keys."""
    own = set(compose.typed_keys(member.overrides))
    rest = [word for word in words if compose.typed_keys([word])[0] not in own]
    composed = compose.load(loader, name, [*rest, "study=none", *member.overrides])
    return compose.finalize(composed, composed.hydra, loader)


def _is_of_study(word: str) -> bool:
    return word.lstrip("+~").partition("=")[0].partition(".")[0] == "study"


def described(definition: Definition) -> Iterator[tuple[str, str]]:
    """Yield each member's name, and what makes it different."""
    for member in definition.members:
        needs = f" (after {', '.join(member.needs)})" if member.needs else ""
        yield member.name, " ".join(member.overrides) + needs
