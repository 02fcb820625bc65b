"""Parameter groups from the configuration: rates, weight decay, freezing and unfreezing, partial weights."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.cut_runs import check_cut_run
from tests.parallelism.harness import advance, make, spawn, state_of
from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.assembly.weights import read_weights
from trainer.base.errors import ConfigurationError, DataError, GearshiftError
from trainer.configuration.resolve import resolve
from trainer.storage.files import seal
from trainer.training.loop import train
from trainer.training.run import Run
from trainer.training.state import capture, restore

MLP = ["model=mlp", "model.hidden=[16,16]", "device=cpu", "threads=1", "early_stopping=null", "schedule=constant"]
BODY = ["parameter_groups.body.match=[linear1.*,norm1.*]"]


def build(*overrides: str) -> Run:
    return build_run(resolve(compose([*MLP, *overrides])))


def groups(run: Run) -> dict[str, tuple[float, float, set[str]]]:
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    return {
        group["name"]: (group["lr"], group["weight_decay"], {names[id(p)] for p in group["params"]})
        for group in run.optimizer.param_groups
    }


def test_the_first_entry_that_matches_wins_then_no_weight_decay() -> None:
    run = build(
        "optimizer.lr=0.01", "optimizer.weight_decay=0.1",
        "parameter_groups.head.match='output.*'", "parameter_groups.head.lr_factor=10",
        "parameter_groups.first.match='linear1.*'", "parameter_groups.first.weight_decay=0.3",
        "parameter_groups.rest.match=['*.weight']", "parameter_groups.rest.lr_factor=0.5",
    )  # fmt: skip
    assert groups(run) == {
        "no_decay": (0.01, 0.0, {"linear2.bias"}),
        "head": (0.1, 0.1, {"output.weight"}),
        "head/no_decay": (0.1, 0.0, {"output.bias"}),
        "first": (0.01, 0.3, {"linear1.weight", "linear1.bias"}),
        "rest": (0.005, 0.1, {"linear2.weight"}),
    }


def test_without_entries_the_groups_are_those_of_before() -> None:
    assert list(groups(build())) == ["decay", "no_decay"]
    assert list(groups(build("optimizer.weight_decay=0"))) == ["decay"]


def test_rates_follow_the_schedule_and_are_reported_by_group() -> None:
    overrides = ["parameter_groups.head.match='output.*'", "parameter_groups.head.lr_factor=3", "optimizer.lr=0.01"]
    run = build_run(resolve(compose([*MLP[:-1], *overrides, "schedule=step", "schedule.every=2step", "steps=3"])))
    assert train(run) == "completed"
    assert run.lrs == pytest.approx({"lr": 0.001, "lr/head": 0.003})


def copied(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def changed(before: dict[str, Tensor], run: Run) -> set[str]:
    return {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}


def test_frozen_parameters_and_the_statistics_of_their_batch_norm_keep_their_bits() -> None:
    run = build("model.norm=batch", *BODY, "parameter_groups.body.frozen=true", "epochs=2")
    before = copied(run)
    assert train(run) == "completed"
    different = changed(before, run)
    assert not any(name.startswith(("linear1", "norm1")) for name in different)
    assert {"linear2.weight", "norm2.running_mean", "norm2.weight", "output.bias"} <= different
    assert all("linear1" not in name for _, _, names in groups(run).values() for name in names)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "rmsprop"])
def test_unfrozen_parameters_begin_as_in_a_run_of_their_own(optimizer: str) -> None:
    """Until the moment, the run is one with the parameters frozen; then their state begins as in a first step."""
    more = ["model.norm=batch", f"optimizer={optimizer}", "limit_batches=5", "epochs=2"]
    gradual = build(*more, *BODY, "parameter_groups.body.unfreeze_at=1ep")
    frozen = build(*more, *BODY, "parameter_groups.body.frozen=true")
    start = copied(gradual)
    advance(gradual, 5), advance(frozen, 5)
    for name, value in frozen.model.state_dict().items():
        assert torch.equal(gradual.model.state_dict()[name], value), name
    assert not any(p in gradual.optimizer.state for n, p in gradual.model.named_parameters() if n.startswith("linear1"))
    advance(gradual, 1)
    assert {"linear1.weight", "norm1.weight", "norm1.running_mean"} <= changed(start, gradual)
    if optimizer == "momentum":  # the first step of momentum is a step of SGD
        state = gradual.optimizer.state[dict(gradual.model.named_parameters())["linear1.weight"]]
        assert torch.isfinite(state["momentum_buffer"]).all()


@pytest.mark.parametrize("step", [2, 6, 10])
def test_a_run_that_is_cut_has_the_same_bits(step: int, tmp_path: Path) -> None:
    more = [*BODY, "parameter_groups.body.unfreeze_at=2ep", "limit_batches=4", "epochs=3", "every.checkpoint=3step"]
    assert check_cut_run([*MLP, "model.norm=batch", *more], step, tmp_path) == 12


def test_what_was_unfrozen_is_frozen_again_after_a_rollback() -> None:
    run = build("model.norm=batch", *BODY, "parameter_groups.body.unfreeze_at=5step", "steps=20")
    advance(run, 3)
    state = copy.deepcopy(capture(run))
    advance(run, 4)
    restore(run, state)
    before = copied(run)
    advance(run, 1)
    assert not any(name.startswith(("linear1", "norm1")) for name in changed(before, run))


def trained(overrides: list[str], steps: int) -> dict[str, Any]:
    run = make([*overrides, f"steps={steps}"])
    losses = advance(run, steps)
    return {"losses": losses, **state_of(run)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallelism", "how"),
    [(p, how) for p in ("ddp", "fsdp", "tensor") for how in ("frozen=true", "unfreeze_at=5step", "lr_factor=0.1")]
    + [("pipeline", "unfreeze_at=5step"), ("pipeline", "lr_factor=0.1")],
)
def test_ranks_have_the_weights_of_one_device(parallelism: str, how: str) -> None:
    lenet = ["model=lenet", "model.channels=[4,8]", "model.hidden=[16]", "model.norm=none", "model.activation=tanh"]
    more = ["device=cpu", "threads=1", "optimizer=momentum", "batch_size=60", "schedule=constant"]
    overrides = [*lenet, *more, "parameter_groups.body.match='conv*'", f"parameter_groups.body.{how}"]
    (alone,) = spawn(1, trained, [*overrides, "parallelism=single"], 10)
    found = spawn(2, trained, [*overrides, f"parallelism={parallelism}", "parallelism.devices=2"], 10)[0]
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for name, value in alone["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5)


HEAD = "parameter_groups.a.match='output.*'"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parameter_groups.a.match='linar1.*'"], r"match=linar1.\*: matches no parameter, such as linear1"),
        (["parameter_groups.a.match='*'", "parameter_groups.a.frozen=true"], "all parameters are frozen"),
        ([HEAD, "parameter_groups.a.unfreeze_at=100%"], "is not before the end of the run"),
        ([HEAD, "parameter_groups.a.unfreeze_at=1ep", "optimizer=lbfgs"], "optimizer=lbfgs steps all"),
        ([HEAD, "parameter_groups.a.weight_decay=0.1", "optimizer=lbfgs"], "has no weight decay"),
        ([HEAD, "parameter_groups.a.lr_factor=0"], "parameter_groups.a.lr_factor=0: must be in"),
        (["parameter_groups.a.frozen=true"], "parameter_groups.a.match: is missing"),
        (["parameter_groups.a.match='linear1.*'", "parameter_groups.a.frozen=true", "parallelism=pipeline",
          "parallelism.devices=3"], r"all parameters of stage 1 \(flatten, ...\) are frozen"),
        ([HEAD, "parameter_groups.a.frozen=true", "parameter_groups.a.unfreeze_at=1ep"], "give one of the two"),
        (["parameter_groups.decay.match=x"], "parameter_groups.decay: is not a name for a group"),
        ([HEAD, "parameter_groups.a.lr_fctor=1"], "does not exist. Did you mean 'parameter_groups.a.lr_factor'"),
    ],
)  # fmt: skip
def test_wrong_groups_are_one_clear_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(compose([*MLP, *overrides]))


# --- weights of another model ---------------------------------------------------------------------------------


def test_weights_that_fit_are_taken_and_the_rest_is_told(tmp_path: Path) -> None:
    other = nn.ModuleDict({"linear1": nn.Linear(64, 16), "linear2": nn.Linear(16, 9), "extra": nn.Linear(2, 2)})
    torch.save(other.state_dict(), tmp_path / "other.pt")
    start = f"init_from={tmp_path / 'other.pt'}"
    with pytest.raises(ConfigurationError, match=r"does not fit the model at .*; init_strict=false takes what fits"):
        build(start)
    run = build(start, "init_strict=false")
    assert torch.equal(run.model.state_dict()["linear1.weight"], other["linear1"].weight)
    (notice,) = run.notices
    assert "2 taken: linear1.bias, linear1.weight" in notice
    assert "4 left out: extra.bias (2,), extra.weight (2, 2), linear2.bias (9,), linear2.weight (9, 16)" in notice
    assert "4 new: linear2.bias (16,), linear2.weight (16, 16), output.bias (10,), output.weight (10, 16)" in notice


def test_weights_of_which_none_fits_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConfigurationError, match="has no weight with the name and shape of one of the model's"):
        build(f"init_from={tmp_path / 'other.pt'}", "init_strict=false")


def archive(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.zeros((10, 64)))
    return buffer.getvalue()


def flipped(content: bytes) -> bytes:
    """One bit of the tensor's numbers, which torch does not notice."""
    place = content.index(bytes(2000)) + 1000
    return content[:place] + b"\x10" + content[place + 1 :]


