"""Studies from the command line: their folder, ledger and table; skipped, resumed and failed members."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.forks import train
from trainer.base.errors import ConfigurationError, DataError
from trainer.studies.ledger import Entry, Ledger

TINY = ["study=k_fold", "study.folds=3", "model=linear", "epochs=1", "threads=1", "device=cpu"]
NAMES = ["fold=0", "fold=1", "fold=2"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    done = train(folder, *TINY)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = (folder / "outputs/studies").iterdir()
    return found


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_members_are_run_folders_and_the_table_has_mean_and_deviation(study: Path) -> None:
    assert sorted(path.name for path in study.iterdir() if path.is_dir()) == NAMES
    table = read(study / "results.json")
    results = [read(study / name / "result.json") for name in NAMES]
    assert [result["test"] for result in results] == [None] * 3, "the test split is held out"
    for metric in ("val/loss", "val/accuracy"):
        values = [result["best"]["metrics"][metric] for result in results]
        assert [table["members"][name][metric] for name in NAMES] == values
        assert table["summary"]["mean"][metric] == pytest.approx(np.mean(values), rel=1e-12)
        assert table["summary"]["standard deviation"][metric] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert len({read(study / name / "environment.json")["data_sha256"] for name in NAMES}) == 3


@pytest.mark.parametrize("command", ["repeat", "evaluate"])
def test_a_command_for_a_run_names_the_study(command: str, study: Path) -> None:
    done = train(study.parents[2], command, str(study))
    assert (done.returncode, done.stderr) == (2, f"error: {study} is a study; name one of its runs\n")


def test_plan_lists_the_members_of_a_study_and_starts_nothing(tmp_path: Path) -> None:
    done = train(tmp_path, "plan", *TINY)
    assert (done.returncode, done.stderr) == (0, "") and list(tmp_path.iterdir()) == []
    assert "study=k_fold: 3 runs, " in done.stdout and "data.fold=2 data.folds=3" in done.stdout


def test_resume_auto_continues_a_study(study: Path) -> None:
    done = train(study.parents[2], "--resume=auto", *TINY)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("completed already") == 3


def test_the_same_command_skips_resumes_and_tells_what_failed(study: Path) -> None:
    root, before = study.parents[2], (study / "results.json").read_bytes()
    (study / "fold=1/result.json").write_text("{}")
    again = train(root, *TINY)
    assert again.returncode == 3 and "error: 1 of 3 members failed: fold=1" in again.stderr
    assert "fold=1/result.json is damaged" in again.stderr
    assert again.stdout.count("completed already") == 2
    ledger = read(study / "ledger.json")
    assert [entry["state"] for entry in ledger["members"]] == ["done", "failed", "done"]
    assert ledger["members"][1]["exit_code"] == 65
    (study / "fold=1/result.json").unlink()
    resumed = train(root, "resume", str(study.relative_to(root)))
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert (study / "results.json").read_bytes() == before
    assert [entry["number"] for entry in read(study / "ledger.json")["members"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study.folds=1"], "study.folds=1: must be at least 2"),
        (["study.fold=2"], "study.fold=2: key 'study.fold' does not exist. Did you mean 'study.folds'"),
        (["study.pool=3"], "study.pool=3: must be true or false"),
        (["optimizer.lr=-1"], "optimizer.lr=-1: must be in (0, inf) [fold=0]"),
        (["batch_size=5000"], "batch_size=5000: must be at most 1293, the training samples; batch_size=full"),
        (["study=kfold"], "Did you mean 'study=k_fold'?"),
        (["-m", "seed=1,2"], "study: is several runs"),
        (["study._target_=os.system"], "study._target_=os.system: "),
    ],
)
def test_what_is_no_study_is_refused_before_anything_starts(words: list[str], message: str, tmp_path: Path) -> None:
    rest = ["study=k_fold", "model=linear"] if words != ["study=kfold"] else ["model=linear"]
    done = train(tmp_path, *rest, *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and not (tmp_path / "outputs").exists()


def test_a_named_study_with_another_definition_is_refused(tmp_path: Path) -> None:
    words = ["study=k_fold", "study.folds=2", "model=linear", "steps=2", "threads=1", "device=cpu", "name=mine"]
    assert train(tmp_path, *words).returncode == 0
    changed = train(tmp_path, *words, "seed=7")
    assert changed.returncode == 2
    assert "(seed=7 instead of 0); give the study a name of its own, name=mine-2" in changed.stderr


@pytest.mark.slow
def test_a_lottery_ticket_is_compared_with_its_controls(tmp_path: Path) -> None:
    words = ["experiment=lottery_ticket", "study.rounds=2", "model.hidden=[8]", "steps=4", "threads=1", "device=cpu"]
    done = train(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    (study,) = (tmp_path / "outputs/studies").iterdir()
    names = ["dense", "round=1", "ticket", "random_mask", "redrawn_weights"]
    ledger = read(study / "ledger.json")
    assert [(e["name"], e["state"]) for e in ledger["members"]] == [(name, "done") for name in names]
    assert [e["needs"] for e in ledger["members"]] == [[], ["dense"], ["round=1"], ["round=1"], ["round=1"]]
    table = read(study / "results.json")
    for name in ("dense", "random_mask", "redrawn_weights"):
        row, pair = table["summary"][f"ticket - {name}"], (table["members"]["ticket"], table["members"][name])
        assert row["test/loss"] == pytest.approx(pair[0]["test/loss"] - pair[1]["test/loss"], abs=1e-12)
    failed = study / "dense/result.json"
    failed.write_text("{}")
    again = train(tmp_path, *words)
    assert again.returncode == 3 and "round=1: is not run, because it needs dense" in again.stdout


def entry(number: int, configuration: str = "a") -> Entry:
    return Entry(number, f"member{number}", ("seed=1",), (), configuration)


def test_several_writers_lose_no_change_of_the_ledger(tmp_path: Path) -> None:
    Ledger(tmp_path).open("k_fold", ["a=1"], [entry(number) for number in range(4)])

    def work(number: int) -> None:
        for exit_code in range(10):
            Ledger(tmp_path).update(f"member{number}", state="running", exit_code=exit_code)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.exit_code for e in Ledger(tmp_path).entries().values()] == [9] * 4
    assert Ledger(tmp_path).words() == ["a=1"]


def test_more_members_follow_and_a_changed_or_damaged_one_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.open("k_fold", [], [entry(0), entry(1)])
    ledger.update("member1", state="done")
    ledger.open("k_fold", [], [entry(2), entry(1)])
    assert [(e.number, e.name, e.state) for e in ledger.entries().values()] == [
        (0, "member0", "waiting"), (1, "member1", "done"), (2, "member2", "waiting"),
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match="member1: was begun with another configuration"):
        ledger.open("k_fold", [], [entry(1, "b")])
    text = ledger.path.read_text()
    for bad in (text.replace("waiting", "done"), text[: len(text) // 2]):
        ledger.path.write_text(bad)
        with pytest.raises(DataError, match=r"ledger\.json is damaged"):
            ledger.entries()
