"""No configuration runs code that is not trusted, writes a file of its choice, or changes what is trusted."""

import os
from pathlib import Path

import pytest
import yaml

from tests.command_line.conftest import Train, listing
from tests.security.configurations import CALLS, Attack, attacks, parts
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.configuration import rules
from trainer.configuration.components import node_problems
from trainer.configuration.resolve import resolve

ATTACKS, PARTS = list(attacks()), list(parts())
VARIABLES = ("GEARSHIFT_TRUST", "LD_PRELOAD", "PYTHONPATH")


def test_there_are_enough() -> None:
    assert len(ATTACKS) + len(PARTS) >= 100
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_file_or_a_word_leaves_no_mark(attack: Attack, train: Train, folder: Path) -> None:
    mark = folder / "MARK"
    (folder / "options").mkdir()
    for name, text in attack.files.items():
        path = folder / "options" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("MARK", str(mark)))
    before, environment = listing(folder), [os.environ.get(name) for name in VARIABLES]
    words = [word.replace("MARK", str(mark)) for word in attack.words]
    done = train(*words, "--config-dir", "options")
    assert not mark.exists()
    assert listing(folder) == before
    assert done.code == 2, done
    assert done.problems, "a line for each problem, and no trace"
    assert [os.environ.get(name) for name in VARIABLES] == environment


@pytest.fixture(scope="module")
def composed() -> dict[str, object]:
    return compose(["device=cpu"])


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