PLAIN = archive({"weight": torch.zeros(10, 64)})
LEGACY = io.BytesIO()
torch.save({"weight": torch.zeros(10, 64)}, LEGACY, _use_new_zipfile_serialization=False)
WRONG: dict[str, bytes] = {
    "a text": b"no weights", "a list": archive([1, 2]), "a number among tensors": archive({"weight": 5}),
    "a module": archive(nn.Linear(2, 2)), "another archive": npz(), "mappings": archive({"model": {"a": {}}}),
}  # fmt: skip
DAMAGED: dict[str, bytes] = {
    "empty": b"", "cut": PLAIN[:2000], "cut at its end": PLAIN[:-10], "a flipped bit": flipped(PLAIN),
    "a checkpoint, cut": seal(PLAIN)[:2000], "a checkpoint with a flipped bit": flipped(seal(PLAIN)),
    "a sealed text": seal(b"no archive"), "a sealed list": seal(archive([1, 2])), "of torch 1.5, cut":
    LEGACY.getvalue()[:-100],
}  # fmt: skip


@pytest.mark.parametrize("place", ["init_from", "prune.source"])
@pytest.mark.parametrize("kind", [*WRONG, *DAMAGED])
def test_what_is_damaged_is_told_apart_from_what_is_something_else(tmp_path: Path, kind: str, place: str) -> None:
    (tmp_path / "weights.pt").write_bytes((WRONG | DAMAGED)[kind])
    with pytest.raises(GearshiftError, match=rf"^{place}={tmp_path}/weights\.pt: ") as caught:
        read_weights(tmp_path / "weights.pt", place)
    assert caught.value.exit_code == (2 if kind in WRONG else 65)


@pytest.mark.parametrize("content", [PLAIN, seal(PLAIN), LEGACY.getvalue()])
def test_sound_weights_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    assert read_weights(tmp_path / "weights.pt", "init_from")["weight"].shape == (10, 64)


def test_a_run_folder_as_a_start(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigurationError, match="the run has no best weights"):
        read_weights(tmp_path, "init_from")
    (tmp_path / "checkpoints/best.pt").write_bytes(flipped(seal(PLAIN)))
    with pytest.raises(DataError, match=r"best\.pt is damaged"):
        read_weights(tmp_path, "init_from")
    (tmp_path / "checkpoints/best.pt").rename(tmp_path / "checkpoints/best.previous.pt")
    with pytest.raises(DataError, match=r"best\.pt does not exist"):
        read_weights(tmp_path, "init_from")
