"""What users plug in is called once before a run; each mistake is told in one line with its key."""

from typing import Any

import pytest
import torch

from tests.configuration import right_classes, wrong_classes
from tests.configuration.wrong_classes import WRONG
from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.augmentation import Pipeline
from trainer.base.config import Config
from trainer.base.errors import ConfigurationError
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


def with_part(config: Config, group: str, name: str) -> Config:
    node: dict[str, Any] = {"_target_": f"{HERE}.{name}"}
    if group == "augmentation":
        node = {"_target_": f"{Pipeline.__module__.rpartition('.')[0]}.Pipeline", "mine": node}
    return config | {group: node}


@pytest.mark.parametrize(("group", "item", "words"), WRONG, ids=[item.__name__ for _, item, _ in WRONG])
def test_a_mistake_is_told_before_the_run(config: Config, group: str, item: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(with_part(config, group, item.__name__))
    (line,) = caught.value.problems
    assert line.startswith(f"{group}") and "\n" not in line
    assert [word for word in words if word not in line] == [], line


# --- what is accepted -------------------------------------------------------------------------------------


def right(name: str) -> Config:
    return {"_target_": f"{right_classes.__name__}.{name}"}


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


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_ours_would_pass_as_theirs(config: Config, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No check refuses what is right: each option of ours is called as if it were a user's."""
    for name in ("probe", "probe_input", "probe_loss"):
        monkeypatch.setattr(f"trainer.configuration.{name}.is_foreign", lambda item: True)
    others = [word for word in ("model=linear", "device=cpu", "epochs=5") if word.partition("=")[0] not in option]
    size = 32 if option.startswith("model") else 16
    resolve(compose([*others, "data=synthetic", f"data.size={size}", option]))
