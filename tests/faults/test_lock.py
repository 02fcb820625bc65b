"""One process per run folder: a second one is refused, and does not disturb the first."""

import os
from pathlib import Path

import pytest
from harness import (
    CONFIGURATIONS,
    PARTS,
    but,
    differences,
    finish,
    train,
    wait_for_lines,
)

from tests.forks import ROOT, Zygote
from trainer.base.errors import RunInUse
from trainer.storage.run_folder import Lock

# does not end by itself
ENDLESS = but(CONFIGURATIONS["adamw"], "steps=1000000", "early_stopping=null", "schedule=constant")
# a model that waits at its tenth batch while a file exists
GATED = """
import os, time
from pathlib import Path
from torch import nn

class Gated(nn.Flatten):
    calls = 0

    def forward(self, images):
        if self.training and images.device.type == "cpu":
            self.calls += 1
            while self.calls > 10 and Path("gate").exists():
                Path("waits").touch()
                time.sleep(0.01)
        return super().forward(images)

def gated(input_shape, num_outputs):
    return nn.Sequential(Gated(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_outputs))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_process_leaves_with_75_and_changes_nothing(zygote: Zygote, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(zygote, tmp_path, *CONFIGURATIONS["adamw"], "hydra.run.dir=run")[0] == 0
    (run / "result.json").unlink()
    (run / ".of-the-first.tmp").write_bytes(b"half of a file")
    before = contents(run)
    lock = Lock(run)
    (run / ".of-the-first.tmp").write_bytes(b"half of a file")
    code, output = train(zygote, tmp_path, "resume", "run", "steps=99", sitting=1)
    assert (code, output) == (75, "error: run is in use by another process\n")
    assert contents(run) == before
    lock.release()
    assert train(zygote, tmp_path, "resume", "run", sitting=2)[0] == 0


def test_a_run_holds_its_folder_from_the_first_to_the_last_moment(zygote: Zygote, tmp_path: Path) -> None:
    process = zygote.start([*ENDLESS, "hydra.run.dir=run"], tmp_path)
    wait_for_lines(process, tmp_path / "run", 1)
    with pytest.raises(RunInUse, match="run is in use by another process"):
        Lock(tmp_path / "run")
    process.kill()
    Lock(tmp_path / "run").release()


@pytest.mark.slow
def test_two_processes_on_one_folder(zygote: Zygote, tmp_path: Path) -> None:
    """The first process ends as if it had been alone."""
    (tmp_path / "gated_model.py").write_text(GATED)
    (tmp_path / "options/model").mkdir(parents=True)
    (tmp_path / "options/model/gated.yaml").write_text("# gated\n_target_: gated_model.gated\n")
    arguments = ["--config-dir", "options", *but(PARTS, "model=gated", "steps=100")]
    trusting = {"GEARSHIFT_TRUST": "gated_model", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    assert train(zygote, tmp_path, *arguments, "hydra.run.dir=reference", environment=trusting)[0] == 0
    (tmp_path / "gate").touch()
    first = zygote.start([*arguments, "hydra.run.dir=run"], tmp_path, environment=trusting)
    while not (tmp_path / "waits").exists():
        assert first.wait(0.01) is None, first.output()
    others = [zygote.start(["resume", "run"], tmp_path, environment=trusting) for _ in range(2)]
    assert [finish(other) for other in others] == [75, 75]
    assert first.wait(0) is None
    (tmp_path / "gate").unlink()
    assert finish(first) == 0
    assert differences(tmp_path / "reference", tmp_path / "run") == []
