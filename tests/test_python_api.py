"""`compose`, `assemble` and `fit` in a fresh process give the results of the command line."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.forks import train
from trainer import assemble, compose
from trainer.base.errors import ConfigurationError

OVERRIDES = ["model=mlp", "epochs=1", "batch_size=16", "seed=7", "every.log=10step"]
SCRIPT = f"""
import json, sys
from dataclasses import asdict
from trainer import compose
config = compose({OVERRIDES})
light = "torch" not in sys.modules
from trainer import assemble, fit
run = assemble(config)
result = fit(run)
print(json.dumps([light, asdict(result)]))
"""


def in_a_process(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env=env | {"OMP_NUM_THREADS": "1"}, stdout=pipe, stderr=pipe, text=True
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All records; throughput, which varies, only by name."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: None if k.startswith("throughput/") else v for k, v in line.items()} for line in lines]


def test_a_run_in_a_script_is_the_run_of_the_command_line(tmp_path: Path) -> None:
    homes = tmp_path / "python", tmp_path / "shell"
    for home in homes:
        home.mkdir()
    script = in_a_process("-c", SCRIPT, cwd=homes[0])
    command = train(homes[1], *OVERRIDES)
    printed, script_errors = script.communicate()
    assert (script.returncode, script_errors, command.returncode, command.stderr) == (0, "", 0, "")

    light, result = json.loads(printed.splitlines()[-1])
    assert light  # `compose` does not import torch
    folders = [next(home.glob("outputs/*/*")) for home in homes]
    for folder in folders:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {
            "config.yaml", "overrides.yaml", "environment.json", "metrics.jsonl", "result.json", "train.log",
            "curves.png", "checkpoints/last.pt", "checkpoints/best.pt",
        } <= names  # fmt: skip
        assert any(name.startswith("events.out.tfevents.") for name in names)

    assert result == json.loads((folders[0] / "result.json").read_text())
    assert (homes[0] / result["folder"]).resolve() == folders[0].resolve()
    assert (result["status"], result["steps"]) == ("completed", 90)  # 1437 samples, 16 per step
    assert result["test"]["test/accuracy"] > 0.8

    lines = metrics(folders[0])
    assert lines == metrics(folders[1])
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 90]
    assert all(math.isfinite(value) for line in lines for value in line.values() if value is not None)
    assert lines[-1]["test/accuracy"] == result["test"]["test/accuracy"]
    assert (folders[0] / "config.yaml").read_bytes() == (folders[1] / "config.yaml").read_bytes()


def test_compose_lists_every_problem() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose(["epochs=0", "optimizer.lr=-1", "every.log=50", "model=mlp", "precision=fp17"])
    assert sorted(line.partition(":")[0] for line in caught.value.problems) == [
        "epochs=0",
        "every.log=50",
        "optimizer.lr=-1",
        "precision=fp17",
    ]
    assert caught.value.exit_code == 2


def test_assemble_lists_every_problem_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["model=mlp", "model.hidden=[0]", "batch_size=5000", "early_stopping.monitor=val/acuracy"])
    with pytest.raises(ConfigurationError) as caught:
        assemble(config)
    text = str(caught.value)
    assert "hidden=[0]" in text and "batch_size=5000" in text and "Did you mean 'val/accuracy'?" in text
    assert list(tmp_path.iterdir()) == []
