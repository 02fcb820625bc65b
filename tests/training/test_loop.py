"""The whole loop against a hand-written one; stopping and best weights."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer import assemble, compose, fit
from trainer.assembly.assemble import build_run
from trainer.base.duration import parse_duration
from trainer.base.timeline import Timeline
from trainer.configuration.compose import Config
from trainer.configuration.resolve import _log_times, resolve
from trainer.reporting.metrics_file import read_metrics
from trainer.storage import checkpoint
from trainer.training.divergence import _first_nonfinite, is_late
from trainer.training.evaluation import confusion_matrix, evaluate
from trainer.training.finish import _warm_up
from trainer.training.loop import train
from trainer.training.run import Run

TINY = {"model": "mlp", "model.hidden": "[32]", "threads": "1", "limit_batches": "6"}


def config(*overrides: str) -> Config:
    chosen = TINY | dict(override.split("=", 1) for override in overrides)
    return compose([f"{key}={value}" for key, value in chosen.items()])


def assembled(*overrides: str) -> Run:
    return build_run(resolve(config(*overrides)))


def by_hand(run: Run, make_optimizer, lr_at, steps: int, clip: float | None = None) -> nn.Module:
    """The same training with torch alone: same batches and initial weights, everything else written out."""
    model = run.blueprint.build_model()
    model.load_state_dict(run.model.state_dict())
    optimizer = make_optimizer(model.parameters())
    step = epoch = 0
    while step < steps:
        for batch in run.batches.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step)
            optimizer.zero_grad()
            F.cross_entropy(model(batch.images), batch.targets).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            step += 1
            if step == steps:
                break
        epoch += 1
    return model


@pytest.mark.proves(
    "parallelism=single",
    reference="a training loop written by hand with torch",
    tolerance="1e-3 relative after 3 epochs with sgd, momentum, adam and adamw",
)
@pytest.mark.parametrize(
    ("overrides", "make_optimizer", "clip"),
    [
        (["optimizer=sgd", "optimizer.lr=0.1"], lambda p: torch.optim.SGD(p, lr=0.1), None),
        (
            ["optimizer=momentum", "optimizer.lr=0.1", "optimizer.weight_decay=0.01", "no_weight_decay=[]"],
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
            None,
        ),
        (["optimizer=adam", "optimizer.lr=0.1", "clip_norm=0.3"], lambda p: torch.optim.Adam(p, lr=0.1), 0.3),
        (
            ["optimizer=adamw", "optimizer.lr=0.1", "no_weight_decay=[]", "accumulate=3"],
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
            None,
        ),
    ],
    ids=["sgd", "momentum", "adam-clipped", "adamw-accumulated"],
)
def test_training_is_what_one_would_write_by_hand(overrides, make_optimizer, clip) -> None:
    run = assembled("epochs=3", "schedule=cosine", *overrides)
    steps = run.blueprint.total_steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), T_max=steps
    )
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    expected = by_hand(run, make_optimizer, rates.__getitem__, steps, clip)
    train(run)
    for (name, p), q in zip(run.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5, msg=name)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    def weights(seed: int) -> torch.Tensor:
        run = assembled("epochs=1", f"seed={seed}", "model.drop_prob=0.2", "augmentation=crop")
        train(run)
        return torch.cat([p.flatten() for p in run.model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_early_stopping_stops_and_the_best_weights_come_back(tmp_path: Path) -> None:
    run = assemble(
        config("epochs=50", "optimizer=sgd", "optimizer.lr=20", "schedule=constant", "early_stopping.patience=3"),
        tmp_path,
    )
    result = fit(run)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "val/loss" in r]
    losses = [r["val/loss"] for r in records]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert result.status == "early_stopped"
    assert len(losses) == best + 1 + 3
    assert result.best is not None
    assert result.best["step"] == records[best]["step"]
    assert evaluate(run, run.splits.val, "val")["val/loss"] == pytest.approx(losses[best])
    saved = checkpoint.load(tmp_path / "checkpoints" / "best.pt")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in run.model.state_dict().items())


def test_a_run_folder_is_complete_and_tells_the_same_story_everywhere(tmp_path: Path) -> None:
    result = fit(assemble(config("epochs=4", "every.log=5step"), tmp_path))
    names = {path.name.partition(".out")[0] for path in tmp_path.iterdir()}
    assert names == {
        "checkpoints", "config.yaml", "curves.png", "environment.json", "events", "metrics.jsonl", "overrides.yaml",
        "result.json", "run.json", "train.log",
    }  # fmt: skip
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [5, 6, 10, 12, 15, 18, 20, 24, 24]
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["status"] == result.status == "completed"
    assert written["test"] == {k: v for k, v in records[-1].items() if k.startswith("test/")}
    assert written["best"]["metrics"]["val/loss"] == min(r["val/loss"] for r in records if "val/loss" in r)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    for tag in ("train/loss", "val/accuracy", "lr", "grad_norm"):
        recorded = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(tag)]
        assert [(r["step"], r[tag]) for r in records if tag in r] == recorded
    assert {"train/first_batch", "test/confusion_matrix"} <= set(events.Tags()["images"])


def test_the_logged_training_loss_is_the_mean_over_the_interval() -> None:
    run = assembled("epochs=1", "optimizer=sgd", "optimizer.lr=0.1", "schedule=constant")
    losses = []
    model = run.blueprint.build_model()
    model.load_state_dict(run.model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in run.batches.epoch(0):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.images), batch.targets)
        loss.backward()
        optimizer.step()
        losses.append((float(loss.detach()), len(batch.targets)))
    train(run)
    assert run.report is None
    assert run.meter.read() == {}  # read at the last step
    total = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    again = assembled("epochs=1", "optimizer=sgd", "optimizer.lr=0.1", "schedule=constant", "every.log=50step")
    assert recorded(again)[-1][1]["train/loss"] == pytest.approx(total, rel=1e-5)


def recorded(run: Run) -> list[tuple[int, dict[str, float]]]:
    """Train and return the recorded steps with their metrics."""
    seen: list[tuple[int, dict[str, float]]] = []
    run.report = type("Spy", (), {
        "tick": lambda *a: None, "record": lambda s, step, b, values, c: seen.append((step, values)),
        "row": lambda *a: None, "message": lambda *a: None, "once": lambda *a: None,
    })()  # fmt: skip
    train(run)
    return seen


@pytest.mark.parametrize(
    ("log", "evaluate", "steps"),
    [
        ("auto", "1ep", range(1, 19)), ("auto", "100%", range(1, 19)),
        ("50step", "1ep", [6, 12, 18]), ("5step", "1ep", [5, 6, 10, 12, 15, 18]),
        ("5step", "7step", [5, 7, 10, 14, 15, 18]),
        ("100%", "7step", [7, 14, 18]), ("1ep", "50%", [6, 9, 12, 18]),
    ],
)  # fmt: skip
def test_training_metrics_are_of_the_steps_before_the_evaluation_beside_them(log, evaluate, steps) -> None:
    """Whatever the intervals: every mean is over the steps since the previous record, and the weights do not differ."""
    each = assembled("epochs=3", "early_stopping=null", "every.log=1step", "every.evaluate=1ep")
    losses = [values["train/loss"] for _, values in recorded(each)]
    run = assembled("epochs=3", "early_stopping=null", f"every.log={log}", f"every.evaluate={evaluate}")
    records = recorded(run)
    assert [step for step, _ in records] == list(steps)
    before = 0
    for step, values in records:
        assert values["train/loss"] == pytest.approx(sum(losses[before:step]) / (step - before), rel=1e-5)
        assert {"train/accuracy", "lr"} <= values.keys()
        before = step
    assert all(map(torch.equal, run.model.state_dict().values(), each.model.state_dict().values()))


@pytest.mark.parametrize(
    ("steps_an_epoch", "epochs", "evaluate", "first"),
    [
        (23, 30, "1ep", [6, 12, 18, 23, 29]),  # digits: 1 % are 7 steps, so 4 logs per evaluation
        (352, 30, "1ep", [44, 88, 132, 176, 220, 264, 308, 352, 396]), (704, 10, "100%", [50, 100, 150]),
        (3, 2, "1ep", [1, 2, 3, 4, 5, 6]), (1, 500, "1ep", [1, 2, 3]),
    ],
)  # fmt: skip
def test_the_automatic_log_interval_suits_the_run(steps_an_epoch, epochs, evaluate, first) -> None:
    total = steps_an_epoch * epochs
    every, restarts = _log_times(
        {"log": "auto", "evaluate": evaluate}, lambda text: parse_duration(text).steps(steps_an_epoch, total), total
    )
    timeline = Timeline(steps_an_epoch, 1, total)
    plan = replace(resolve(config()), timeline=timeline, every_log=every, log_restarts=restarts)
    logged = [step for step in range(1, total + 1) if plan.logs_at(step)]
    assert logged[: len(first)] == first
    gaps = [b - a for a, b in zip([0, *logged], logged, strict=False)]
    assert max(gaps) <= 50
    assert len(logged) >= min(100, total)


def test_the_picture_shows_a_warm_up_that_is_shorter_than_the_interval_between_logs(tmp_path: Path) -> None:
    run = assembled(
        "epochs=3", "schedule=cosine_warmup", "schedule.warmup=8step", "optimizer.lr=0.8", "every.log=50step"
    )
    train(run)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 6, "lr": 0.6}\n{"step": 12, "lr": 0.5}\n')
    assert [(r["step"], pytest.approx(r["lr"])) for r in _warm_up(run, path)] == [(s, s / 10) for s in range(1, 9)]
    path.write_text('{"step": 6, "lr": 0.3}\n')  # of a schedule over another length: what was planned did not happen
    assert _warm_up(run, path) == []


def test_confusion_matrix_is_scikit_learn_s() -> None:
    from sklearn.metrics import confusion_matrix as reference

    run = assembled("epochs=1")
    train(run)
    split = run.splits.test
    run.model.eval()
    with torch.no_grad():
        predicted = run.model(run.preprocessing(split.images_NCHW)).argmax(1)
    expected = reference(split.targets_N, predicted, labels=range(10))
    assert confusion_matrix(run, split).tolist() == expected.tolist()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_well_as_single(precision: str) -> None:
    def loss(*overrides: str) -> float:
        run = assembled("epochs=5", "limit_batches=null", *overrides)
        train(run)
        return evaluate(run, run.splits.val, "val")["val/loss"]

    single, half = loss(), loss(f"precision={precision}")
    assert half == pytest.approx(single, rel=0.02)
    assert half != single


def test_steps_take_the_place_of_epochs_and_batch_size_full_is_one_step() -> None:
    assert resolve(config("steps=9", "limit_batches=null")).total_steps == 9
    whole = resolve(config("batch_size=full", "epochs=3", "limit_batches=null"))
    assert (whole.batch_size, whole.steps_per_epoch, whole.total_steps) == (1437, 1, 3)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else() -> None:
    def weights(*overrides: str, limit: int | None = None) -> torch.Tensor:
        run = assembled("epochs=2", *overrides)

        def hungry(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if limit is not None and module.training and len(inputs[0]) > limit:
                raise torch.OutOfMemoryError("no room")

        run.model.register_forward_pre_hook(hungry)
        train(run)
        if limit is not None:
            assert run.objective.micro_batch == 16
        return torch.cat([p.flatten() for p in run.model.parameters()])

    assert torch.equal(weights("micro_batch=auto", limit=20), weights("micro_batch=16"))


def test_weights_start_from_another_run(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    run = assemble(config("epochs=2"), first)
    fit(run)
    later = assembled("epochs=1", f"init_from={first}", "seed=5")
    saved = checkpoint.load(first / "checkpoints" / "best.pt")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in later.model.state_dict().items())


def nan_layer(run: Run) -> None:
    run.model.get_submodule("linear1").forward = lambda x: (-x.square() - 1).log() @ torch.ones(64, 128)  # type: ignore[method-assign]


def between_layers(run: Run) -> None:
    whole = type(run.model).forward
    run.model.forward = lambda x: whole(run.model, x * torch.inf)  # type: ignore[method-assign]


def overflow(run: Run) -> None:
    torch.nn.init.constant_(run.model.get_parameter("output.weight"), 3e38)


def bad_weight(run: Run) -> None:
    torch.nn.init.constant_(run.model.get_parameter("output.bias"), torch.nan)


def bad_loss(run: Run) -> None:
    run.objective.data_loss = lambda outputs, targets: (outputs.sum() * 0 - 1).log()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (nan_layer, r"layer 'linear1' \(Linear\) computes NaN from finite inputs and weights"),
        (between_layers, r"the input of layer '\w+' \(\w+\) is not finite although the layers before it are"),
        (overflow, r"layer 'output' \(Linear\) computes infinity from finite inputs"),
        (bad_weight, "the weight 'output.bias' is not finite"),
        (bad_loss, "the loss is not finite although every layer's output is"),
    ],
)
def test_what_is_not_finite_before_any_update_is_no_divergence(spoil: Callable[[Run], None], told: str) -> None:
    for step, start in ((0, r"not finite before any update \(step 0\)"), (2, "diverged at step 2")):
        run = build_run(resolve(compose(["model=mlp", "model.hidden=[128]", "threads=1"])))
        spoil(run)
        run.progress.step = step
        batch = next(iter(run.batches.epoch(0, 0)))
        run.objective.begin(step, batch)
        found = _first_nonfinite(run, batch.images)
        assert re.match(f"{start}: ", found) and is_late(found) is (step > 0)
        assert step or re.search(told, found)
