"""GoogLeNet against the lecture's table, known parameter counts and a plain function of the same weights; its auxiliary
classifiers in a run."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.base.randomness import StepRandomness
from trainer.configuration.resolve import resolve
from trainer.models.inception import inception
from trainer.training.step import train_step

# Optimization (Part 2), "Avoiding Computational Bottlenecks": printed parameters in K; channels; pixels on a side
TABLE = {
    "3a": (159, 256, 28), "3b": (380, 480, 28), "4a": (364, 512, 14), "4b": (437, 512, 14), "4c": (463, 512, 14),
    "4d": (580, 528, 14), "4e": (840, 832, 14), "5a": (1072, 832, 7), "5b": (1388, 1024, 7),
}  # fmt: skip


def weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear))


@pytest.mark.proves(
    "model=inception",
    reference="the lecture's table counted by hand; the parameters of the Caffe model zoo's GoogLeNet, 6,998,552, and "
    "13,378,280 with auxiliary classifiers",
    tolerance="exact",
)
@pytest.mark.parametrize("side", [224, 28])
def test_the_table_and_what_its_docstring_says_of_it(side: int) -> None:
    shapes: dict[str, torch.Size] = {}
    with torch.device("meta"):
        model = inception(input_shape=(3, side, side), num_outputs=1000)
        for name, layer in model.named_children():
            layer.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.shape[1:]}))
        model(torch.empty(1, 3, side, side))
    counts = {name: weights(model.get_submodule(f"inception{name}")) for name in TABLE}
    for name, (printed, channels, pixels) in TABLE.items():
        assert shapes[f"inception{name}"] == (channels, pixels, pixels)
        said = re.search(rf"; {name} (\d+)K, not (\d+)K", " ".join((inception.__doc__ or "").split()))
        assert (said is None) is (counts[name] // 1024 == printed)
        if said is not None:
            assert (int(said[1]), int(said[2])) == (counts[name] // 1024, printed)
    assert counts["3a"] == 163_328
    assert weights(model.get_submodule("output")) == 1000 * 1024
    stem = weights(model.get_submodule("conv2_reduce")) + weights(model.get_submodule("conv2"))
    assert stem == 112 * 1024
    if side == 224:
        assert weights(model.get_submodule("conv1")) == 9_408
        assert shapes["conv1"] == (64, 112, 112)
        # of the Caffe model zoo's GoogLeNet, without and with its auxiliary classifiers
        assert sum(p.numel() for p in model.parameters()) == 6_998_552
        with torch.device("meta"):
            model = inception(input_shape=(3, 224, 224), num_outputs=1000, auxiliary_weight=0.3)
        assert sum(p.numel() for p in model.parameters()) == 13_378_280


def by_hand(state: dict[str, Tensor], images_NCHW: Tensor) -> list[Tensor]:
    """The outputs, and those of the classifiers after 4a and 4d, as one function of the weights, without dropout."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2).clamp(min=0)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    is_large, others = images_NCHW.shape[-1] >= 64, []
    x = conv(images_NCHW, "conv1", 2 if is_large else 1)
    x = conv(conv(pool(x) if is_large else x, "conv2_reduce"), "conv2")
    x = pool(x) if is_large else x
    for name in TABLE:
        prefix = f"inception{name}.branches"
        one = conv(x, f"{prefix}.branch1.conv1")
        three = conv(conv(x, f"{prefix}.branch3.conv1"), f"{prefix}.branch3.conv2")
        five = conv(conv(x, f"{prefix}.branch5.conv1"), f"{prefix}.branch5.conv2")
        pooled = conv(F.max_pool2d(x, 3, 1, 1), f"{prefix}.branch_pool.conv1")
        x = torch.cat([one, three, five, pooled], 1)
        if f"head{name}.hidden.weight" in state:
            head = conv(F.avg_pool2d(x, 5, 3) if x.shape[-1] >= 5 else x, f"head{name}.conv1").flatten(1)
            others.append(linear(linear(head, f"head{name}.hidden").clamp(min=0), f"head{name}.output"))
        if name in ("3b", "4e"):
            x = pool(x)
    return [linear(x.mean((2, 3)), "output"), *others]


@pytest.mark.proves(
    "model=inception",
    reference="the network of the paper's figures 2 (b) and 3 written with torch's functions",
    tolerance="1e-12 relative, width 4",
)
@pytest.mark.parametrize("side", [8, 28, 72])
def test_it_equals_the_network_written_as_a_function(side: int) -> None:
    torch.manual_seed(0)
    model = inception(input_shape=(3, side, side), num_outputs=5, width=4, auxiliary_weight=0.3, drop_prob=0).double()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    expected = by_hand(model.state_dict(), images)
    torch.testing.assert_close(model(images), torch.stack(expected, 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.eval()(images), expected[0], rtol=1e-12, atol=1e-12)


def test_training_adds_the_auxiliary_losses_and_metrics_are_those_of_the_main_outputs() -> None:
    keys = ["model=inception", "model.width=4", "model.auxiliary_weight=0.3", "batch_size=16", "limit_batches=2"]
    run = build_run(resolve(compose([*keys, "steps=2", "threads=1", "optimizer=sgd", "optimizer.lr=0.1"])))
    batch = next(run.batches.epoch(0))
    twin = inception(input_shape=(1, 8, 8), num_outputs=10, width=4, auxiliary_weight=0.3)
    twin.load_state_dict(run.model.state_dict())
    StepRandomness(run.blueprint.config["seed"], run.device).start(0)  # the step's dropout
    outputs = twin(batch.images)
    main, first, second = (F.cross_entropy(outputs[:, i], batch.targets) for i in range(3))
    expected = main + 0.3 * (first + second)
    expected.backward()
    train_step(run, batch)
    values = run.meter.read(run.strategy.sum)
    assert values["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert values["accuracy"] == float((outputs[:, 0].argmax(1) == batch.targets).double().mean())
    assert run.objective.untrained_loss(10) == pytest.approx(1.6 * float(torch.tensor(10.0).log()))
    for (name, stepped), before in zip(run.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(stepped, before - 0.1 * before.grad, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width=.*: must be"),
        ({"auxiliary_weight": -0.3}, "auxiliary_weight=-0.3: must be"),
        ({"drop_prob": 1.0}, "drop_prob=1.0: must be a drop probability"),
        ({"norm": "bach"}, "norm=bach: must be one of .*; did you mean batch"),
        ({"input_shape": (1, 7, 8)}, "^model inception needs images of at least 8x8; data gives 7x8$"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inception(**{"input_shape": (1, 28, 28), "num_outputs": 10, **arguments})
