"""No configuration runs code that is not trusted, writes a file of its choice, or changes what is trusted."""

import os
from pathlib import Path

import pytest
import yaml
from hydra.types import RunMode

from tests.command_line.conftest import Train, listing
from tests.security.configurations import CALLS, SETTINGS_OF_OURS, STUDIES, Attack, attacks, parts
from trainer.base.errors import ConfigurationError
from trainer.configuration import compose, rules
from trainer.configuration.build import build
from trainer.configuration.components import node_problems
from trainer.configuration.from_python import check_configuration
from trainer.configuration.resolve import resolve

ATTACKS, PARTS = list(attacks()), list(parts())
# the whole command line, which composes twice, for one in eight of those that a composed node shows
WHOLE = [attack for number, attack in enumerate(ATTACKS) if not attack.is_in_node or number % 8 == 0]
ALONE = [attack for attack in ATTACKS if attack not in WHOLE]
VARIABLES = ("GEARSHIFT_TRUST", "LD_PRELOAD", "PYTHONPATH")


def test_there_are_enough() -> None:
    assert len(ATTACKS) + len(PARTS) >= 100
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def write(attack: Attack, folder: Path) -> list[str]:
    """Write its files, and return its words, with the path of the mark."""
    (folder / "options").mkdir()
    for name, text in attack.files.items():
        path = folder / "options" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("MARK", str(folder / "MARK")))
    return [word.replace("MARK", str(folder / "MARK")) for word in attack.words]


@pytest.mark.parametrize("attack", ALONE, ids=lambda attack: attack.name)
def test_hydras_node_leaves_no_mark(attack: Attack, folder: Path) -> None:
    """Composed as for every command: Hydra gets no configuration to act on."""
    words = write(attack, folder)
    before = listing(folder)
    mode = RunMode.MULTIRUN if "-m" in words else RunMode.RUN
    with compose.loader_of("options") as (loader, search), pytest.raises(ConfigurationError):
        compose.load(loader, "train", [word for word in words if word != "-m"] + search, mode)
    assert listing(folder) == before


@pytest.mark.parametrize("attack", WHOLE, ids=lambda attack: attack.name)
def test_a_file_or_a_word_leaves_no_mark(attack: Attack, train: Train, folder: Path) -> None:
    words = write(attack, folder)
    before, environment = listing(folder), [os.environ.get(name) for name in VARIABLES]
    done = train(*words, "--config-dir", "options")
    assert listing(folder) == before
    assert done.code == 2, done
    assert done.problems, "a line for each problem, and no trace"
    assert [os.environ.get(name) for name in VARIABLES] == environment


@pytest.fixture(scope="module")
def composed() -> dict[str, object]:
    return compose.compose(["device=cpu"])


@pytest.mark.parametrize(("group", "node"), PARTS)
def test_a_component_leaves_no_mark(group: str, node: str, composed: dict[str, object], folder: Path) -> None:
    """As the node of a composed configuration, or of the `config.yaml` of a run folder."""
    mark = folder / "MARK"
    text = node.replace("'${evil}'", CALLS["system"]).replace("MARK", str(mark))
    config = composed | {group: yaml.safe_load(text)}
    with pytest.raises(ConfigurationError) as refused:
        if problems := [*rules.check_surroundings(config), *node_problems(config)]:
            raise ConfigurationError(problems)
        resolve(config)
    assert not mark.exists()
    assert list(folder.iterdir()) == []
    assert all(problem.startswith(group) for problem in refused.value.problems)


@pytest.mark.parametrize("node", STUDIES)
def test_a_study_leaves_no_mark(node: str, folder: Path) -> None:
    with pytest.raises(ConfigurationError):
        build(yaml.safe_load(node.replace("MARK", str(folder / "MARK"))), "study")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("key", SETTINGS_OF_OURS)
def test_a_setting_leaves_no_mark(key: str, composed: dict[str, object], folder: Path) -> None:
    call = yaml.safe_load(CALLS["system"].replace("MARK", str(folder / "MARK")))
    for value in (call, [call], {"source": call, "share": 0.2}, {"x": {"match": call}}, {"log": call}):
        with pytest.raises(ConfigurationError):
            check_configuration(composed | {key: value}, "assemble")
    assert list(folder.iterdir()) == []
