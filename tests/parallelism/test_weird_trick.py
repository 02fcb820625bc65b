"""Data-parallel convolutions and model-parallel fully connected layers together equal one device."""

import re
from importlib import import_module
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.parallelism.harness import advance, make, spawn
from tests.parallelism.test_tensor import (
    COLUMNS,
    FEW,
    LENET,
    PROBLEM,
    RESNET,
    assert_equal_to_single,
    row,
)
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.configuration.compose import config_folder
from trainer.configuration.resolve import resolve
from trainer.contracts import pipeline_plan, tensor_plan
from trainer.parallelism.tensor import WITH_A_PLAN
from trainer.parallelism.weird_trick import WITH_DENSE_LAYERS, dense_plan
from trainer.training.evaluation import evaluate


@pytest.mark.proves(
    "parallelism=weird_trick", reference="parallelism=single in float64", tolerance="1e-12 over 6 steps"
)
def test_a_few_steps_are_those_of_one_device() -> None:
    assert_equal_to_single("weird_trick", 2, [row(LENET, "optimizer=momentum", *FEW)], steps=6)


def test_ranks_may_have_nothing_to_convolve() -> None:
    # the fifth batch has one sample
    assert_equal_to_single("weird_trick", 4, [row(LENET, "model.norm=none", "batch_size=359")], steps=5)


def inspected(overrides: list[str]) -> dict[str, Any]:
    run = make(overrides)
    losses = advance(run, 2)
    return {
        "losses": losses,
        "shapes": {name: tuple(p.shape) for name, p in run.model.named_parameters()},
        "val": evaluate(run, run.splits.val, "val"),
        "test": evaluate(run, run.splits.test, "test"),
        "logits": run.objective.forward(next(run.batches.epoch(0)).images).shape[0],
    }


def test_convolutions_are_whole_and_dense_layers_are_shared() -> None:
    overrides = [*PROBLEM, *LENET, "batch_size=51"]
    threads = torch.get_num_threads()
    wanted = inspected([*overrides, "parallelism=single"])
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")
    answers = spawn(2, inspected, [*overrides, "parallelism=weird_trick"])
    assert [answer["logits"] for answer in answers] == [26, 25]
    for answer in answers:
        assert answer["shapes"]["conv1.weight"] == wanted["shapes"]["conv1.weight"] == (8, 1, 5, 5)
        assert answer["shapes"]["linear3.weight"] == (20, wanted["shapes"]["linear3.weight"][1])
        assert answer["shapes"]["output.weight"] == (10, 20)
        assert answer["val"] == pytest.approx(wanted["val"], rel=1e-5)
        assert answer["test"] == pytest.approx(wanted["test"], rel=1e-5)


def test_the_border_is_the_first_dense_layer() -> None:
    with torch.device("meta"):
        model = resolve(compose([*PROBLEM, *COLUMNS])).build_model()
    assert dense_plan(model) == {
        "linear6": "column", "dropout6": "split", "linear7": "cross", "dropout7": "split", "output": "row",
    }  # fmt: skip
    assert dense_plan(nn.Sequential(nn.Linear(2, 2))) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["parallelism=weird_trick", *RESNET],
            r"parallelism=weird_trick: model=resnet \(Sequential\) has no fully connected layers that can be split",
        ),
        (
            ["parallelism=weird_trick", "model=inception", "model.auxiliary_weight=0.3"],
            "parallelism=weird_trick: must be another strategy for a model with auxiliary classifiers, such as ddp",
        ),
        (["parallelism=weird_trick", "model=template"], r"model=template \(StripeNet\) has no tensor plan"),
        (
            ["parallelism=weird_trick", "parallelism.devices=3", *LENET],
            "parallelism.devices=3: must divide the 40 outputs of linear3",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_in_a_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(compose([*PROBLEM, *overrides]))


def test_messages_and_docs_name_the_models_that_can_be_split() -> None:
    """One option of each function in configs/model, on the meta device."""
    with_plan, with_dense, with_stages = set(), set(), set()
    targets = {}
    for path in sorted((config_folder() / "model").glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        targets.setdefault(node.pop("_target_"), (path.stem, node))
    for target, (_, node) in targets.items():
        module, _, function = target.rpartition(".")
        if function in ("from_timm", "from_torchvision", "StripeNet"):  # no model of ours, and the template of one
            continue
        with torch.device("meta"):
            model = getattr(import_module(module), function)(input_shape=(1, 8, 8), num_outputs=10, **node)
        with_plan |= {function} if tensor_plan(model) else set()
        with_dense |= {function} if dense_plan(model) else set()
        with_stages |= {function} if pipeline_plan(model) else set()

    def named(text: str) -> set[str]:
        return set(re.findall(r"[a-z_]{3,}", text)) - {"and", "have", "one"}

    assert named(WITH_A_PLAN) == with_plan
    assert named(WITH_DENSE_LAYERS) == with_dense
    assert with_stages == with_plan | {"lstm"}
    page = (config_folder().parent / "docs/parallelism.md").read_text()
    paragraph = page[page.index("These models declare") : page.index("`centroids` and the models")]
    first, second = paragraph.split("`weird_trick` takes")
    second, _ = second.split("`pipeline` takes")
    assert set(re.findall(r"`(\w+)`", first)) - {"tensor", "hybrid"} == with_plan
    assert set(re.findall(r"`(\w+)`", second)) == with_dense
