"""Whatever happens to a file of a run folder: one line and a documented code, or the same bits as without it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from damages import Damage, damages, try_all
from faults import EXIT_CODE
from harness import CONFIGURATIONS, but, train

from tests.forks import Zygote

QUICK = {"every_checkpoint": True}
SHORT = but(CONFIGURATIONS["momentum"], "steps=24")
OF_RESUME = [damage for damage in damages(range(6)) if damage.file not in ("result.json", "curves.png")]
OF_A_COMPLETE_RUN = [
    damage for damage in damages(range(6)) if damage.file in ("result.json", "config.yaml", "run.json")
]
OF_EVALUATE = [damage for damage in damages(range(4)) if damage.file not in ("checkpoints/last.pt", "metrics.jsonl")]


@dataclass
class Runs:
    """A whole run; the same, killed while it wrote its sixth checkpoint; and one of another seed."""

    reference: Path
    killed: Path
    other: Path


@pytest.fixture(scope="module")
def runs(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    home = tmp_path_factory.mktemp("runs")
    runs = Runs(home / "reference", home / "killed", home / "other")
    assert train(zygote, home, *SHORT, "hydra.run.dir=reference", fault=QUICK)[0] == 0
    assert train(zygote, home, *SHORT, "seed=5", "hydra.run.dir=other", fault=QUICK)[0] == 0
    fault = {**QUICK, "folder": str(runs.killed), "at": ("link last.pt", 4)}
    assert train(zygote, home, *SHORT, "hydra.run.dir=killed", fault=fault)[0] == EXIT_CODE
    return runs


def wrong(zygote: Zygote, runs: Runs, command: str, start: Path, chosen: list[Damage], home: Path) -> list[str]:
    process = zygote.call(try_all, command, start, runs.reference, runs.other, chosen, home)
    assert process.wait(600) == 0, process.output()
    *lines, last = process.output().splitlines()
    assert last.startswith(f"{len(chosen)} damages tried"), process.output()
    return lines


def test_damages_of_several_kinds(zygote: Zygote, runs: Runs, tmp_path: Path) -> None:
    """A sample of the kinds; the others are slow."""
    chosen = [damage for damage in OF_RESUME if damage.seed == 0][::7]
    assert wrong(zygote, runs, "resume", runs.killed, chosen, tmp_path) == []


@pytest.mark.slow
def test_all_damages_of_a_run_that_is_resumed(zygote: Zygote, runs: Runs, tmp_path: Path) -> None:
    assert wrong(zygote, runs, "resume", runs.killed, OF_RESUME, tmp_path) == []


@pytest.mark.slow
def test_all_damages_of_a_complete_run(zygote: Zygote, runs: Runs, tmp_path: Path) -> None:
    assert wrong(zygote, runs, "resume", runs.reference, OF_A_COMPLETE_RUN, tmp_path) == []


@pytest.mark.slow
def test_all_damages_before_an_evaluation(zygote: Zygote, runs: Runs, tmp_path: Path) -> None:
    assert wrong(zygote, runs, "evaluate", runs.reference, OF_EVALUATE, tmp_path) == []
