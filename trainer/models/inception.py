"""GoogLeNet (Inception-v1), with auxiliary classifiers on request."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.base.checks import check_number
from trainer.models.parts import (
    Style,
    check_dropout,
    check_image_size,
    check_widths,
    paired,
    with_plans,
)

# filters of each module: 1x1 | 3x3 reduction, 3x3 | 5x5 reduction, 5x5 | projection after pooling
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_POOLED = ("3b", "4e")
_WITH_HEADS = ("4a", "4d")
_WIDTH = 64  # filters of the first convolution, to which all widths are relative
_LARGE = 64
_HEAD_DROP_PROB = 0.7


class InceptionModule(nn.Module):
    """Four branches on the same maps, joined along the channels: 1x1; 1x1, 3x3; 1x1, 5x5; 3x3 max pooling, 1x1."""

    def __init__(self, num_inputs: int, filters: tuple[int, ...], style: Style) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, projected = filters
        pool: dict[str, nn.Module] = {"pool": nn.MaxPool2d(3, 1, padding=1)}
        branches = {
            "branch1": _convs(style, num_inputs, (one, 1)),
            "branch3": _convs(style, num_inputs, (reduce3, 1), (three, 3)),
            "branch5": _convs(style, num_inputs, (reduce5, 1), (five, 5)),
            "branch_pool": pool | _convs(style, num_inputs, (projected, 1)),
        }
        self.branches = nn.ModuleDict({name: nn.Sequential(OrderedDict(branch)) for name, branch in branches.items()})
        self.plan = {f"branches.{name}.{layer}": kind for name, branch in branches.items()
                     for layer, kind in paired(branch).items()}  # fmt: skip
        self.num_outputs = one + three + five + projected

    def forward(self, features_NCHW: Tensor) -> Tensor:
        return torch.cat([branch(features_NCHW) for branch in self.branches.values()], 1)


class _WithHeads(nn.Sequential):
    """The network with auxiliary classifiers after modules 4a and 4d; in training, outputs (N, 1 + heads, K)."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        weight: float,
        tensor_plan: Mapping[str, str],
    ) -> None:
        super().__init__(OrderedDict(layers))
        self.tensor_plan = tensor_plan
        self._trunk = tuple(layers)
        for name, head in heads.items():
            self.add_module(f"head{name}", head)
        self.auxiliary_weights = (weight,) * len(heads)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x, others = images_NCHW, []
        for name in self._trunk:
            x = self.get_submodule(name)(x)
            if self.training and name.removeprefix("inception") in _WITH_HEADS:
                others.append(self.get_submodule(f"head{name.removeprefix('inception')}")(x))
        return torch.stack([x, *others], 1) if self.training else x


