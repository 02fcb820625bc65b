"""A run that is killed at any instant and resumed ends with the same bits as one that nobody disturbed."""

import json
from itertools import count
from pathlib import Path

import pytest
from harness import CONFIGURATIONS, RealProcesses, Zygote, but, differences, events, storm, undisturbed


def test_the_configurations_exercise_what_they_are_for(zygote: Zygote, tmp_path: Path) -> None:
    """A schedule that falls, a stop before the end, a loss scale that moves: else their state would not matter."""
    status = {}
    for name, arguments in CONFIGURATIONS.items():
        folder = undisturbed(zygote, arguments, tmp_path / name).folder
        status[name] = json.loads((folder / "result.json").read_text())["status"]
        tags = events(folder)
        assert len(set(tags["lr"].values())) > 1, name
        assert {"train/first_batch", "test/confusion_matrix", "_hparams_/session_end_info"} <= tags.keys()
    assert status == dict.fromkeys(CONFIGURATIONS, "completed") | {"momentum": "early_stopped"}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_kills_at_random_leave_no_trace(zygote: Zygote, tmp_path: Path, name: str) -> None:
    reference = undisturbed(zygote, CONFIGURATIONS[name], tmp_path / "reference")
    kills = storm(zygote, CONFIGURATIONS[name], tmp_path / "run", reference, seed=0, num_kills=2)
    assert differences(reference.folder, tmp_path / "run") == [], kills


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_storm_over_real_processes_leaves_no_trace(tmp_path: Path, name: str) -> None:
    """At least eight kills a configuration, four a run, of processes as a user starts them."""
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
