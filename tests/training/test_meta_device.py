"""Every option on torch's meta device, as on a GPU: nothing on the wrong device, and no wait that is not listed."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.data.images import jpeg
from tests.meta_device import META, Gpu, gpu
from tests.test_configs import EXTERNAL, GROUP_OPTIONS, names, tiny
from tests.training.kinds_of_optimizers import SAM, Lookahead
from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.base.config import Config
from trainer.base.errors import Diverged
from trainer.configuration.resolve import resolve
from trainer.storage import checkpoint
from trainer.training.evaluation import confusion_matrix, evaluate, evaluate_views
from trainer.training.loop import train
from trainer.training.run import Run
from trainer.training.state import capture, restore
from trainer.training.test_time_augmentation import KINDS, TestTime

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")  # by `restore`

FLAG, READ = "training/gradients.py:GradientGuard.step", "training/gradients.py:GradientGuard.read"
CLOSURE = "training/step.py:update_by_closure"
STATISTICS = "preprocessing/modules.py:Standardize._prepare"
Places = dict[str, int]
# Where a run may wait for the device, and at most how often in a step, a log or evaluation, or an epoch.
ALLOWED: dict[str, Places] = {
    # a fused kernel cannot skip the very first step; statistics are new, in the resumed run, too
    "first step": {FLAG: 1, STATISTICS: 2},
    "step": {},
    "epoch": {"samplers.py:HardExamples.gather": 1},
    "due": {
        READ: 1,
        "metrics.py:Meter.read": 2,  # of training and validation
        "training/loop.py:first_metrics": 1,
        "parallelism/strategy.py:Strategy.sum_over_weights": 1,  # the penalty of a regularizer
        STATISTICS: 1,  # if images have another memory layout
    },
    "end": {"metrics.py:Meter.read": 1, "training/evaluation.py:confusion_matrix": 2, STATISTICS: 1},
    "save": {"base/snapshot.py:snapshot": 10_000, "samplers.py:HardExamples.gather": 1},
}
ANSWERS = {STATISTICS: 1.0}  # the faster way
LENET = ["data.val_fraction=0.05", "batch_size=8", "limit_batches=2", "epochs=1", "threads=1", "model.channels=[4,4]"]
# settings of the runner, each with the waits that it needs beyond those above
SETTINGS: dict[str, tuple[list[str], dict[str, Places]]] = {
    "clip norm": (["clip_norm=1"], {}),
    "clip value": (["clip_value=0.1", "clip_norm=1"], {}),
    "accumulate": (["accumulate=3", "clip_norm=1"], {}),
    "channels last": (["channels_last=true", "augmentation=crop"], {}),
    "contiguous": (["channels_last=false"], {}),
    "skip": (["on_nonfinite=skip"], {}),
    "without fused kernel": (["optimizer.fused=false", "clip_norm=1"], {}),
    "without fused kernel, skip": (["optimizer.fused=false", "on_nonfinite=skip"], {"step": {FLAG: 1}}),
    "bf16": (["precision=bf16", "clip_norm=1"], {}),
    "bf16, mixup": (["precision=bf16", "augmentation=mixup"], {}),
    "fp16": (["precision=fp16", "accumulate=2"], {}),
    "fp16, without fused kernel": (["precision=fp16", "optimizer.fused=false"], {"step": {FLAG: 1}}),
    "fp16, mse": (["precision=fp16", "loss=mse", "augmentation=cutmix"], {}),
}
# options that wait in every step
OWN_WAITS: dict[str, Places] = {
    "optimizer=gd": {"optimizers/gradient_descent.py:_is_shorter": 2},  # its length
    "optimizer=lbfgs": {CLOSURE: 100},  # torch's line search
    # line searches, and whether the direction descends
    "optimizer=newton": {"optimizers/newton.py:Newton.step": 1, "optimizers/second_order.py:backtrack": 3},
    "optimizer=stochastic_newton": {"optimizers/newton.py:StochasticNewton.step": 1},
    "optimizer=broyden": {"optimizers/broyden.py:Broyden.step": 2, "optimizers/second_order.py:backtrack": 3},
    "optimizer=bfgs": {"optimizers/broyden.py:Broyden.step": 2, "optimizers/second_order.py:backtrack": 3},
    "optimizer=adafactor": {"base/torch_optimizers.py:plain_step": 8},  # torch's, two for each parameter
    "optimizer=asgd": {"base/torch_optimizers.py:_step_unobserved": 4},  # torch's, one for each parameter
}
# several options at once, to try most of them in little time
RECIPES: dict[str, list[str]] = {
    "digits": ["sampler=hard_examples", "augmentation=geometry", "preprocessing=zca", "optimizer=sgd", "loss=mse"],
    "mixing": ["sampler=class_balanced", "augmentation=mixup", "optimizer=adam", "precision=bf16", "clip_norm=1"],
}
CLOSURES = [f"{SAM.__module__}.SAM", f"{Lookahead.__module__}.Lookahead"]


def unlisted(waits: dict[str, Counter[str]], also: dict[str, Places], times_due: int) -> dict[str, Places]:
    """Waits that are not listed or too many."""
    found = {}
    for phase in waits.keys() - {"plan", "start", "resume"}:
        allowed, times = ALLOWED[phase] | also.get(phase, {}), times_due if phase == "due" else 1
        found[phase] = {place: n for place, n in waits[phase].items() if n > times * allowed.get(place, 0)}
    return {phase: places for phase, places in found.items() if places}


def built(device: Gpu, config: Config) -> Run:
    device.now = "plan"  # builds its models on the meta device, too
    blueprint = resolve(config)
    device.now = None
    run = build_run(blueprint)
    assert {p.device for p in run.model.parameters()} == {META}
    device.begin(run)
    return run


def check_run(config: Config, also: dict[str, Places] | None = None) -> None:
    """Two steps with logs, evaluation, the end of a run, a checkpoint, and the first step after it is restored."""
    with gpu(ANSWERS) as device:
        run = built(device, config)
        assert train(run) == "completed"
        device.now = "end"
        evaluate(run, run.splits.test, "test")
        if run.blueprint.facts.task == "classification":
            confusion_matrix(run, run.splits.test)
        device.now = "save"
        saved: Any = checkpoint.snapshot(capture(run))
        device.now = None
        again = build_run(run.blueprint, run.splits)
        restore(again, saved)
        device.begin(again)
        again.objective.begin(again.step, next(iter(again.batches.epoch(again.progress.epoch))))
        again.objective.compute_gradient()
    plan, steps = run.blueprint, range(1, run.blueprint.total_steps + 1)
    times = sum(plan.logs_at(step) or step % plan.every_evaluate == 0 for step in steps)
    assert unlisted(device.waits, also or {}, times) == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe: str) -> None:
    check_run(compose([*LENET, *RECIPES[recipe]]))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x + torch.ones(3), "mixes the device with the CPU"),
        (lambda x: x[torch.tensor([True, False, True])], "mixes the device with the CPU"),
        (lambda x: x[x > 0], "waits for the device"),
        (lambda x: x.nonzero(), "waits for the device"),
    ],
)
def test_the_device_refuses(operation: Callable[[Tensor], object], message: str) -> None:
    with gpu(), pytest.raises(AssertionError, match=message):
        operation(torch.ones(3, device="meta"))


@pytest.mark.parametrize(
    ("operation", "waits"),
    [
        (lambda x: float(x.sum()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: torch.zeros(3).copy_(x), 1),
        (lambda x: torch.ones(3).to(x.device), 1),
        (lambda x: torch.ones(3).to(x.device, non_blocking=True), 0),
        (lambda x: x.copy_(torch.ones(3), non_blocking=True) * torch.tensor(2.0), 0),
    ],
)
def test_the_device_counts_waits(operation: Callable[[Tensor], object], waits: int) -> None:
    with gpu() as device, torch.inference_mode(waits == 1):
        operation(torch.ones(3, device="meta"))
    assert sum(count for places in device.waits.values() for count in places.values()) == waits


# the data sets of others and folders of images need files; ranks are processes; the deepest models have the same layers
LEFT_OUT = {f"data={name}" for name in EXTERNAL | {"image_folder"}} | {f"model=resnet{n}" for n in (44, 56, 110)}


TRIED = [
    path
    for path, name in zip(GROUP_OPTIONS, names(GROUP_OPTIONS), strict=True)
    if name not in LEFT_OUT and (path.parent.name != "parallelism" or path.stem == "single")
]


@pytest.mark.slow
@pytest.mark.parametrize("path", TRIED, ids=names(TRIED))
def test_every_option(path: Path) -> None:
    own = OWN_WAITS.get(f"{path.parent.name}={path.stem}", {})
    check_run(compose(tiny(path)), {"first step": own, "step": own})


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting(setting: str) -> None:
    overrides, also = SETTINGS[setting]
    check_run(compose([*LENET, *overrides]), also)


@pytest.mark.slow
@pytest.mark.parametrize("target", CLOSURES)
def test_other_optimizers(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARSHIFT_TRUST", "tests")
    config = compose(LENET)
    config["optimizer"] = {"_target_": target, "lr": 0.1}
    check_run(config)


@pytest.mark.slow
def test_photographs(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(20, 24, number))
    data = ["data=image_folder", f"data.root={tmp_path}", "data.size=16", "data.workers=0", "augmentation=imagenet"]
    check_run(compose([*LENET[1:], *data]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_views(kind: str) -> None:
    with gpu(ANSWERS) as device:
        run = built(device, compose(LENET))
        device.now = "end"
        evaluate_views(run, run.splits.test, "test", TestTime(kind))
    assert unlisted(device.waits, {}, 1) == {}


@pytest.mark.parametrize("policy", ["stop", pytest.param("skip", marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_is_located(policy: str) -> None:
    finite = {"training/divergence.py:_is_finite": 1.0}
    with gpu(ANSWERS | finite | {READ: 1.0}) as device:
        run = built(device, compose([*LENET, f"on_nonfinite={policy}"]))
        if policy == "skip":
            assert train(run) == "completed"
        else:
            with pytest.raises(Diverged, match="diverged at step 0: the gradient's norm overflows"):
                train(run)
