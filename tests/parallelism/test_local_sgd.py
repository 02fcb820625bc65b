"""Local SGD equals one device if it averages after each step; otherwise it learns, and resumes with the same bits."""

import pickle
from typing import Any

import pytest
import torch

from tests.parallelism.harness import DOUBLE, advance, curve, difference, make, spawn, state_of, tolerance
from trainer.parallelism.local_sgd import LocalSGD
from trainer.training.state import capture, restore
from trainer.training.step import train_step

BASE = ["device=cpu", "threads=1", "schedule=constant", "model=mlp", "model.hidden=[32]"]
# a step's last micro-batch has four samples, that of the last batch (157 samples) one: some ranks' shards are empty
RAGGED = ["batch_size=160", "micro_batch=156", "model.drop_prob=0.3"]


@pytest.mark.proves(
    "parallelism=local_sgd",
    reference="parallelism=single, for a period of one step",
    tolerance="1e-12 in float64 over 12 steps",
)
@pytest.mark.parametrize(
    ("optimizer", "world_size", "double"),
    [
        ("momentum", 2, True),
        pytest.param("sgd", 2, False, marks=pytest.mark.slow),
        pytest.param("momentum", 4, True, marks=pytest.mark.slow),
    ],
)
def test_an_average_after_each_step_is_one_device(optimizer: str, world_size: int, double: bool) -> None:
    steps = 12 if world_size == 2 and double else 50  # the ninth batch is the ragged one
    overrides = [*BASE, *RAGGED, f"optimizer={optimizer}", "optimizer.lr=0.05"]
    [reference] = spawn(1, curve, [*overrides, "parallelism=single"], steps, double)
    [exact] = [reference] if double else spawn(1, curve, [*overrides, "parallelism=single"], steps, True)
    allowed = DOUBLE if double else tolerance(exact, reference)
    more = ["parallelism=local_sgd", "parallelism.period=1"]
    for answer in spawn(world_size, curve, [*overrides, *more], steps, double):
        assert max(difference(exact, answer).values()) < allowed


# --- with a period ----------------------------------------------------------------------------------------

LOCAL = [
    *BASE, "batch_size=64", "model.norm=batch", "optimizer=momentum", "optimizer.lr=0.1", "parallelism=local_sgd",
    "parallelism.period=4", "steps=36",
]  # fmt: skip


def own(run: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def inspected() -> dict[str, Any]:
    """A run of 36 steps, and this rank's weights at step 6 (between two averages) and step 8 (after one)."""
    run = make(LOCAL, True)
    losses = advance(run, 6)
    found: dict[str, Any] = {"own": own(run), "mean": state_of(run)["model"]}
    with torch.inference_mode(), run.strategy.evaluating(run.model):
        found["evaluated"] = own(run)
    found["after"] = own(run)
    found["saved"] = pickle.dumps(capture(run))
    found["losses"] = losses + advance(run, 2)
    found["averaged"] = own(run)
    found["losses"] += advance(run, 28)
    found["last"] = own(run)
    return found


def resumed(saved: bytes) -> dict[str, Any]:
    run = make(LOCAL, True)
    restore(run, pickle.loads(saved))
    return {"losses": advance(run, 30), "last": own(run)}


def test_ranks_go_apart_meet_and_learn_and_go_on_with_the_same_bits() -> None:
    one, other = spawn(2, inspected)
    for name, mean in one["mean"].items():
        wanted = (one["own"][name] + other["own"][name]) / 2
        assert torch.equal(mean, wanted.to(mean.dtype)) and torch.equal(mean, other["mean"][name]), name
        assert torch.equal(one["evaluated"][name], mean) and torch.equal(other["evaluated"][name], mean)
        assert torch.equal(one["after"][name], one["own"][name])
        assert torch.equal(one["averaged"][name], other["averaged"][name])
    assert any(not torch.equal(value, other["own"][name]) for name, value in one["own"].items())
    assert any("running_mean" in name for name in one["own"])
    assert sum(one["losses"][-5:]) / 5 < one["losses"][0] / 10

    for before, after in zip((one, other), spawn(2, resumed, one["saved"]), strict=True):
        assert after["losses"] == before["losses"][6:]
        assert all(torch.equal(value, before["last"][name]) for name, value in after["last"].items())


def clipped_then_bad() -> dict[str, Any]:
    """One step that is clipped, and one in which rank 1's gradient is infinite."""
    run = make([*BASE, "optimizer=sgd", "parallelism=local_sgd", "clip_norm=0.01", "batch_size=64"])
    run.model.train()
    batches = iter(run.batches.epoch(0))
    train_step(run, next(batches))
    clipped = torch.cat([gradient.flatten() for gradient in run.objective.gradients()]).norm()
    norm = run.guard.read()[0]
    before = own(run)
    if run.strategy.rank == 1:
        next(run.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    train_step(run, next(batches))
    same = all(torch.equal(value, before[name]) for name, value in own(run).items())
    return {"clipped": float(clipped), "norm": norm, "flags": run.guard.read()[1], "same": same}


def test_ranks_clip_by_their_own_norms_and_leave_a_bad_step_out_together() -> None:
    one, other = spawn(2, clipped_then_bad)
    assert one["norm"] != other["norm"]
    for answer in (one, other):
        assert answer["clipped"] == pytest.approx(0.01, rel=1e-5)
        assert answer["flags"] == [True] and answer["same"]


# --- what is said -----------------------------------------------------------------------------------------


def test_it_says_that_it_is_not_one_device() -> None:
    strategy = LocalSGD(devices=3, period=4)
    strategy.plan(None, 1)
    assert strategy.notices(torch.nn.Linear(2, 2)) == [
        "weights are averaged only every 4 steps: the curve is not that of one device"
    ]
    strategy.period = 1
    assert strategy.notices(torch.nn.Linear(2, 2)) == []
    assert "batch norm" in strategy.notices(torch.nn.BatchNorm1d(2))[0]


def test_a_period_is_at_least_one_step() -> None:
    with pytest.raises(ValueError, match="period=0: must be at least 1"):
        LocalSGD(period=0)
