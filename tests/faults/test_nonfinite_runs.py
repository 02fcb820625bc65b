"""Non-finite losses and gradients in whole runs: reported with their location, skipped, or rolled back."""

import json
import re
from pathlib import Path

import pytest
import torch
from harness import PARTS, but, differences, metric_lines, storm, train, undisturbed

from tests.forks import Zygote

# a layer whose k-th forward pass in training returns NaN; checkpoints include the count
POISON = """
import torch
from torch import nn

class Poison(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.count += 1
            x = torch.where(self.count == self.k, torch.nan, x)
        return x

def poisoned(k, input_shape, num_outputs):
    num_inputs = input_shape[0] * input_shape[1] * input_shape[2]
    model = nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, 16), nn.ReLU())
    model.add_module("dropped", nn.Dropout(0.2))
    model.add_module("poison", Poison(k))
    model.add_module("last", nn.Linear(16, num_outputs))
    return model
"""
STEPS = ["threads=1", "steps=30", "batch_size=64", "every.log=7step", "every.checkpoint=5step", "every.evaluate=11step"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that contains a user's model."""
    (tmp_path / "poison.py").write_text(POISON)
    (tmp_path / "options/model").mkdir(parents=True)
    (tmp_path / "options/model/poisoned.yaml").write_text("# poisoned\n_target_: poison.poisoned\nk: 0\n")
    return tmp_path


def train_poisoned(zygote: Zygote, home: Path, k: int, *arguments: str, run: str = "run") -> tuple[int, str]:
    own = ["--config-dir", str(home / "options"), "model=poisoned", f"model.k={k}"]
    environment = {"GEARSHIFT_TRUST": "poison", "PYTHONPATH": str(home)}
    return train(zygote, home, *own, *but(STEPS, *arguments, f"hydra.run.dir={run}"), environment=environment)


def result_of(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "result.json").read_text())
    return found


def last_of(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    state: dict[str, dict[str, torch.Tensor]] = torch.load(run / "checkpoints/last.pt", weights_only=True)
    return state


@pytest.mark.parametrize("optimizer", [["optimizer=adamw"], ["optimizer=momentum", "optimizer.fused=false"]])
@pytest.mark.parametrize("bad_step", [0, 3, 17])
def test_stop_names_the_step_and_the_layer(zygote: Zygote, home: Path, bad_step: int, optimizer: list[str]) -> None:
    code, output = train_poisoned(zygote, home, bad_step + 1, *optimizer)
    message = f"diverged at step {bad_step}: the output of layer 'poison' is not finite"
    advice = "; see on_nonfinite, clip_norm and the learning rate"
    if bad_step == 0:
        message = "not finite before any update (step 0): layer 'poison' (Poison) computes NaN from finite inputs"
        advice = " and weights, as by a logarithm of a negative number, 0/0 or an overflow"
    assert code == 70
    assert [line for line in output.splitlines() if line.startswith("error: ")] == [f"error: {message}{advice}"]
    result = result_of(home / "run")
    assert (result["status"], result["exit_code"]) == ("diverged", 70)
    assert str(result["error"]).startswith(message)
    for line in metric_lines(home / "run"):
        assert "nan" not in line, "what is not finite is not logged as if it were"


@pytest.mark.parametrize("bad_step", [0, 17])
@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_skip_leaves_the_step_out_and_says_so(zygote: Zygote, home: Path, optimizer: str, bad_step: int) -> None:
    """A fused kernel that skips by itself and a step that is skipped by the host give the same weights."""
    weights = []
    for fused in (True, False):
        code, output = train_poisoned(
            zygote, home, bad_step + 1, f"optimizer={optimizer}", f"optimizer.fused={fused}", "on_nonfinite=skip",
            "every.log=30step", "every.evaluate=30step", "every.checkpoint=30step", run=f"fused-{fused}",
        )  # fmt: skip
        assert code == 0, output
        assert f"1 of 30 steps were not finite and were skipped, the first of them step {bad_step}" in output
        assert result_of(home / f"fused-{fused}")["status"] == "completed"
        weights.append(last_of(home / f"fused-{fused}")["model"])
    for name, value in weights[0].items():
        assert torch.isfinite(value).all(), name
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6)


