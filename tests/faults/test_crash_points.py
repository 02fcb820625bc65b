"""A run that ends at any single change of its files resumes with the same bits.

A run of 24 steps makes about 150 such changes. For each, the process ends before it, the power fails (anything that was
not synced is lost), and, for writes, the process ends after half of the data.
"""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import EXIT_CODE, cut_power
from harness import CONFIGURATIONS, but, differences, finish

from tests.forks import Zygote

QUICK = {"every_checkpoint": True}
SHORT = but(CONFIGURATIONS["adamw"], "steps=24")


@dataclass
class Scenario:
    """A reference run, a run to resume (untrained or half-way), and the changes that resuming it makes to its files."""

    reference: Path
    start: Path
    changes: list[str]
    is_resumed: bool


def resume(zygote: Zygote, folder: Path, /, sitting: int, **fault: object) -> int:
    return finish(zygote.start(["resume", str(folder)], folder.parent, sitting, fault={**QUICK, **fault}))


def resume_copy(zygote: Zygote, start: Path, folder: Path, /, sitting: int, **fault: object) -> tuple[int, list[str]]:
    """Resume a copy of `start`; returns the exit code and the changes of its files."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    code = resume(zygote, folder, sitting, folder=str(folder), log=str(log), **fault)
    if fault.get("how") == "power" and code == EXIT_CODE:
        cut_power(folder, log)
    return code, log.read_text().splitlines()


@pytest.fixture(scope="module", params=["from the start", "from the middle"])
def story(request: pytest.FixtureRequest, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    home = tmp_path_factory.mktemp("story")
    fresh, reference, start = home / "fresh", home / "reference", home / "start"
    arguments = [*SHORT, f"hydra.run.dir={fresh}"]
    assert (
        finish(zygote.start(arguments, home, fault={"folder": str(fresh), "at": ("open metrics.jsonl", 0)}))
        == EXIT_CODE
    )
    code, changes = resume_copy(zygote, fresh, reference, sitting=0)
    assert code == 0
    if request.param == "from the start":
        return Scenario(reference, fresh, changes, is_resumed=False)
    code, _ = resume_copy(zygote, fresh, start, sitting=0, at=("replace .best.pt.#.tmp", 1))
    assert code == EXIT_CODE
    code, changes = resume_copy(zygote, start, home / "whole", sitting=1)
    assert (code, differences(reference, home / "whole")) == (0, [])
    return Scenario(reference, start, changes, is_resumed=True)


def broken(zygote: Zygote, story: Scenario, folder: Path, points: list[tuple[str, int, str]]) -> list[str]:
    """Differences after a run ended at each of these points (change, occurrence, kind of crash) and was resumed."""
    found = []
    for change, which, how in points:
        where = f"{how} {change} ({which})"
        code, _ = resume_copy(zygote, story.start, folder, sitting=1, at=(change, which), how=how)
        assert code == EXIT_CODE, f"{where} was not reached"
        if (code := resume(zygote, folder, 2)) != 0:
            found.append(f"{where}: exit code {code}")
        else:
            found += [f"{where}: {line}" for line in differences(story.reference, folder)]
    return found


def ways(change: str) -> list[str]:
    operation, _, name = change.partition(" ")
    tears = operation == "write" or (operation == "fsync" and name.endswith(".tmp"))
    return ["before", "power", "torn"] if tears else ["before", "power"]


def test_every_other_kind_of_change_may_be_the_last(zygote: Zygote, story: Scenario, tmp_path: Path) -> None:
    """Every other change, at its second occurrence if there is one, with alternating kinds of crash.

    From the middle, only the changes before training starts; the others are the same.
    """
    kinds = Counter(story.changes)
    if story.is_resumed:
        opening = story.changes[: story.changes.index("write metrics.jsonl")]
        kinds = Counter({change: count for change, count in kinds.items() if change in opening})
    points = []
    for number, (change, count) in enumerate(kinds.items()):
        possible = ways(change)
        if number % 2 == 0:
            points.append((change, min(1, count - 1), possible[number // 2 % len(possible)]))
    # the complete result is the last change: everything it refers to must be on the disk before
    points.append(("fsync .", Counter(story.changes)["fsync ."] - 1, "power"))
    if not story.is_resumed:  # the first checkpoint is announced, and has no name yet
        points.append(("replace .last.pt.#.tmp", 0, "power"))
    assert broken(zygote, story, tmp_path / "run", points) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "power", "torn"])
def test_every_change_may_be_the_last(zygote: Zygote, story: Scenario, tmp_path: Path, how: str) -> None:
    kinds = Counter(story.changes)
    points = [(change, which, how) for change in kinds if how in ways(change) for which in range(kinds[change])]
    assert broken(zygote, story, tmp_path / "run", points) == []
