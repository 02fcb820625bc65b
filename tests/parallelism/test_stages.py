"""The pipeline against one device, its stages against an exhaustive search, and unsupported configurations."""

from collections import OrderedDict
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tests.parallelism.harness import DOUBLE, difference, make, spawn, tolerance, trained
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.configuration.components import build_component
from trainer.configuration.resolve import resolve
from trainer.parallelism.pipeline import Pipeline, largest_divisor
from trainer.parallelism.stages import cut, work_of_children
from trainer.planning.estimate import cost_of

BASE = ["device=cpu", "threads=1", "schedule=constant", "limit_batches=3"]
MLP = [*BASE, "model=mlp", "model.hidden=[24,16,16]", "optimizer=adamw"]
LENET = [*BASE, "model=lenet", "model.channels=[4,8]", "model.hidden=[16]", "model.norm=none", "optimizer=momentum"]


# --- cuts -------------------------------------------------------------------------------------------------


def sequential(widths: list[int], plan: list[str] | None) -> nn.Sequential:
    """A linear layer and an activation for each pair of adjacent widths."""
    layers: dict[str, nn.Module] = {}
    for i, (a, b) in enumerate(pairwise(widths)):
        layers |= {f"linear{i}": nn.Linear(a, b), f"activation{i}": nn.ReLU()}
    model = nn.Sequential(OrderedDict(layers))
    if plan is not None:
        model.pipeline_plan = plan  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("widths", [[3, 4, 5, 6, 7], [50, 2, 3, 40, 2, 9], [7, 7, 7, 7, 7, 7, 7]])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_cuts_are_the_most_even_ones_of_all(widths: list[int], num_stages: int) -> None:
    names = [name for name, _ in sequential(widths, None).named_children()]
    model = sequential(widths, names)
    # forward, gradient of the weights and, but for the first layer, gradient of the inputs
    work = [a * b * (3 if i else 2) for i, (a, b) in enumerate(pairwise(widths))]
    sizes = [a * b + b for a, b in pairwise(widths)]
    found = work_of_children(model, (widths[0],))
    assert [found[f"linear{i}"] for i in range(len(work))] == work

    def squares(of: list[int], ends: tuple[int, ...]) -> int:
        return sum(sum(of[a:b]) ** 2 for a, b in zip((0, *ends), (*ends, len(of)), strict=True))

    for known in (found, {}):  # without known work, numbers of parameters decide
        stages = cut(model, num_stages, known)
        assert [name for stage in stages for name in stage] == names
        own = [[int(name.removeprefix("linear")) for name in stage if name.startswith("linear")] for stage in stages]
        assert all(own)
        even = work if known else sizes
        every = combinations(range(1, len(sizes)), num_stages - 1)
        assert sum(sum(even[i] for i in stage) ** 2 for stage in own) == min(squares(even, ends) for ends in every)


@pytest.mark.parametrize(
    ("overrides", "input_shape", "work", "begins", "begins_by_parameters"),
    [
        # LeNet-5: output positions times filters times inputs of each, times 2 or 3. By its parameters, 48120 of which
        # are in linear3, the second of two stages would have 4 % of the work
        (
            ["model=lenet", "model.channels=[6,16]", "model.hidden=[120,84]"], (1, 32, 32),
            {"conv1": 28**2 * 6 * 25 * 2, "conv2": 10**2 * 16 * 150 * 3, "linear3": 120 * 400 * 3,
             "linear4": 84 * 120 * 3, "output": 10 * 84 * 3},
            ["activation1"], ["activation3"],
        ),
        (
            ["model=mlp", "model.hidden=[8,40,8]"], (1, 8, 8),
            {"linear1": 64 * 8 * 2, "linear2": 8 * 40 * 3, "linear3": 40 * 8 * 3, "output": 8 * 10 * 3},
            ["activation2"], ["activation1"],
        ),
    ],
)  # fmt: skip
def test_stages_have_similar_work(
    overrides: list[str], input_shape: tuple[int, ...], work: dict[str, int], begins: list[str],
    begins_by_parameters: list[str],
) -> None:  # fmt: skip
    config = compose([*overrides, "model.norm=none"])
    model = build_component(config, "model", input_shape=input_shape, num_outputs=10)
    found = work_of_children(model, input_shape)
    assert {name: number for name, number in found.items() if number} == work
    assert [stage[0] for stage in cut(model, 2, found)[1:]] == begins
    assert [stage[0] for stage in cut(model, 2, {})[1:]] == begins_by_parameters


def test_the_stages_of_a_run_are_cut_by_work() -> None:
    blueprint = resolve(compose([*BASE, "model=mlp", "model.hidden=[8,40,8]", "parallelism=pipeline"]))
    costs = cost_of(blueprint, blueprint.build_model())
    assert costs is not None and costs.speed_up == pytest.approx(3184 / 1984 * 4 / 5)


