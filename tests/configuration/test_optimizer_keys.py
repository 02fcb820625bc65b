"""What an optimizer declares about its rate and its batch, and what follows for the schedule and the settings."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.optim import SGD

from trainer import compose
from trainer.base.capabilities import RATES, rate_of_class, traits
from trainer.base.errors import ConfigurationError
from trainer.configuration.components import build_component
from trainer.configuration.compose import config_folder, override
from trainer.configuration.optimizer_keys import rate_of
from trainer.configuration.resolve import resolve

FILES = sorted((config_folder() / "optimizer").glob("*.yaml"))


class Fixed(SGD):
    rate = "fixed"
    converged = False


class Wrong(SGD):
    rate = "variable"


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEARSHIFT_TRUST", __name__)
    (tmp_path / "optimizer").mkdir()
    for name in ("Fixed", "Wrong"):
        (tmp_path / f"optimizer/{name.lower()}.yaml").write_text(f"# Mine\n_target_: {__name__}.{name}\nlr: 0.1\n")
    (tmp_path / "optimizer/of_torch.yaml").write_text("# Torch's\n_target_: torch.optim.Rprop\nlr: 0.1\n")
    return tmp_path


def problem(*overrides: str, config_dir: Path | None = None) -> str:
    if not any(word.startswith("model=") for word in overrides):
        overrides = ("model=linear", *overrides)
    with pytest.raises(ConfigurationError) as caught:
        resolve(compose(overrides, config_dir))
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize(("name", "why"), [("lbfgs", "has a fixed rate"), ("adafactor", "determines its own rate")])
def test_an_optimizer_with_a_rate_of_its_own_takes_the_constant_schedule(name: str, why: str) -> None:
    config = compose([f"optimizer={name}"])
    assert config["choices"]["schedule"] == "constant"
    assert config["schedule"] == compose(["schedule=constant"])["schedule"]
    typed, key = problem(f"optimizer={name}", "schedule=cosine"), problem(f"optimizer={name}", "schedule.final=0.5")
    assert typed == f"schedule=cosine: optimizer={name} {why}, so it can only have schedule=constant"
    assert key == typed.replace("=cosine:", "=cosine_warmup:")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_and_its_class_declare_the_same_rate(path: Path) -> None:
    node = yaml.safe_load(path.read_text())
    made = build_component({"optimizer": node}, "optimizer", params=[torch.nn.Parameter(torch.zeros(2, 2))])
    assert traits(made).rate == rate_of(node)


def test_the_users_own(options: Path) -> None:
    for name in ("fixed", "of_torch"):
        assert compose([f"optimizer={name}"], options)["choices"]["schedule"] == "constant"
    assert "has a fixed rate" in problem("optimizer=fixed", "schedule=step", config_dir=options)
    assert "must be one of scheduled, fixed, own" in problem("optimizer=wrong", config_dir=options)
    assert traits(Fixed([torch.zeros(1)])).rate == "fixed"


def test_what_is_known_of_classes() -> None:
    assert {rate_of_class(kind) for kind in (SGD, torch.optim.AdamW)} == {"scheduled"}
    assert [rate_of_class(kind) for kind in (torch.optim.LBFGS, torch.optim.Rprop)] == ["fixed", "own"]
    assert rate_of_class(type("Mine", (torch.optim.Adafactor,), {})) == "own", "of its base"
    assert set(RATES) == {"scheduled", "fixed", "own"}


def test_full_batch_optimizers_get_the_whole_training_set() -> None:
    blueprint = resolve(compose(["optimizer=lbfgs", "model=linear"]))
    assert blueprint.batch_size == blueprint.facts.num_train == 1437
    assert blueprint.total_steps == blueprint.config["optimizer"]["epochs"]
    typed = compose(["optimizer=lbfgs", "batch_size=100", "epochs=3"])
    assert (typed["batch_size"], typed["epochs"]) == (100, 3)
    assert compose([])["batch_size"] == 64


def test_another_optimizer_for_a_finished_configuration() -> None:
    before = compose(["optimizer=adamw", "schedule=step", "epochs=7"])
    other = override(before, ["optimizer=lbfgs"])
    assert (other["choices"]["schedule"], other["batch_size"], other["epochs"]) == ("constant", "full", 7)
    back = override(other, ["optimizer=sgd", "schedule=step"])
    assert (back["choices"]["schedule"], back["batch_size"], back["schedule"]) == ("step", 64, before["schedule"])
    assert override(before, ["optimizer=sgd"])["schedule"] == before["schedule"]
    with pytest.raises(ConfigurationError, match=r"^schedule=cosine: optimizer=lbfgs has a fixed rate"):
        override(other, ["schedule=cosine"])


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["optimizer=lbfgs", "clip_norm=1"], "clip_norm=1: optimizer=lbfgs searches along a direction"),
        (["optimizer=lbfgs", "clip_value=0.5"], "clip_value=0.5: optimizer=lbfgs searches"),
        (["optimizer=newton", "model=linear", "clip_norm=1"], "clip_norm=1: optimizer=newton searches"),
        (
            ["optimizer=newton", "model=linear", "optimizer.line_search=none", "clip_value=1"],
            "clip_value=1: optimizer=newton differentiates the loss itself, so that nothing is clipped",
        ),
        (["optimizer=stochastic_newton", "model=linear", "clip_norm=1"], "clip_norm=1: optimizer=stochastic_newton"),
        (["initializer=kmeans_plus_plus"], "initializer=kmeans_plus_plus: the model has no centroids"),
        (["initializer=identity_residual"], "initializer=identity_residual: the model declares no residual branches"),
        (
            ["initializer=kaiming_normal", "model=centroids", "loss=kmeans"],
            "initializer=kaiming_normal: the model has no linear or convolution layer",
        ),
        (["loss=kmeans", "model=linear"], "loss=kmeans: needs distances to centroids, which model=linear has none of"),
        (["optimizer=lbfgs", "precision=fp16"], "precision=fp16: does not support an optimizer that evaluates"),
        (["optimizer=lbfgs", "schedule=constant", "schedule.warmup=2ep"], "schedule.warmup=2ep: optimizer=lbfgs"),
        (["optimizer=lbfgs", "lr_scaling=linear"], "lr_scaling=linear: optimizer=lbfgs does not follow a schedule"),
        (["optimizer=lbfgs", "optimizer.rate=later"], "optimizer.rate=later: must be one of"),
        (["optimizer=lbfgs", "optimizer.batch_size=0"], "optimizer.batch_size=0: must be a whole number"),
        (["optimizer=lbfgs", "optimizer.epochs=0"], "optimizer.epochs=0: must be a whole number"),
        (["optimizer=lbfgs", "batch_size=0"], "batch_size=0: must be a whole number"),
        (["optimizer=adafactor", "optimizer.eps=[null,-1]"], "optimizer.eps=[null, -1]: must be in"),
        (["optimizer=lbfgs", "parallelism=pipeline", "model=mlp"], "optimizer=lbfgs: must step all weights at once"),
        (["optimizer=adafactor", "parallelism=fsdp"], "optimizer._target_=torch.optim.Adafactor: under parallelism"),
    ],
)
def test_what_does_not_go_together_gets_one_line(overrides: list[str], start: str) -> None:
    assert problem("device=cpu", *overrides).startswith(start)


def test_clipping_without_a_line_search() -> None:
    assert resolve(compose(["optimizer=lbfgs", "optimizer.line_search_fn=null", "clip_norm=1", "model=linear"]))