def test_a_skipped_step_is_the_same_as_one_that_never_was(zygote: Zygote, home: Path) -> None:
    """With a constant rate and plain SGD, skipping the last step gives the weights of a run one step shorter."""
    plain = ["optimizer=sgd", "schedule=constant", "on_nonfinite=skip", "every.checkpoint=1step"]
    assert train_poisoned(zygote, home, 30, *plain, run="skipped")[0] == 0
    assert train_poisoned(zygote, home, 30, *plain, "steps=29", run="shorter")[0] == 0
    skipped, shorter = (last_of(home / run)["model"] for run in ("skipped", "shorter"))
    for name in skipped:
        if name != "poison.count":
            assert torch.equal(skipped[name], shorter[name]), name


def test_rollback_gives_up_after_three_times(zygote: Zygote, home: Path) -> None:
    """The layer's count is part of the checkpoint, so the same step fails again at any learning rate."""
    code, output = train_poisoned(zygote, home, 18, "on_nonfinite=rollback", "schedule=constant", "optimizer.lr=0.01")
    assert code == 70
    rollbacks = re.findall(
        r"step (\d+) was not finite: rolled back to step (\d+), learning rate times ([\d.]+)", output
    )
    assert rollbacks == [("17", "15", rate) for rate in ("0.5", "0.25", "0.125")]
    assert "diverged at step 17: the output of layer 'poison' is not finite, after 3 rollbacks" in output
    assert result_of(home / "run")["status"] == "diverged"


def test_rollback_before_any_checkpoint_stops(zygote: Zygote, home: Path) -> None:
    code, output = train_poisoned(zygote, home, 3, "on_nonfinite=rollback")
    assert code == 70
    assert "diverged at step 2: the output of layer 'poison' is not finite; there is no checkpoint to roll" in output


# least squares with a rate above 2 / lambda: the loss grows until it overflows; with a lower rate it decreases
STEEP = but(
    [*PARTS, "model=linear", "loss=mse"], "optimizer=momentum", "optimizer.lr=0.7", "optimizer.momentum=0",
    "schedule=constant", "on_nonfinite=rollback", "clip_norm=null", "early_stopping=null", "steps=150",
    "every.evaluate=50step",
)  # fmt: skip
BACK = re.compile(r"step (\d+) was not finite: rolled back to step (\d+), learning rate times ([\d.]+)")


def test_rollback_halves_the_rate_and_each_step_is_logged_once(zygote: Zygote, tmp_path: Path) -> None:
    folder = undisturbed(zygote, STEEP, tmp_path / "run").folder
    records = [json.loads(line) for line in metric_lines(folder)]
    rollbacks = BACK.findall((folder / "train.log").read_text())
    assert [rate for _, _, rate in rollbacks] == ["0.5", "0.25"], "the run was to diverge twice"
    assert all(0 < int(bad) - int(back) < 5 and int(back) % 5 == 0 for bad, back, _ in rollbacks)
    assert [record["step"] for record in records if "lr" in record] == sorted({*range(7, 150, 7), 50, 100, 150})
    for record in records:
        if "lr" in record:
            before = sum(int(back) < record["step"] for _, back, _ in rollbacks)
            assert record["lr"] == 0.7 * 0.5**before, record["step"]
    losses = [record["train/loss"] for record in records if "lr" in record]
    assert max(losses) > 1e20 > 1e3 * losses[-1] / max(losses)


def test_a_checkpoint_that_a_signal_made_is_no_place_to_roll_back_to(zygote: Zygote, tmp_path: Path) -> None:
    """An undisturbed run does not have it."""
    reference = undisturbed(zygote, STEEP, tmp_path / "reference").folder
    bad, back, _ = BACK.findall((reference / "train.log").read_text())[0]
    assert int(bad) - int(back) >= 3
    starts = [STEEP, ["resume"], ["resume"]]
    calls = [int(back) + 1, 1, 0]
    for sitting, (start, call) in enumerate(zip(starts, calls, strict=True)):
        where = f"{tmp_path}/run" if start == ["resume"] else f"hydra.run.dir={tmp_path}/run"
        fault = {
            "signal": 15,
            "during": "trainer.training.loop.train_step",
            "call": call,
            "slow_disk": 0.2 if call > 1 else 0,
        }
        code, output = train(zygote, tmp_path, *start, where, sitting=sitting, fault=fault)
        assert code == (143 if call else 0), output
    assert differences(reference, tmp_path / "run") == []


def test_a_run_that_rolls_back_may_be_killed_too(zygote: Zygote, tmp_path: Path) -> None:
    reference = undisturbed(zygote, STEEP, tmp_path / "reference")
    kills = storm(zygote, STEEP, tmp_path / "run", reference, seed=0, num_kills=3)
    assert differences(reference.folder, tmp_path / "run") == [], kills
