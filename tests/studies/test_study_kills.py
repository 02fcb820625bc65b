"""Studies that are stopped or killed, and several drivers of one study at once."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.forks import TIME_LIMIT, Fork, shared, train
from tests.studies.study_storm import STUDIES, storm, study_differences
from trainer.storage.run_folder import Lock
from trainer.studies import KFold, driver
from trainer.studies.definition import Definition
from trainer.studies.ledger import Entry, Ledger
from trainer.studies.study import Member

TINY = ["study=k_fold", "study.folds=2", "model=linear", "steps=2", "threads=1", "device=cpu", "name=s"]
STUDY = "outputs/studies/s"
# `train` with another function in the place of the one that trains a member
OTHER = """
import os, signal, sys, time
from pathlib import Path
from trainer.base.signals import stop_request
from trainer.studies import driver

train = driver.train

def other(*arguments, **options):
    {body}

driver.train = other
sys.argv = ["train", *{words!r}]
from trainer.app import main
main()
"""


def start(folder: Path, body: str) -> Fork:
    """Start the tiny study, with this body of the function that trains a member."""
    return shared().start([], folder, code=OTHER.format(body=body.replace("\n", "\n    "), words=TINY), apart=True)


def states(folder: Path) -> list[str]:
    return [entry.state for entry in Ledger(folder / STUDY).entries().values()]


@pytest.mark.parametrize(
    ("can_wait", "signals", "code"),
    [
        (False, ["SIGTERM"], 143),
        (False, ["SIGINT"], 130),
        (True, ["SIGINT", "SIGINT"], 130),
        (True, ["SIGTERM", "SIGINT", "SIGINT"], 130),
    ],
)
def test_no_member_stays_running_when_signals_end_the_program(
    can_wait: bool, signals: list[str], code: int, tmp_path: Path
) -> None:
    kills = "\n".join(f"os.kill(os.getpid(), signal.{name})" for name in signals)
    process = start(tmp_path, f"stop_request.can_wait = {can_wait}\n{kills}\ntime.sleep(60)")
    out, err = process.communicate()
    assert process.returncode == code, out + err
    assert states(tmp_path) == ["interrupted", "waiting"]
    assert f"to continue: train resume {STUDY}" in err and "Traceback" not in err


def test_a_killed_driver_s_member_is_seen_to_be_interrupted_unless_another_works_on_it(tmp_path: Path) -> None:
    names = ["mine", "killed", "gone", "waiting"]
    Ledger(tmp_path).open("k_fold", [], [Entry(number, name, (), (), "a") for number, name in enumerate(names)])
    for name in names[:3]:
        Ledger(tmp_path).update(name, state="running")
    (tmp_path / "mine").mkdir()
    (tmp_path / "killed").mkdir()
    lock = Lock(tmp_path / "mine")
    members = tuple(Member(name, ()) for name in names)
    driver._see_stopped(Definition("k_fold", KFold(), tmp_path, (), (), members, ()), Ledger(tmp_path))
    lock.release()
    found = [entry.state for entry in Ledger(tmp_path).entries().values()]
    assert found == ["running", "interrupted", "interrupted", "waiting"]


def test_two_drivers_of_one_study_share_its_members(tmp_path: Path) -> None:
    first = start(tmp_path, "while not Path('go').exists(): time.sleep(0.01)\nreturn train(*arguments, **options)")
    end = time.monotonic() + TIME_LIMIT
    while not (tmp_path / STUDY / "ledger.json").is_file() or "running" not in states(tmp_path):
        assert first.wait(0.01) is None and time.monotonic() < end, first.output()
    second = train(tmp_path, *TINY)
    assert second.returncode == 75
    assert second.stderr == f"error: {STUDY}: another process works on fold=0\n"
    assert states(tmp_path) == ["running", "done"]
    (tmp_path / "go").touch()
    out, err = first.communicate()
    assert (first.returncode, err) == (0, ""), out
    assert states(tmp_path) == ["done", "done"] and "fold=1: completed already" in out
    table: dict[str, Any] = json.loads((tmp_path / STUDY / "results.json").read_text())
    assert {member["state"] for member in table["members"].values()} == {"done"} and "mean" in table["summary"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_kills"), [("k_fold", 4), ("ranks", 2)])
def test_a_storm_of_kills_leaves_no_trace_in_a_study(name: str, num_kills: int, tmp_path: Path) -> None:
    """The whole storm: `python -m tests.studies.study_storm`."""
    assert len(storm(shared(), STUDIES[name], tmp_path, seed=0, num_kills=num_kills)) == num_kills
    damaged = tmp_path / "reference/results.json"
    damaged.write_text(damaged.read_text().replace('"done"', '"failed"'))
    assert any(study_differences(tmp_path / "reference", tmp_path / "study-0"))
