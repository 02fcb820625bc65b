"""Contracts: components that do not subclass ours, capabilities, and a new group."""

import copy
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.base.errors import ConfigurationError
from trainer.configuration.compose import config_folder
from trainer.configuration.groups import GROUPS, Group
from trainer.configuration.resolve import resolve
from trainer.contracts import (
    Diagnostics,
    Initializer,
    Loss,
    Optimizer,
    Preprocessing,
    Sampler,
    Schedule,
    adapt,
    is_element_wise,
    needs_closure,
    required_members,
)
from trainer.losses import MSE, CrossEntropy
from trainer.samplers import HardExamples, Shuffle
from trainer.schedules import Constant, Plateau
from trainer.storage import checkpoint
from trainer.training.loop import train
from trainer.training.state import capture, restore

PARAMETERS = [nn.Parameter(torch.zeros(1))]


class Falling:
    """A schedule that does not subclass ours."""

    def factor(self, step: int) -> float:
        return 1 / (1 + step)


class Listening(Falling):
    monitor = "val/loss"

    def __init__(self) -> None:
        self.observed: list[float] = []

    def observe(self, metrics: dict[str, float]) -> None:
        self.observed.append(metrics["val/loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"heard": list(self.observed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.observed = list(state["heard"])


class Halved(nn.Module):
    """A preprocessing that does not subclass ours."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def fit(self, images: Any) -> None:
        self.mean = images[:].float().mean()

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / 2


class Penalty:
    """The contract of a new group, and its only option."""

    def __init__(self, weight: float = 0.1) -> None:
        if weight < 0:
            raise ValueError(f"weight={weight}: must be at least 0")
        self.weight, self.calls = weight, 0

    def value(self) -> float:
        self.calls += 1
        return self.weight

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class WithoutValue:
    pass


def test_what_is_ours_is_returned_as_it_is() -> None:
    ours = CrossEntropy()
    assert adapt("loss", Loss, ours) is ours


def test_a_stranger_gets_the_defaults() -> None:
    found = adapt("schedule", Schedule, Falling())
    assert (found.factor(3), found.warmup, found.monitor, found.listens) == (0.25, 0, None, False)
    assert found.state_dict() == {}
    assert isinstance(found, Schedule) and type(found).__name__ == "Falling"


def test_what_a_stranger_has_is_its_own() -> None:
    stranger = Listening()
    found = adapt("schedule", Schedule, stranger)
    assert found.listens and found.monitor == "val/loss"
    found.observe({"val/loss": 0.5})
    assert stranger.observed == [0.5]
    stranger.observed.append(0.25)
    assert found.state_dict() == {"heard": [0.5, 0.25]}
    found.load_state_dict({"heard": []})
    assert stranger.observed == []
    assert copy.deepcopy(found).factor(1) == 0.5


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot be used as loss: it has no tasks, metrics, __call__"):
        adapt("loss", Loss, object())
    with pytest.raises(ValueError, match=r"cannot be used as diagnostics: it has no at_log, at_start"):
        adapt("diagnostics", Diagnostics, object())
    assert required_members(Sampler) == ["order"]
    assert required_members(Optimizer) == ["param_groups", "step", "state_dict"]
    assert required_members(Initializer) == ["__call__"]


def test_a_preprocessing_that_is_a_foreign_module_keeps_the_names_of_its_state() -> None:
    module = Halved()
    found = adapt("preprocessing", Preprocessing, module)
    found.fit_roughly(torch.full((2, 1, 2, 2), 6, dtype=torch.uint8))
    found.check((1, 2, 2))
    assert list(found.state_dict()) == ["mean"] and found.transform_ is None
    assert torch.equal(found.to("cpu")(torch.full((1,), 8.0)), torch.ones(1))
    again = adapt("preprocessing", Preprocessing, Halved())
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(torch.full((1,), 8.0)), torch.ones(1))


@pytest.mark.parametrize(
    ("component", "capability", "expected"),
    [
        (Constant(), "listens", False),
        (Plateau(), "listens", True),
        (Shuffle(), "listens", False),
        (HardExamples(), "listens", True),
        (CrossEntropy(), "has_each", True),
        (MSE(), "has_each", True),
    ],
)
def test_capabilities_follow_from_what_a_class_defines(component: Any, capability: str, expected: bool) -> None:
    assert getattr(component, capability) is expected


def test_the_loss_of_probabilities_is_that_of_their_logarithms() -> None:
    outputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(5) % 3
    loss = CrossEntropy(label_smoothing=0.1, base=2)
    found = loss.of_probabilities(outputs.log_softmax(1), targets)
    assert found is not None
    torch.testing.assert_close(found, loss(outputs, targets))
    assert MSE().of_probabilities(outputs.log_softmax(1), targets) is None


class Declared(torch.optim.SGD):
    needs_closure = True
    element_wise = False


class Denied(torch.optim.LBFGS):
    needs_closure = False


def test_whether_an_optimizer_needs_a_closure() -> None:
    assert needs_closure(torch.optim.LBFGS(PARAMETERS)) and needs_closure(Declared(PARAMETERS))
    assert not needs_closure(torch.optim.AdamW(PARAMETERS)) and not needs_closure(Denied(PARAMETERS))
    assert is_element_wise(torch.optim.AdamW(PARAMETERS))
    assert not is_element_wise(torch.optim.Adafactor(PARAMETERS)) and not is_element_wise(Declared(PARAMETERS))


# --- a group that is new: a row, a contract, a folder of YAML -------------------------------------------------


class PenaltyContract(ABC):
    """A contract with an optional capability."""

    is_convex: bool = True

    @abstractmethod
    def value(self) -> float:
        """The penalty."""


@pytest.fixture
def penalties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a new group: a row of the table, a line in the defaults list, and a folder with two options."""
    folder = Path(shutil.copytree(config_folder(), tmp_path / "configs"))
    train = folder / "train.yaml"
    train.write_text(
        train.read_text().replace("  - diagnostics: basic\n", "  - diagnostics: basic\n  - penalty: mine\n")
    )
    (folder / "penalty").mkdir()
    for name, kind in (("mine", "Penalty"), ("bare", "WithoutValue")):
        weight = "weight: 0.1\n" if kind == "Penalty" else ""
        (folder / f"penalty/{name}.yaml").write_text(f"# For a test\n_target_: {__name__}.{kind}\n{weight}")
    monkeypatch.setattr("trainer.configuration.compose.config_folder", lambda: folder)
    monkeypatch.setitem(GROUPS, "penalty", Group("penalty", f"{__name__}.PenaltyContract", __name__))


@pytest.mark.usefixtures("penalties")
def test_a_new_group_is_composed_checked_and_built() -> None:
    blueprint = resolve(compose(["model=linear", "penalty.weight=0.5"]))
    penalty = blueprint.others["penalty"]
    assert blueprint.config["choices"]["penalty"] == "mine"
    assert (penalty.value(), penalty.is_convex) == (0.5, True)


@pytest.mark.usefixtures("penalties")
def test_a_checkpoint_holds_the_state_of_a_new_group(tmp_path: Path) -> None:
    config = compose(["model=linear", "limit_batches=2", "epochs=1", "threads=1"])
    run = build_run(resolve(config))
    run.blueprint.others["penalty"].value()
    assert train(run) == "completed"
    checkpoint.save(tmp_path / "last.pt", capture(run))
    again = build_run(resolve(config), run.splits)
    restore(again, checkpoint.load(tmp_path / "last.pt"))
    assert again.blueprint.others["penalty"].calls == 1


@pytest.mark.usefixtures("penalties")
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["penalty.wieght=1"], "penalty.wieght=1: key 'penalty.wieght' does not exist. Did you mean 'penalty.weight'"),
        (["penalty.weight=-1"], "penalty.weight=-1: must be at least 0"),
        (["penalty=bare"], f"penalty._target_={__name__}.WithoutValue: cannot be used as penalty: it has no value"),
    ],
)
def test_a_new_group_is_checked_as_the_others_are(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(compose(["model=linear", *overrides]))
    assert sentence in str(caught.value)
