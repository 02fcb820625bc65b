"""What users plug in is called once before a run; each mistake is told in one line with its key."""

from typing import Any

import pytest
import torch

from tests.configuration import right_classes, wrong_classes
from tests.configuration.wrong_classes import LATE, WRONG
from tests.configuration.wrong_strategies import WRONG_STRATEGIES
from tests.libraries import need_library
from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.assembly.data import load_data
from trainer.augmentation import Pipeline
from trainer.base.config import Config
from trainer.base.errors import ComponentError, ConfigurationError, DataError
from trainer.configuration.compose import config_folder
from trainer.configuration.resolve import resolve
from trainer.training.loop import train

HERE = wrong_classes.__name__
PROBED = (
    "loss",
    "model",
    "initializer",
    "optimizer",
    "schedule",
    "sampler",
    "preprocessing",
    "augmentation",
    "diagnostics",
)
OPTIONS = [f"{group}={path.stem}" for group in PROBED for path in sorted((config_folder() / group).glob("*.yaml"))]


@pytest.fixture(scope="module")
def config() -> Config:
    return compose(["model=linear", "device=cpu", "epochs=20", "threads=1"])


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARSHIFT_TRUST", "tests")


def with_part(config: Config, group: str, name: str, module: str = HERE) -> Config:
    node: dict[str, Any] = {"_target_": f"{module}.{name}"}
    if group == "augmentation":
        node = {"_target_": f"{Pipeline.__module__.rpartition('.')[0]}.Pipeline", "mine": node}
    return config | {group: node}


ALL_WRONG = [*WRONG, *WRONG_STRATEGIES]


@pytest.mark.parametrize(("group", "item", "words"), ALL_WRONG, ids=[item.__name__ for _, item, _ in ALL_WRONG])
def test_a_mistake_is_told_before_the_run(config: Config, group: str, item: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(with_part(config, group, item.__name__, item.__module__))
    (line,) = caught.value.problems
    assert line.startswith(f"{group}") and "\n" not in line
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(("group", "item", "words"), LATE, ids=[item.__name__ for _, item, _ in LATE])
def test_a_mistake_that_shows_later_is_theirs(config: Config, group: str, item: Any, words: tuple[str, ...]) -> None:
    every = {"log": "5step", "evaluate": "20step", "checkpoint": "100%"}
    changed = with_part(config, group, item.__name__) | {"epochs": None, "steps": 30, "every": every}
    with pytest.raises(ConfigurationError) as caught:
        train(build_run(resolve(changed)))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("option", "spare", "words"),
    [
        ("ddp", False, None),
        ("ddp", True, "parameter 'spare.weight' and 1 more is not used by forward(), which parallelism=ddp requires"),
        ("ddp parallelism.unused_parameters=true", True, None),
        ("local_sgd", False, None),
        ("fsdp", False, "'first.weight' and 'second.weight' are one parameter, of which parallelism=fsdp would train"),
        ("pipeline", False, "'first.weight' and 'second.weight' are one parameter"),
    ],
)
def test_shared_and_unused_parameters_in_several_processes(option: str, spare: bool, words: str | None) -> None:
    several = f"parallelism={option}".split() + ["parallelism.devices=2", "model=linear", "device=cpu", "epochs=1"]
    changed = compose(several) | {"model": right("Tied") | {"spare": spare}}
    if words is None:
        resolve(changed)
        return
    with pytest.raises(ConfigurationError) as caught:
        resolve(changed)
    assert words in str(caught.value)


def test_a_sample_that_cannot_be_read_is_told_with_its_place(config: Config) -> None:
    dataset = {"_target_": f"{HERE}.Item7000"}
    data = {"_target_": "trainer.data.FromDataset", "train": dataset, "num_classes": 2}
    blueprint = resolve(config | {"data": data})
    with pytest.raises(DataError, match=r"^data: sample 7000 of train cannot be read as .*\(tests/.*wrong_classes.py:"):
        load_data(blueprint)


