"""Averages of weights against torch's AveragedModel and update_bn, and what a run makes of them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from tests.cut_runs import check_cut_run
from tests.parallelism.harness import advance, make, spawn
from trainer import assemble, compose, fit
from trainer.assembly.assemble import build_run
from trainer.averaging import EMA, Mean
from trainer.averaging.averaging import Averaging
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve
from trainer.storage import checkpoint
from trainer.training.evaluation_weights import at_evaluation_weights
from trainer.training.loop import train

LENGTH: dict[str, Any] = {"steps_per_epoch": 4, "total_steps": 20}
SMALL = ["model=mlp", "model.hidden=[16]", "model.norm=batch", "device=cpu", "threads=1", "early_stopping=null"]


def stepped(averaging: Averaging, reference: AveragedModel | None = None, steps: int = 20) -> dict[int, float]:
    """The average of one weight that is t^2 after step t; `reference` sees the same weights."""
    weight = nn.Parameter(torch.zeros(()))
    averaging.attach([weight])
    found = {}
    for step in range(1, steps + 1):
        with torch.no_grad():
            weight.fill_(float(step**2))
        averaging.stepped([step])
        pairs = list(averaging.evaluation_weights())
        if pairs:
            found[step] = pairs[0][1].item()
    return found


def torchs(average: Any, start: int = 0, every: int = 1, steps: int = 20) -> dict[int, float]:
    model = nn.ParameterList([nn.Parameter(torch.zeros(()))])
    averaged = AveragedModel(model, multi_avg_fn=average) if average else AveragedModel(model)
    found = {}
    for step in range(1, steps + 1):
        with torch.no_grad():
            model[0].fill_(float(step**2))
        if step > start and (step - start) % every == 0:
            averaged.update_parameters(model)
        if averaged.n_averaged > 0:
            found[step] = next(averaged.parameters()).item()
    return found


@pytest.mark.proves(
    "averaging=ema",
    reference="torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn",
    tolerance="1e-6 relative over 20 steps",
)
def test_ema_is_torchs() -> None:
    expected = torchs(get_ema_multi_avg_fn(0.9))
    assert stepped(EMA(0.9, warmup=False)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.proves("averaging=ema", reference="a table computed by hand, for the warm-up", tolerance="1e-6 relative")
def test_the_warmup_of_ema_by_hand() -> None:
    """d_1 = 2/11, d_2 = 3/12, and so on, up to 0.3."""
    average, expected = 1.0, {1: 1.0}
    for step in range(2, 9):
        decay = min(0.3, step / (step + 9))
        average = decay * average + (1 - decay) * step**2
        expected[step] = average
    assert stepped(EMA(0.3), steps=8) == pytest.approx(expected, rel=1e-6)


@pytest.mark.proves(
    "averaging=polyak",
    "averaging=swa",
    reference="torch.optim.swa_utils.AveragedModel",
    tolerance="1e-6 relative over 20 steps",
)
@pytest.mark.parametrize(("start", "every"), [(0, 1), (10, 1), (8, 4)])
def test_means_are_torchs(start: int, every: int) -> None:
    averaging = Mean(f"{start}step", f"{every}step", **LENGTH)
    found = stepped(averaging)
    assert found == pytest.approx(torchs(None, start, every), rel=1e-6)
    taken = [step**2 for step in range(start + every, 21, every)]
    assert found[20] == pytest.approx(sum(taken) / len(taken), rel=1e-6)


@pytest.mark.parametrize(
    ("start", "total_steps", "begins"), [("99%", 3, 2), ("50%", 1, 0), ("50%", 10, 5), ("0%", 10, 0)]
)
def test_a_share_of_a_short_run_is_before_its_end(start: str, total_steps: int, begins: int) -> None:
    averaging = Mean(start, steps_per_epoch=1, total_steps=total_steps)
    assert averaging.start == begins
    shares = [averaging.share(step, 0) for step in range(1, total_steps + 1)]
    assert shares == [None] * begins + [1.0] * (total_steps - begins)


@pytest.mark.parametrize("start", ["100%", "10step"])
def test_the_end_of_the_run_is_too_late(start: str) -> None:
    with pytest.raises(ValueError, match=r"^start="):
        Mean(start, steps_per_epoch=1, total_steps=10)
    Mean("9step", steps_per_epoch=1, total_steps=10)


@pytest.mark.parametrize("option", ["ema", "polyak", "swa"])
def test_training_keeps_its_bits_and_best_weights_are_the_average(option: str, tmp_path: Path) -> None:
    overrides = [*SMALL, "epochs=3", "every.checkpoint=1ep", "augmentation=crop"]
    states = {}
    for choice in ("none", option):
        folder = tmp_path / choice
        assert fit(assemble(compose([*overrides, f"averaging={choice}"]), folder)).status == "completed"
        states[choice] = checkpoint.load(folder / "checkpoints/last.pt")
    for name, value in states["none"]["model"].items():
        assert torch.equal(value, states[option]["model"][name]), name
    best = checkpoint.load(tmp_path / option / "checkpoints/best.pt")
    kept = states[option]["averaging"]["state"]
    assert best["step"] == states[option]["step"]
    for name, item in kept.items():
        assert torch.equal(best["model"][name], item["average"])
        assert not torch.equal(best["model"][name], states[option]["model"][name])


@pytest.mark.proves("averaging=swa", reference="torch.optim.swa_utils.update_bn", tolerance="1e-5 relative")
def test_batch_norm_of_swa_is_torchs_update_bn() -> None:
    overrides = [*SMALL, "epochs=2", "averaging=swa", "averaging.start=50%", "averaging.batch_norm_samples=640"]
    run = build_run(resolve(compose(overrides)))
    assert train(run) == "completed"
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    images = run.preprocessing(run.splits.train.images_NCHW[:640])
    assert run.averaging is not None
    reference = copy.deepcopy(run.model)
    with at_evaluation_weights(run):
        found = {name: value.clone() for name, value in run.model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(found[name])
    update_bn([images], reference)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found["norm1.running_mean"], before["norm1.running_mean"])
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(("every", "advice"), [("2ep", None), ("3ep", "set averaging.every=20step"), ("1ep", None)])
def test_a_mean_that_never_begins_says_so(every: str, advice: str | None) -> None:
    told = Mean("2ep", every, steps_per_epoch=10, total_steps=40).notice(40)
    assert told is None if advice is None else told is not None and advice in told and "step 50," in told


@pytest.mark.parametrize("option", ["ema", "swa"])
def test_a_resumed_run_has_the_same_average(option: str, tmp_path: Path) -> None:
    # cut between two checkpoints
    check_cut_run([*SMALL, "averaging=" + option, "schedule=constant", "epochs=4"], 60, tmp_path)


@pytest.mark.proves(
    "averaging=snapshots",
    reference="the weights of a run without averaging at the ends of the cycles",
    tolerance="bitwise",
)
@pytest.mark.parametrize("stop", [25, 43, 46, 62])
def test_snapshots_are_the_weights_at_the_ends_of_cycles_also_after_a_stop(stop: int, tmp_path: Path) -> None:
    """Cycles of 23 steps end at 23, 46 and 69; a stop may come before, at, or after one that no checkpoint counts."""
    overrides = [
        *SMALL,
        "schedule=sgdr",
        "schedule.cycle=1ep",
        "schedule.multiply=1",
        "steps=69",
        "every.checkpoint=2ep",
    ]
    other = assemble(compose(overrides), tmp_path / "none")
    seen: dict[int, dict[str, Tensor]] = {}
    other.strategy.stepped = lambda model, step: seen.update(  # type: ignore[method-assign]
        {step: {name: value.clone() for name, value in model.state_dict().items()}}
    )
    fit(other)
    run = assemble(compose([*overrides, "averaging=snapshots"]), tmp_path / "run")
    assert run.averaging is not None
    stepped = run.averaging.stepped

    def once(moments: range) -> None:
        if stop in moments:
            raise KeyboardInterrupt
        stepped(moments)

    run.averaging.stepped = once  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(run)
    (tmp_path / "run/checkpoints/.snapshot-69.pt.1.tmp").write_bytes(b"half")
    fit(assemble(compose([*overrides, "averaging=snapshots"]), tmp_path / "run", resume=True))
    found = {path.name: checkpoint.load(path) for path in (tmp_path / "run/checkpoints").glob("*snapshot*")}
    assert sorted(found) == ["snapshot-23.pt", "snapshot-46.pt", "snapshot-69.pt"]
    for state in found.values():
        assert all(torch.equal(value, seen[state["step"]][name]) for name, value in state["model"].items())
    last = checkpoint.load(tmp_path / "run/checkpoints/last.pt")
    assert last["stateful"]["averaging"]["snapshots"] == [23, 46, 69]
    assert all(torch.equal(value, seen[69][name]) for name, value in last["model"].items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["averaging=snapshots", "schedule=cosine"], "no cycle of schedule=cosine ends within the run"),
        (
            ["averaging=snapshots", "schedule=sgdr", "schedule.cycle=40ep"],
            "averaging=snapshots: no cycle of schedule=sgdr ends within the run; choose schedule=sgdr",
        ),
        (["averaging=ema", "averaging.decay=1"], r"averaging.decay=1: must be in \[0, 1\)"),
        (["averaging=polyak", "averaging.start=100%"], "averaging.start=100%: must be before the end of the run"),
        (["averaging=swa", "averaging.every=0ep"], "averaging.every=0ep: must be at least one step"),
        (["averaging=swa", "averaging.batch_norm_samples=-1"], "averaging.batch_norm_samples=-1: must be at least 0"),
        (["averaging=ema", "optimizer=schedule_free_adamw"], "averages the weights itself; choose averaging=none"),
        (["averaging=ema", "parallelism=local_sgd", "parallelism.devices=2"], "have different weights"),
    ],
)
def test_what_would_mean_something_else_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(compose([*SMALL, *overrides]))


def averaged(overrides: list[str], steps: int) -> dict[str, Any]:
    """The averages of the whole model after some steps."""
    run = make([*overrides, f"steps={steps}"])
    advance(run, steps)
    assert run.averaging is not None
    state = run.strategy.optimizer_state(run.model, run.averaging.averages)
    with at_evaluation_weights(run):
        evaluated = {name: value.clone() for name, value in run.strategy.state_dict(run.model).items()}
    kept = state.get("state", {})  # on the main rank
    return {"state": {name: item["average"].clone() for name, item in kept.items()}, "evaluated": evaluated}


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp", "tensor", "pipeline", "weird_trick", "hybrid"])
def test_ranks_have_the_average_of_one_device(parallelism: str) -> None:
    lenet = ["model=lenet", "model.channels=[4,8]", "model.hidden=[16]", "model.norm=none", "model.activation=tanh"]
    more = ["device=cpu", "threads=1", "optimizer=momentum", "averaging=ema", "averaging.decay=0.9", "batch_size=60"]
    overrides = [*lenet, *more, "schedule=constant"]
    (alone,) = spawn(1, averaged, [*overrides, "parallelism=single"], 10)
    tensor = ["parallelism.tensor=2"] if parallelism == "hybrid" else []
    given = [*overrides, f"parallelism={parallelism}", "parallelism.devices=2", *tensor]
    found = spawn(2, averaged, given, 10)[0]
    for kind in ("state", "evaluated"):
        assert found[kind].keys() == alone[kind].keys()
        for name, value in alone[kind].items():
            torch.testing.assert_close(found[kind][name], value, rtol=1e-4, atol=1e-5)
    assert_differs(alone)


def assert_differs(found: dict[str, dict[str, Tensor]]) -> None:
    for name, value in found["state"].items():
        assert torch.equal(found["evaluated"][name], value)