def test_stages_begin_where_the_model_says() -> None:
    model = sequential([5, 5, 5, 5, 5], ["activation0", "linear2"])
    assert cut(model, 2, {}) == [
        ["linear0", "activation0", "linear1", "activation1"],
        ["linear2", "activation2", "linear3", "activation3"],
    ]
    assert cut(model, 3, {})[:2] == [["linear0"], ["activation0", "linear1", "activation1"]]
    with pytest.raises(ValueError, match="4 stages cannot be cut from this model; it has 3 pieces"):
        cut(model, 4, {})
    with pytest.raises(ValueError, match=r"Sequential names no children .* pipeline_plan"):
        cut(sequential([5, 5], None), 1, {})


def test_the_largest_divisor() -> None:
    for number in range(1, 60):
        for limit in range(1, 9):
            assert largest_divisor(number, limit) == max(d for d in range(1, limit + 1) if number % d == 0)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.norm=batch"], "parallelism.micro_batches=4: the statistics of batch norm .norm1."),
        (["parallelism.schedule=1f1b", "parallelism.micro_batches=1"], "micro_batches=1: .* 2 stages needs at least 2"),
        (["parallelism.devices=5"], "5 stages cannot be cut from this model; it has 4 pieces"),
        (["parallelism.schedule=zero"], "parallelism.schedule=zero: must be one of gpipe, 1f1b"),
        (["parallelism.micro_batches=0"], "micro_batches=0: must be at least 1"),
        (["compile=true"], "compile=true: the stages of parallelism=pipeline cannot be compiled"),
    ],
)
def test_what_cannot_be_exact_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        resolve(compose([*MLP, "parallelism=pipeline", *overrides]))


def test_dropout_that_is_no_product_is_refused() -> None:
    model = sequential([3, 3, 3], ["linear1"])
    model.add_module("drop", nn.AlphaDropout(0.1))
    strategy = Pipeline(devices=2)
    strategy.plan(None, 1)
    with pytest.raises(ValueError, match=r"AlphaDropout \(drop\) cannot be drawn for a whole batch"):
        strategy.validate(
            {"batch_size": 8, "micro_batch": None, "compile": False, "checkpoint_activations": False}, model
        )


# --- against one device -----------------------------------------------------------------------------------


def staged(overrides: list[str], steps: int, double: bool) -> dict[str, Any]:
    """A curve, and the parts of the model that this rank had."""
    run = make([*overrides, f"steps={steps}"], double)
    found = trained(run, steps)
    strategy = run.strategy
    schedules = strategy._schedules.items() if isinstance(strategy, Pipeline) else ()
    return {
        **found, "counts": {shape[0]: schedule._n_microbatches for shape, (schedule, _) in schedules},
        "own": [name for name, _ in run.model.named_parameters()], "kind": type(run.optimizer).__name__,
    }  # fmt: skip


# 1437 samples in batches of 700: the third has 37, a prime number, which is one micro-batch
ROWS = [
    (MLP, ["batch_size=700", "parallelism.schedule=1f1b", "clip_norm=0.5", "model.drop_prob=0.3"], 2, True),
    pytest.param(LENET, ["batch_size=60", "accumulate=3"], 2, True, marks=pytest.mark.slow),
    pytest.param(LENET, ["batch_size=60", "parallelism.schedule=1f1b", "model.drop_prob=0.3"], 4, True,
                 marks=pytest.mark.slow),
    pytest.param(MLP, ["batch_size=700", "accumulate=3", "clip_norm=0.5"], 4, False, marks=pytest.mark.slow),
    pytest.param(
        [*LENET[:-2], "model.norm=batch", "optimizer=adamw"], ["batch_size=50", "parallelism.micro_batches=1"], 2, True,
        marks=pytest.mark.slow,
    ),
    pytest.param(MLP, ["batch_size=60"], 1, True, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("model", "overrides", "world_size", "double"), ROWS)
def test_equals_one_device(model: list[str], overrides: list[str], world_size: int, double: bool) -> None:
    steps = 4 if world_size == 2 and "batch_size=700" in overrides else 50
    alone = [override for override in overrides if not override.startswith("parallelism")]
    [reference] = spawn(1, staged, [*model, *alone, "parallelism=single"], steps, double)
    [exact] = [reference] if double else spawn(1, staged, [*model, *alone, "parallelism=single"], steps, True)
    allowed = DOUBLE if double else tolerance(exact, reference)
    answers = spawn(world_size, staged, [*model, *overrides, "parallelism=pipeline"], steps, double)
    for answer in answers:
        assert max(difference(exact, answer).values()) < allowed
        assert difference(answer | answer["before"], answer) == {"losses": 0, "model": 0, "optimizer": 0}
        assert list(answer["model"]) == list(reference["model"])
        assert answer["norm"] == pytest.approx(reference["norm"], rel=1e-9 if double else 1e-3)
        assert torch.equal(answer["matrix"], reference["matrix"])
        assert answer["metrics"] == pytest.approx(reference["metrics"], abs=1e-12 if double else 1e-5)
    owned = [name for answer in answers for name in answer["own"]]
    assert owned == reference["own"] and all(answer["own"] for answer in answers)
    if "batch_size=700" in overrides and "accumulate=3" not in overrides:
        assert answers[0]["counts"] == {700: 4, 37: 1}
