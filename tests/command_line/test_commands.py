"""The commands of the program, as a user types them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROGRAM, Train

from trainer.commands import COMMANDS
from trainer.reporting.metrics_file import read_metrics
from trainer.run_folder import Lock

ROOT = Path(__file__).parents[2]
TINY = ["model=linear", "epochs=2", "threads=1", "limit_batches=5"]


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "outputs").glob("*/*")
    return found


def metrics(run: Path) -> list[dict[str, float]]:
    """The records without what may differ between a run and its repetition."""
    return [
        {name: value for name, value in record.items() if not name.startswith("throughput/")}
        for record in read_metrics(run / "metrics.jsonl")
    ]


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_help_names_every_command_group_and_option(train: Train) -> None:
    said = train("--help")
    assert (said.code, said.err) == (0, "")
    for path in (ROOT / "configs").glob("*/*.yaml"):
        assert path.stem in said.out
        assert path.parent.name in said.out
    assert all(f"train {name}" in said.out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cfg", "job", "-p", "optimizer", "optimizer=sgd"], "_target_: torch.optim.SGD"),
        (["--info", "searchpath"], "Config search path"),
        (["--version"], "gearshift"),
        (["-cn", "train", "--cfg", "job", "-p", "every"], "log: 50step"),
    ],
)
def test_hydra_s_own_flags_work_and_make_nothing(process: Train, folder: Path, arguments, expected) -> None:
    said = process(*arguments)
    assert (said.code, said.err) == (0, "")
    assert expected in said.out
    assert not list(folder.iterdir())


def test_completion_offers_the_options_of_a_group(process: Train) -> None:
    line = f"{PROGRAM} optimizer=ada"
    said = process("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert {"optimizer=adam", "optimizer=adamw"} <= set(said.out.split())


def test_all_three_ways_to_start_it_are_the_same_program(process: Train) -> None:
    wanted = process("optimizer=adamx")
    assert wanted.code == 2
    for program in ([sys.executable, str(ROOT / "cli.py")], [sys.executable, "-m", "trainer"]):
        said = process("optimizer=adamx", program=tuple(program), PYTHONPATH=str(ROOT))
        assert (said.code, said.out, said.err) == (wanted.code, wanted.out, wanted.err)


def test_a_run_repeated_gives_the_same_bits_in_a_new_folder(train: Train, folder: Path) -> None:
    assert train(*TINY, "name=first").code == 0
    first = run_folder(folder)
    assert train("repeat", str(first)).code == 0
    second = next(path for path in (folder / "outputs").glob("*/*") if path != first)
    assert metrics(second) == metrics(first)
    assert train("repeat", str(first), "seed=1", "name=third").code == 0
    third = next(path for path in (folder / "outputs").glob("*/*third"))
    assert metrics(third) != metrics(first)


def test_a_complete_run_says_so_and_more_epochs_go_on_in_its_folder(train: Train, folder: Path) -> None:
    assert train(*TINY, "schedule=constant").code == 0
    run = run_folder(folder)
    before = metrics(run)
    again = train("resume", str(run))
    assert (again.code, metrics(run)) == (0, before)
    assert "complete" in again.out
    assert train("resume", str(run), "epochs=4").code == 0
    after = metrics(run)
    trained = [record for record in after if "val/loss" in record]
    assert [record["step"] for record in trained] == [5, 10, 15, 20]
    assert trained[:2] == [record for record in before if "val/loss" in record]
    assert result(run)["steps"] == 20
    assert "test/accuracy" in after[-1]
    assert sum("test/accuracy" in record for record in after) == 1


@pytest.mark.parametrize("change", ["optimizer.lr=1", "seed=5", "model=mlp"])
def test_resume_refuses_another_run(train: Train, folder: Path, change: str) -> None:
    assert train(*TINY).code == 0
    run = run_folder(folder)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = train("resume", str(run), change)
    assert said.code == 2
    assert change.partition("=")[0] in said.problems[0]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_evaluate_gives_the_metrics_of_the_result(train: Train, folder: Path) -> None:
    assert train(*TINY).code == 0
    run = run_folder(folder)
    said = train("evaluate", str(run))
    assert said.code == 0
    told = json.loads(said.out)
    expected = result(run)["best"]["metrics"] | result(run)["test"]
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_a_folder_in_use_is_left_alone(train: Train, folder: Path) -> None:
    assert train(*TINY).code == 0
    run = run_folder(folder)
    lock = Lock(run)
    said = train("resume", str(run), "epochs=3")
    lock.release()
    assert said.code == 75
    assert "in use" in said.problems[0]


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    done = subprocess.run(
        f"{PROGRAM} --help | head -n 1", shell=True, capture_output=True, text=True, executable="/bin/bash", cwd=folder
    )
    assert done.stderr == ""
    assert done.stdout.startswith("train")


def test_a_user_s_own_options_are_found(train: Train, folder: Path) -> None:
    own = folder / "mine" / "optimizer"
    own.mkdir(parents=True)
    (own / "slow.yaml").write_text("# SGD, slowly\n_target_: torch.optim.SGD\nlr: 1.0e-9\n")
    assert train("--config-dir", "mine", *TINY, "optimizer=slow").code == 0
    assert max(record.get("lr", 0.0) for record in metrics(run_folder(folder))) < 1e-9
    assert "SGD, slowly" in train("--help", "--config-dir", "mine").out


@pytest.mark.slow
def test_help_takes_a_quarter_of_importing_torch(folder: Path) -> None:
    def seconds(command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=os.environ)
        return time.perf_counter() - start

    pairs = [
        (seconds([str(PROGRAM), "--help"]), seconds([sys.executable, "-c", "import torch, torchvision"]))
        for _ in range(3)
    ]
    assert min(ours for ours, _ in pairs) < 0.6
    assert min(ours / theirs for ours, theirs in pairs) < 0.25