# --- what is accepted -------------------------------------------------------------------------------------


def right(name: str) -> Config:
    return {"_target_": f"{right_classes.__name__}.{name}"}


def test_a_strategy_that_is_right_is_accepted(config: Config) -> None:
    node = {"_target_": "tests.configuration.wrong_strategies.GoodStrategy"}
    run = build_run(resolve(config | {"parallelism": node, "epochs": None, "steps": 3, "limit_batches": 3}))
    assert train(run) == "completed"


def test_metrics_are_any_callables(config: Config) -> None:
    blueprint = resolve(config | {"loss": right("Measured")})
    assert list(blueprint.metrics) == ["accuracy", "top", "third", "Confident", "named"]
    assert blueprint.loss.initial_value(10) is None


def test_lazily_built_layers_are_built_before_they_are_initialized(config: Config) -> None:
    lazy, weights = right("Lazy"), []
    for initializer in (config["initializer"], right("Zeros"), config["initializer"]):
        run = build_run(resolve(config | {"model": lazy, "initializer": initializer, "steps": 2}))
        assert run.model.training and run.num_parameters == (9 + 1) * 4 + 2 * 4 + (4 * 36 + 1) * 10
        assert float(run.model.get_buffer("norm.running_mean").abs().sum()) == 0
        weights.append(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]))
    assert torch.equal(weights[0], weights[2]) and not weights[1].any()
    assert train(run) == "completed"


@pytest.mark.parametrize(
    ("task", "dtype", "shape", "num_outputs", "found"),
    [
        ("classification", "int64", [], 10, (torch.int64, (64,))),
        ("classification", "int32", [], 10, (torch.int64, (64,))),
        ("classification", "uint8", [1], 10, (torch.int64, (64,))),
        ("classification", "bool", [], 2, (torch.int64, (64,))),
        ("classification", "float32", [], 10, "has a float32 tensor of shape (64,) as targets; must be class numbers"),
        ("classification", "int64", [10], 10, "has an int64 tensor of shape (64, 10) as targets; must be class"),
        ("regression", "float32", [1], 1, (torch.float32, (64, 1))),
        ("regression", "float64", [], 1, (torch.float32, (64, 1))),
        ("regression", "int64", [3], 3, (torch.float32, (64, 3))),
        ("regression", "float16", [3], 3, (torch.float32, (64, 3))),
        ("regression", "float32", [], 3, "has a float32 tensor of shape (64,) as targets; must be values, float32 of"),
        ("regression", "complex64", [3], 3, "has a complex64 tensor"),
    ],
)
def test_targets_are_converted_or_refused(
    config: Config, task: str, dtype: str, shape: list[int], num_outputs: int, found: Any
) -> None:
    words = {"task": task, "dtype": dtype, "shape": shape, "num_outputs": num_outputs}
    blueprint = resolve(config | {"data": right("Loaded") | words, "loss": {"_target_": "trainer.losses.MSE"}})
    if isinstance(found, str):
        with pytest.raises(ComponentError) as caught:
            load_data(blueprint)
        assert found in str(caught.value)
        return
    targets = load_data(blueprint).train.targets_N
    assert (targets.dtype, tuple(targets.shape)) == found
    assert targets.flatten()[:4].tolist() == [0, 1, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_ours_would_pass_as_theirs(config: Config, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No check refuses what is right: each option of ours is called as if it were a user's."""
    need_library(option)
    for name in ("probe", "probe_input", "probe_loss"):
        monkeypatch.setattr(f"trainer.configuration.{name}.is_foreign", lambda item: True)
    model = {
        "identity_residual": "model=resnet20",
        "kmeans_plus_plus": "model=centroids",
        "kmeans": "model=centroids",
    }.get(option.partition("=")[2])
    words = (model or "model=linear", "device=cpu", "epochs=5")
    others = [word for word in words if word.partition("=")[0] not in option]
    size = 32 if option.startswith("model") else 16
    resolve(compose([*others, "data=synthetic", f"data.size={size}", option]))
