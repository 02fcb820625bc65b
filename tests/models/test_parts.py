"""Norms against torch's functions and hand-written statistics, stochastic depth against torchvision, plans."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth as TorchvisionStochasticDepth

from trainer.initializers.activations import following
from trainer.models.parts import (
    NORM_PLACES,
    NORMS,
    StochasticDepth,
    Style,
    depth_drop_probs,
    norm_layer,
    num_groups,
    paired,
)


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 1


def normalized(x_NCHW: Tensor, name: str) -> Tensor:
    """The formulas of the docstring, with the axes written out; 12 channels are 6 groups."""
    N, C, H, W = x_NCHW.shape
    shape, axes = {
        "batch": ((N, C, H, W), (0, 2, 3)),
        "layer": ((N, C, H, W), (1, 2, 3)),
        "instance": ((N, C, H, W), (2, 3)),
        "group": ((N, 6, C // 6, H, W), (2, 3, 4)),
    }[name]
    x = x_NCHW.reshape(shape)
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return ((x - mean) / torch.sqrt(variance + 1e-5)).reshape(x_NCHW.shape)


@pytest.mark.parametrize("name", ["batch", "layer", "instance", "group"])
def test_norms_use_the_statistics_of_their_axes(name: str) -> None:
    norm = norm_layer(name, 12).double()
    scale_C, shift_C = maps(12), maps(12) + 1
    with torch.no_grad():
        norm.weight.copy_(scale_C)
        norm.bias.copy_(shift_C)
    x_NCHW = maps(3, 12, 4, 5)
    expected = normalized(x_NCHW, name) * scale_C.view(-1, 1, 1) + shift_C.view(-1, 1, 1)
    torch.testing.assert_close(norm(x_NCHW), expected, rtol=1e-10, atol=1e-10)
    others = [normalized(x_NCHW, other) for other in ("batch", "layer", "instance", "group") if other != name]
    assert all((normalized(x_NCHW, name) - other).abs().max() > 0.1 for other in others)
    if name != "batch":
        assert torch.equal(norm.eval()(x_NCHW[:1]), norm.train()(x_NCHW)[:1])


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (4, 2), (7, 1), (12, 6), (16, 8), (64, 32), (96, 32), (100, 25)]
)
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups
    assert channels % groups == 0
    norm_layer("group", channels)


@pytest.mark.parametrize("place", NORM_PLACES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_stands_before_or_after_the_activation_and_replaces_the_bias_that_it_cancels(
    norm: str, place: str
) -> None:
    style = Style(norm, "leaky_relu", place)
    layers = {"conv3": style.conv(2, 4, 3), **style.after_conv(4, 3)}
    behind = ["activation3"] if norm == "none" else ["norm3", "activation3"]
    assert list(layers) == ["conv3", *(behind if place == "before" else behind[::-1])]
    # a constant added to each channel changes the output, unless the norm subtracts it
    model = nn.Sequential(*layers.values()).double()
    x_NCHW, steps = maps(3, 2, 4, 4), torch.arange(4, dtype=torch.float64).view(4, 1, 1)
    features_NCHW = layers["conv3"](x_NCHW)
    moved = (model[1:](features_NCHW) - model[1:](features_NCHW + steps)).abs().max()
    assert bool(moved > 1e-9) is style.has_bias is (layers["conv3"].bias is not None)
    # initializers see the activation on the other side of the norm
    assert following(model.float(), (2, 4, 4))[id(layers["conv3"])][0] == "leaky_relu"


@pytest.mark.parametrize("shape", [(64, 3, 2, 2), (64, 5)])
def test_stochastic_depth_equals_torchvision(shape: tuple[int, ...]) -> None:
    x = maps(*shape)
    ours, theirs = StochasticDepth(0.3), TorchvisionStochasticDepth(0.3, "row")
    torch.manual_seed(5)
    expected = theirs(x)
    torch.manual_seed(5)
    found = ours(x)
    assert torch.equal(found, expected)
    kept = (found.flatten(1) != 0).all(1)
    assert 30 <= int(kept.sum()) < 60  # of 64, about 45
    assert torch.equal(found[~kept], torch.zeros_like(found[~kept]))
    assert torch.equal(ours.eval()(x), x)


def test_the_linear_rule_is_that_of_the_paper() -> None:
    # Huang et al. 2016, figure 2: p_0 = 1 for the input, p_L = 0.5; L = 54, whose expected depth is 3L/4 - 1/4 = 40.25
    drops = depth_drop_probs(0.5, 54)
    assert drops[-1] == 0.5
    assert drops[26] == 0.25
    assert sum(1 - p for p in drops) == pytest.approx((3 * 54 - 1) / 4)


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", "split"), ("instance", "split"), ("layer", None), ("group", None)]
)
def test_layers_are_paired_around_norms_of_a_channel_and_gathered_before_others(norm: str, kind: str | None) -> None:
    style = Style(norm)
    layers = {"conv1": style.conv(3, 4, 3), **style.after_conv(4, 1), "conv2": style.conv(4, 6, 3)}
    split = {"conv1": "column", "norm1": kind, "conv2": "row"}
    assert paired(layers) == (split if kind else {"conv1": "gather", "conv2": "gather"})
    assert style.residual_plan(0.1) == (
        split | {"dropout1": "split"} if kind else {"conv1": "gather", "conv2": "gather"}
    )


def test_activations_by_name_are_torchs() -> None:
    assert torch.equal(Style(activation="mish").activation_layer()(maps(5)), F.mish(maps(5)))
