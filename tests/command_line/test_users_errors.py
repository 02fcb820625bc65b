"""An error in a class of the user's that shows only during a run is told as theirs, with file and line."""

import json
import sys
from pathlib import Path

import pytest

from tests.command_line.conftest import Train
from tests.forks import train as train_in_a_process

MINE = '''
import torch
from torch import nn
from torch.nn import functional as F

class Late:
    """A loss that fails after some calls."""
    tasks, metrics = {"classification"}, {"classification": ()}
    calls = 0
    def __call__(self, outputs, targets):
        self.calls += 1
        if self.calls > 4:
            {}["late"]
        return F.cross_entropy(outputs, targets, reduction="sum")

class Helped(Late):
    def __call__(self, outputs, targets):
        from trainer.losses import CrossEntropy
        self.calls += 1
        return CrossEntropy()(outputs, targets if self.calls < 5 else targets.float().view(-1, 1))

class Net(nn.Module):
    """A model with a branch that not every step takes."""
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.one, self.two = nn.Linear(64, num_outputs), nn.Linear(64, num_outputs)
        self.calls = 0
    def forward(self, images):
        self.calls += 1
        return self.one(images.flatten(1)) + (self.two(images.flatten(1)) if self.calls < 3 else 0)
'''


def write(folder: Path) -> None:
    (folder / "mine.py").write_text(MINE)
    sys.modules.pop("mine", None)  # of another test's folder
    for group, name in (("loss", "Late"), ("loss", "Helped"), ("model", "Net")):
        path = folder / "options" / group / f"{name.lower()}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# For a test\n_target_: mine.{name}\n")


FLAGS = ["--trust", "mine", "--config-dir", "options", "model=linear", "threads=1", "steps=6"]


@pytest.mark.parametrize(
    ("name", "place"),
    [("late", "mine.py:13 in __call__: KeyError: 'late'"), ("helped", "mine.py:20 in __call__: RuntimeError: ")],
)
def test_a_failing_loss_is_theirs(train: Train, folder: Path, name: str, place: str) -> None:
    write(folder)
    done = train(*FLAGS, f"loss={name}", "name=mine")
    (line,) = done.problems
    assert (done.code, line.startswith(place)) == (2, True), line
    (path,) = folder.glob("outputs/*/*-mine/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["exit_code"], result["error"]) == ("failed", 2, line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "words"),
    [("loss=late", "mine.py:13 in __call__: KeyError: 'late'"), ("model=net", "parallelism.unused_parameters=true")],
)
def test_in_several_processes_it_is_theirs_too(folder: Path, word: str, words: str) -> None:
    write(folder)
    flags = [flag for flag in FLAGS if flag.partition("=")[0] != word.partition("=")[0]]
    several = ["parallelism=ddp", "parallelism.devices=2", "parallelism.max_restarts=2"]
    done = train_in_a_process(folder, *flags, word, *several)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith("error: rank "), words in line) == (2, True, True), line
    assert "restart" not in line + done.stdout
