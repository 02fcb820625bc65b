"""Layers sharded over a group of ranks: each kind against the unsharded layer, and whole runs against one device."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.parallelism.harness import DOUBLE, advance, curves, difference, make, reference, spawn, state_of
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve
from trainer.parallelism.exchange import Gather, Keep
from trainer.parallelism.split_layers import Member, split_layers
from trainer.parallelism.tensor import TensorParallel
from trainer.training.evaluation import evaluate

# 1437 samples: the 28th batch of 53 has 6, the fourth batch of 410 has 207
PROBLEM = ["device=cpu", "threads=1", "schedule=constant"]
LENET = ["model=lenet", "model.channels=[8,12]", "model.hidden=[40]"]
MLP = ["model=mlp", "model.hidden=[64,64]"]
RESNET = ["model=resnet", "model.depth=8", "model.width=8"]
COLUMNS = ["model=alexnet_two_column", "model.channels=[8,8,12,12,8]", "model.hidden=[24,16]"]
AT_ONCE = ["accumulate=3", "clip_norm=0.5", "model.drop_prob=0.3"]
FEW = ["batch_size=410", *AT_ONCE]


def row(model: list[str], *more: str) -> tuple[str, ...]:
    return (*PROBLEM, *model, *more)


def assert_equal_to_single(strategy: str, world_size: int, rows: list[tuple[str, ...]], steps: int = 50) -> None:
    more = [f"parallelism={strategy}", f"parallelism.devices={world_size}"]
    answers = spawn(world_size, curves, [(row, True) for row in rows], more, steps, timeout=300)
    for i, overrides in enumerate(rows):
        for answer in answers:
            found = difference(reference(overrides, True, steps), answer[i])
            assert max(found.values()) < DOUBLE, (strategy, overrides, found)


# --- whole runs -------------------------------------------------------------------------------------------


FAST = {
    ("tensor", 2): [row(LENET, "optimizer=momentum", *FEW), row(MLP, "model.norm=layer", "optimizer=adamw", *FEW)],
    ("two_column", 2): [row(COLUMNS, "optimizer=momentum", "model.norm=batch", *FEW)],
    ("hybrid", 4): [row(LENET, "optimizer=momentum", *FEW)],
}


@pytest.mark.proves(
    "parallelism=tensor",
    "parallelism=two_column",
    "parallelism=hybrid",
    reference="parallelism=single in float64",
    tolerance="1e-12 over 6 steps",
)
@pytest.mark.parametrize(("strategy", "world_size"), FAST)
def test_a_few_steps_are_those_of_one_device(strategy: str, world_size: int) -> None:
    assert_equal_to_single(strategy, world_size, FAST[strategy, world_size], steps=6)


@pytest.mark.slow
def test_shares_may_be_empty() -> None:
    # the fifth batch has one sample
    assert_equal_to_single("hybrid", 4, [row(LENET, "model.norm=none", "batch_size=359")], steps=7)


# --- one layer --------------------------------------------------------------------------------------------


def two_layers(kind: str) -> tuple[nn.Sequential, Tensor]:
    """A layer of this kind, with layers before and after it that shard its input and gather its output if necessary."""
    torch.manual_seed(1)
    if kind == "linear":
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), torch.randn(7, 6)
    if kind == "linear cross":
        layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 5)]
        return nn.Sequential(*layers), torch.randn(7, 6)
    if kind == "convolution":
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, stride=2, padding=1)]
        return nn.Sequential(*layers), torch.randn(7, 3, 8, 8)
    if kind == "gather":
        layers = [nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3)]
        return nn.Sequential(*layers), torch.randn(7, 3, 8, 8)
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 5, 1)]
    return nn.Sequential(*layers), torch.randn(7, 3, 8, 8)


PLANS = {
    "linear": {"0": "column", "2": "row"},
    "linear cross": {"0": "column", "2": "cross", "4": "row"},
    "convolution": {"0": "column", "1": "split", "2": "row"},
    "gather": {"0": "gather", "2": "gather"},
    "groups": {"0": "column", "1": "group", "2": "cross", "3": "row"},
}


def two_ways(kind: str) -> float:
    """Largest difference on this rank of outputs and of input and weight gradients between an unsharded and a sharded
    model."""
    whole, images = two_layers(kind)
    split, _ = two_layers(kind)
    whole, split, images = whole.double(), split.double(), images.double()
    member = Member(None, dist.get_rank(), dist.get_world_size())
    axes = split_layers(split, PLANS[kind], member)
    assert axes, "something is split"
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [model(x) for model, x in zip((whole, split), inputs, strict=True)]
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for output in outputs:
        (output.tanh() * weights).sum().backward()
    pairs = [(outputs[0], outputs[1]), (inputs[0].grad, inputs[1].grad)]
    for (name, p), q in zip(whole.named_parameters(), split.parameters(), strict=True):
        own = p.grad.chunk(member.size, axes[name])[member.rank] if name in axes else p.grad
        assert (name in axes) == (q.shape != p.shape)
        pairs.append((own, q.grad))
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def each_kind() -> dict[str, float]:
    TensorParallel(2).connect(torch.device("cpu"))
    return {kind: two_ways(kind) for kind in PLANS}


def test_each_kind_of_layer_is_the_whole_layer() -> None:
    for found in spawn(2, each_kind):
        assert max(found.values()) < 1e-13, found


def there_and_back() -> list[tuple[Tensor, Tensor]]:
    """On each rank: the gathered rows, and the gradient of its own rows."""
    TensorParallel(3).connect(torch.device("cpu"))
    rank, sizes, found = dist.get_rank(), [2, 0, 3], []
    start = sum(sizes[:rank])
    for is_partial in (False, True):
        x = torch.arange(5.0)[start : start + sizes[rank]].unsqueeze(1).requires_grad_()
        whole = Gather.apply(x, None, 0, sizes, is_partial)
        # each rank's loss depends on its own rows, or on all rows with its own weight
        loss = whole.sum() * (rank + 1) if is_partial else Keep.apply(whole**2, None, 0, sizes).sum()
        loss.backward()
        found.append((whole.detach(), x.grad))
    return found


def test_batches_are_gathered_and_shared_out_again_also_where_a_rank_has_nothing() -> None:
    sizes = [2, 0, 3]
    rows = torch.arange(5.0).unsqueeze(1).split(sizes)
    for own_rows, ((whole, squares), (_, partial)) in zip(rows, spawn(3, there_and_back), strict=True):
        assert torch.equal(whole, torch.arange(5.0).unsqueeze(1))
        assert torch.equal(squares, 2 * own_rows)  # d x^2
        assert torch.equal(partial, torch.full_like(own_rows, 6.0))  # 1 + 2 + 3


PLANNED = {
    "mlp": ({"linear1": "column", "linear2": "row"}, ["model=mlp"]),
    "batch norm": (
        {"linear1": "column", "norm1": "split", "dropout1": "split", "linear2": "row"},
        ["model=mlp", "model.norm=batch", "model.drop_prob=0.5"],
    ),
    # layer norm needs all features of a sample
    "layer norm": ({"linear1": "gather", "linear2": "gather"}, ["model=mlp", "model.norm=layer"]),
    "linear": ({"output": "gather"}, ["model=linear"]),
    "one convolution": (
        {"conv1": "gather", "linear2": "column", "output": "row"},
        ["model=lenet", "model.channels=[4]", "model.norm=none"],
    ),
    "blocks": (
        {f"block{i}_1.{name}": kind for i in (1, 2, 3) for name, kind in (("conv1", "column"), ("conv2", "row"))},
        [*RESNET, "model.norm=none"],
    ),
}


@pytest.mark.parametrize("name", PLANNED)
def test_models_say_how_they_are_split_and_where_a_stage_may_begin(name: str) -> None:
    wanted, overrides = PLANNED[name]
    with torch.device("meta"):
        model = resolve(compose([*PROBLEM, *overrides])).build_model()
    assert model.tensor_plan == wanted
    children = [child for child, _ in model.named_children()]
    stages = ["block1_1", "block2_1", "block3_1", "pool", "output"] if name == "blocks" else children[1:]
    assert model.pipeline_plan == stages


# --- what the verbs say -----------------------------------------------------------------------------------


def inspected(overrides: list[str]) -> dict[str, Any]:
    """State of a rank after a few steps."""
    run = make(overrides, double=True)
    losses = advance(run, 3)
    shapes = {name: tuple(p.shape) for name, p in run.model.named_parameters()}
    strategy = run.strategy
    moments = run.optimizer.state[run.model.get_parameter("conv1.weight")]["momentum_buffer"].shape
    # the gradient of the third step is still stored and was not clipped
    norm = float(strategy.grad_norm(run.objective.gradients()))
    return {
        "losses": losses, "shapes": shapes, "moments": tuple(moments), "norm": norm,
        "val": evaluate(run, run.splits.val, "val"),
        "position": (strategy.data_rank, strategy.data_size),
        **state_of(run),
    }  # fmt: skip


@pytest.mark.parametrize(("strategy", "world_size"), [("tensor", 2), pytest.param("hybrid", 4, marks=pytest.mark.slow)])
def test_parts_are_parts_and_what_is_said_of_them_is_whole(strategy: str, world_size: int) -> None:
    overrides = [*PROBLEM, *LENET, "optimizer=momentum", "batch_size=50"]
    threads = torch.get_num_threads()
    wanted = inspected([*overrides, "parallelism=single"])
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")
    more = [f"parallelism={strategy}", f"parallelism.devices={world_size}"]
    answers = spawn(world_size, inspected, [*overrides, *more])
    for answer in answers:
        assert answer["shapes"]["conv1.weight"] == answer["moments"] == (4, 1, 5, 5)
        assert answer["shapes"]["conv2.weight"] == (12, 4, 5, 5)
        assert answer["shapes"]["output.weight"] == (10, 20)
        assert answer["shapes"]["output.bias"] == (10,)
        assert max(difference(wanted, answer).values()) < DOUBLE
        assert answer["norm"] == pytest.approx(wanted["norm"], abs=DOUBLE)
        assert answer["val"] == pytest.approx(wanted["val"], abs=1e-6)  # the meter accumulates in float32
        assert answer["model"]["conv1.weight"].shape == (8, 1, 5, 5)
    assert len({answer["norm"] for answer in answers}) == 1
    neighbours = [(rank // 2, 2) for rank in range(4)] if strategy == "hybrid" else [(0, 1)] * 2
    assert [answer["position"] for answer in answers] == neighbours


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallelism=hybrid", "parallelism.devices=3"], "parallelism.tensor=2: must divide parallelism.devices=3"),
        (["parallelism=hybrid", "parallelism.tensor=0"], "tensor=0: must be at least 1"),
        (
            ["parallelism=hybrid", "parallelism.tensor=3", "parallelism.devices=6", "model=lenet"],
            "parallelism.tensor=3: must divide the 20 filters of conv1",
        ),
        (
            ["parallelism=tensor", "parallelism.devices=4", "model=linear"],
            "parallelism.devices=4: must divide the 10 outputs of output",
        ),
        (
            ["parallelism=tensor", "parallelism.devices=4", *COLUMNS],
            "parallelism.devices=4: must divide the 2 groups of conv2",
        ),
        (
            ["parallelism=tensor", "model=template"],
            r"model=template \(StripeNet\) has no tensor plan; linear, mlp, lenet, alexnet, alexnet_two_column, vgg, ",
        ),
        (
            ["parallelism=two_column", "model=lenet"],
            r"parallelism=two_column: model=lenet \(Sequential\) has no columns; alexnet_two_column has",
        ),
        (
            ["parallelism=two_column", "parallelism.devices=3", *COLUMNS],
            r"parallelism=two_column \(2 ranks a model\): must divide parallelism.devices=3",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_in_a_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(compose([*PROBLEM, *overrides]))
