"""A run that is killed at any moment and resumed ends with the same bits as an uninterrupted one."""

import json
import signal
from itertools import count
from pathlib import Path

import pytest
from faults import EXIT_CODE
from harness import CONFIGURATIONS, RealProcesses, but, differences, events, storm, train, undisturbed

from tests.forks import Zygote


def test_the_configurations_exercise_what_they_are_for(zygote: Zygote, tmp_path: Path) -> None:
    """The schedule decreases, early stopping takes effect and the loss scale changes, so that their states matter."""
    status = {}
    for name, arguments in CONFIGURATIONS.items():
        folder = undisturbed(zygote, arguments, tmp_path / name).folder
        status[name] = json.loads((folder / "result.json").read_text())["status"]
        tags = events(folder)
        assert len(set(tags["lr"].values())) > 1, name
        assert {"train/first_batch", "test/confusion_matrix", "_hparams_/session_end_info"} <= tags.keys()
    assert status == dict.fromkeys(CONFIGURATIONS, "completed") | {"momentum": "early_stopped"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("fp16", "bf16"))) for name in CONFIGURATIONS]
)
def test_a_run_in_many_sittings_is_one_run(zygote: Zygote, tmp_path: Path, name: str) -> None:
    """Stopped every 13 steps, with a different state of epoch, logs, plateau, patience and loss scale each time."""
    reference = undisturbed(zygote, CONFIGURATIONS[name], tmp_path / "reference").folder
    arguments = [*CONFIGURATIONS[name], f"hydra.run.dir={tmp_path}/run"]
    fault = {
        "signal": int(signal.SIGTERM),
        "during": "trainer.training.loop.train_step",
        "call": 13,
    }
    for sitting in count():
        code, output = train(zygote, tmp_path, *arguments, sitting=sitting, fault=fault)
        if code != 128 + signal.SIGTERM:
            break
        arguments = ["resume", str(tmp_path / "run")]
    assert code == 0, output
    assert sitting == json.loads((reference / "result.json").read_text())["steps"] // 13
    picture = "events['test/confusion_matrix']"
    assert [line for line in differences(reference, tmp_path / "run") if not line.startswith(picture)] == []


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_kills_at_random_leave_no_trace(zygote: Zygote, tmp_path: Path, name: str) -> None:
    reference = undisturbed(zygote, CONFIGURATIONS[name], tmp_path / "reference")
    kills = storm(zygote, CONFIGURATIONS[name], tmp_path / "run", reference, seed=0, num_kills=2)
    assert differences(reference.folder, tmp_path / "run") == [], kills


def test_killed_between_the_decision_to_stop_early_and_the_result(zygote: Zygote, tmp_path: Path) -> None:
    reference = undisturbed(zygote, CONFIGURATIONS["momentum"], tmp_path / "reference").folder
    fault = {"folder": str(tmp_path / "run"), "at": ("replace .result.json.#.tmp", 0)}
    arguments = [*CONFIGURATIONS["momentum"], f"hydra.run.dir={tmp_path}/run"]
    assert train(zygote, tmp_path, *arguments, fault=fault)[0] == EXIT_CODE
    assert train(zygote, tmp_path, "resume", str(tmp_path / "run"), sitting=1)[0] == 0
    assert differences(reference, tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_storm_over_real_processes_leaves_no_trace(tmp_path: Path, name: str) -> None:
    """At least eight kills per configuration, four per run, of processes started as by a user."""
    arguments = but(CONFIGURATIONS[name], "steps=300", "every.log=19step", "every.evaluate=31step")
    reference = undisturbed(RealProcesses(), arguments, tmp_path / "reference")
    kills: list[str] = []
    for seed in count():
        run = tmp_path / f"run-{seed}"
        now = storm(RealProcesses(), arguments, run, reference, seed, num_kills=4)
        assert differences(reference.folder, run) == [], now
        kills += now
        if len(kills) >= 8:
            break