def inception(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    width: int = 64,
    norm: str = "none",
    norm_place: str = "before",
    activation: str = "relu",
    drop_prob: float = 0.4,
    auxiliary_weight: float = 0.0,
) -> nn.Sequential:
    """GoogLeNet (Szegedy et al. 2014, table 1; Optimization (Part 2), "Avoiding Computational Bottlenecks").

    7x7 convolution with stride 2, 3x3 max pooling with stride 2, 1x1 and 3x3 convolutions, pooling, nine inception
    modules (pooling after 3b and 4e), global average pooling, dropout, a linear output. Images of 224x224 become maps
    of 112, 56, 28 (modules 3), 14 (4) and 7 pixels (5) with 64, 192, 256, 480, 512, 512, 512, 528, 832, 832 and 1024
    channels. For images below 64x64 the first convolution is 3x3 with stride 1 and the first two poolings are left
    out, so that 28x28 images have the paper's maps in every module. As in the paper, and unlike torchvision's
    googlenet, the third branch has 5x5 convolutions, convolutions have biases and no norm. Local response
    normalization is omitted. With 1000 classes it has 6,998,552 parameters.

    Slide: the table of Optimization (Part 2), which is the paper's, counts weights without biases in units of K = 1024.
    Counted by hand, 3a has 64*192 + 96*192 + 128*96*9 + 16*192 + 32*16*25 + 32*192 = 163,328 = 159K, the second
    convolution 112K and the linear layer 1000K, as printed. These rows differ from what is printed: first convolution
    7*7*3*64 = 9,408 = 9.2K, not 2.7K, and 118M multiply-adds, not 34M; 3b 379K, not 380K; 4a 366K, not 364K; 4b 438K,
    not 437K; 4c 497K, not 463K; 4d 590K, not 580K; 4e 847K, not 840K; 5a 1018K, not 1072K, and 51M multiply-adds, not
    54M; 5b 1409K, not 1388K.

    `width`: filters of the first convolution; all others are in proportion (64: the paper's). `norm` and `norm_place`:
    see `Style`; `instance` and `group` suit images from 16x16, because 8x8 images become 2x2 pixels, a few numbers to
    normalize. `drop_prob`: drop probability before the output, in [0, 1). `auxiliary_weight`: if above 0, classifiers
    after 4a and 4d (5x5 average pooling with stride 3, 1x1 convolution with 128 filters, 1024 hidden units, dropout
    0.7) join in training: training minimizes the loss of the main outputs plus this weight times that of each of the
    two (the paper's 0.3). They are not evaluated. Raises ValueError for other values and for images smaller than 8x8.
    """
    check_widths("width", [width])
    style = Style(norm, activation, norm_place)
    check_dropout(drop_prob)
    check_number("auxiliary_weight", auxiliary_weight, 0)
    check_image_size("inception", input_shape, 8)
    is_large = min(input_shape[1:]) >= _LARGE
    layers, num_channels = _stem(input_shape[0], width, style, is_large)
    sides = [(side + 1) // 2 // 4 if is_large else side for side in input_shape[1:]]
    heads: dict[str, nn.Module] = {}
    plan = paired({name: layer for name, layer in layers.items() if name != "conv1"})
    for name, filters in MODULES.items():
        block = InceptionModule(num_channels, tuple(_scaled(count, width) for count in filters), style)
        layers[f"inception{name}"], num_channels = block, block.num_outputs
        plan |= {f"inception{name}.{layer}": kind for layer, kind in block.plan.items()}
        if auxiliary_weight and name in _WITH_HEADS:
            heads[name] = _head(num_channels, sides, num_outputs, width, activation)
        if name in _POOLED:
            layers[f"pool{name}"] = _pool()
            sides = [side // 2 for side in sides]
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    if drop_prob:
        layers["dropout"] = nn.Dropout(drop_prob)
    layers["output"] = nn.Linear(num_channels, num_outputs)
    plan["output"] = "gather"
    return _WithHeads(layers, heads, auxiliary_weight, plan) if heads else with_plans(layers, plan)


def _stem(num_channels: int, width: int, style: Style, is_large: bool) -> tuple[dict[str, nn.Module], int]:
    """The layers before the inception modules, and the number of their channels."""
    first, reduced, last = (_scaled(count, width) for count in (_WIDTH, 64, 192))
    kernel_size, stride = (7, 2) if is_large else (3, 1)
    layers: dict[str, nn.Module] = {"conv1": style.conv(num_channels, first, kernel_size, stride)}
    layers |= style.after_conv(first, 1)
    if is_large:
        layers["pool1"] = _pool()
    layers |= {"conv2_reduce": style.conv(first, reduced, 1), **style.after_conv(reduced, "2_reduce")}
    layers |= {"conv2": style.conv(reduced, last, 3), **style.after_conv(last, 2)}
    if is_large:
        layers["pool2"] = _pool()
    return layers, last


def _head(num_channels: int, sides: list[int], num_outputs: int, width: int, activation: str) -> nn.Sequential:
    """An auxiliary classifier, without norm; maps smaller than 5x5 are not pooled."""
    style = Style("none", activation)
    layers: dict[str, nn.Module] = {}
    if min(sides) >= 5:
        layers["pool"] = nn.AvgPool2d(5, 3)
        sides = [(side - 5) // 3 + 1 for side in sides]
    num_filters, num_hidden = _scaled(128, width), _scaled(1024, width)
    layers |= _convs(style, num_channels, (num_filters, 1))
    layers |= {
        "flatten": nn.Flatten(),
        "hidden": nn.Linear(num_filters * sides[0] * sides[1], num_hidden),
        "activation": style.activation_layer(),
        "dropout": nn.Dropout(_HEAD_DROP_PROB),
        "output": nn.Linear(num_hidden, num_outputs),
    }
    return nn.Sequential(OrderedDict(layers))


def _convs(style: Style, num_inputs: int, *convs: tuple[int, int]) -> dict[str, nn.Module]:
    """Convolutions of (filters, kernel size) in succession, with norm and activation."""
    layers: dict[str, nn.Module] = {}
    for i, (num_filters, kernel_size) in enumerate(convs, 1):
        layers |= {f"conv{i}": style.conv(num_inputs, num_filters, kernel_size), **style.after_conv(num_filters, i)}
        num_inputs = num_filters
    return layers


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _scaled(count: int, width: int) -> int:
    return max(1, round(count * width / _WIDTH))
