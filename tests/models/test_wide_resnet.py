"""Wide residual networks against the paper's counts and a plain function of the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.wide_resnet import wide_resnet


@pytest.mark.proves(
    "model=wide_resnet",
    "model=wide_resnet28_10",
    "model=wide_resnet28_20",
    reference="the numbers of parameters of the papers: 36,479,194 (28-10), 145,815,514 (28-20)",
    tolerance="exact",
)
@pytest.mark.parametrize(
    ("depth", "width", "count", "millions"),
    # Zagoruyko & Komodakis, table 4, and Loshchilov & Hutter (SGDR), table 1
    [(40, 4, 8_949_210, 8.9), (16, 8, 10_961_370, 11.0), (28, 10, 36_479_194, 36.5), (28, 20, 145_815_514, 145.8)],
)
def test_parameter_counts_of_the_papers(depth: int, width: int, count: int, millions: float) -> None:
    with torch.device("meta"):
        model = wide_resnet(input_shape=(3, 32, 32), num_outputs=10, depth=depth, width=width)
    found = sum(p.numel() for p in model.parameters())
    assert found == count
    assert round(found / 1e6, 1) == millions
    assert sum(isinstance(layer, nn.Conv2d) for layer in model.modules()) == depth


def by_hand(state: dict[str, Tensor], images_NCHW: Tensor, blocks: int, norm: str) -> Tensor:
    """The network of the paper's figure 1 (d) and table 1, written as one function of the weights."""

    def active(x: Tensor, name: str) -> Tensor:
        if norm == "batch":
            mean, variance, scale, shift = (
                state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
            )
            x = (x - mean[:, None, None]) * (variance + 1e-5).rsqrt()[:, None, None]
            x = x * scale[:, None, None] + shift[:, None, None]
        return x.clamp(min=0)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    x = conv(images_NCHW, "conv1")
    for stage in (1, 2, 3):
        for number in range(1, blocks + 1):
            name, stride = f"block{stage}_{number}", 2 if stage > 1 and number == 1 else 1
            first = active(x, f"{name}.norm0")
            branch = conv(first, f"{name}.conv1", stride)
            branch = conv(active(branch, f"{name}.norm1"), f"{name}.conv2")
            x = branch + (conv(first, f"{name}.shortcut", stride) if number == 1 else x)
    x = active(x, "norm_last").mean((2, 3))
    return F.linear(x, state["output.weight"], state["output.bias"])


@pytest.mark.proves(
    "model=wide_resnet",
    "model=wide_resnet28_10",
    "model=wide_resnet28_20",
    reference="the network of the paper's figure 1 and table 1 written with torch's functions",
    tolerance="1e-12 relative, 16-2",
)
@pytest.mark.parametrize(("size", "norm"), [((8, 8), "batch"), ((9, 7), "batch"), ((8, 8), "none")])
def test_it_equals_the_network_written_as_a_function(size: tuple[int, int], norm: str) -> None:
    torch.manual_seed(0)
    model = wide_resnet(input_shape=(3, *size), num_outputs=5, depth=16, width=2, norm=norm).double()
    images = torch.randn(4, 3, *size, dtype=torch.float64)
    model(images)  # moves the running averages
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) / 10
    model.eval()
    torch.testing.assert_close(model(images), by_hand(model.state_dict(), images, 2, norm), rtol=1e-12, atol=1e-12)


def test_dropout_stands_between_the_convolutions_and_depth_is_dropped_linearly() -> None:
    model = wide_resnet(input_shape=(1, 8, 8), num_outputs=2, depth=16, width=1, drop_prob=0.3, stochastic_depth=0.6)
    names = [name for name, layer in model.named_modules() if name.startswith("block3_2.")]
    assert [name.removeprefix("block3_2.") for name in names] == [
        "norm0", "activation0", "conv1", "norm1", "activation1", "dropout1", "conv2", "stochastic_depth",
    ]  # fmt: skip
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3] * 6
    found = [m.p for name, m in model.named_modules() if name.endswith("stochastic_depth")]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_a_dropped_branch_leaves_the_shortcut() -> None:
    torch.manual_seed(0)
    model = wide_resnet(input_shape=(4, 8, 8), num_outputs=2, depth=10, width=1, stochastic_depth=0.999999)
    block = model.get_submodule("block3_1")  # the last one, whose branch is dropped
    block.get_submodule("shortcut").weight.data.fill_(0.0)
    assert torch.count_nonzero(block(torch.randn(8, 32, 4, 4))) == 0
    assert torch.count_nonzero(block.eval()(torch.randn(8, 32, 4, 4))) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, r"depth=20: must be 6n\+4 with n >= 1; the nearest allowed: 16 and 22"),
        ({"depth": 4}, "nearest allowed: 10$"),
        ({"width": 0}, "width=.*: must be"),
        ({"norm": "bach"}, "norm=bach: must be one of .*; did you mean batch"),
        ({"stochastic_depth": 1.0}, "stochastic_depth=1.0: must be the last block's drop probability"),
        ({"input_shape": (1, 3, 9)}, "^model wide_resnet needs images of at least 4x4; data gives 3x9$"),
        (
            {"input_shape": (1, 4, 9), "norm": "instance"},
            "^model wide_resnet needs images of at least 5x5 with norm=instance; data gives 4x9$",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wide_resnet(**{"input_shape": (1, 28, 28), "num_outputs": 10, **arguments})
