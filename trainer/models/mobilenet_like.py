"""Depthwise separable convolutions, with pooling as late as one likes."""

from collections.abc import Sequence

from torch import nn

from trainer.base.checks import check_that, check_wholes
from trainer.models.parts import (
    Style,
    check_choice,
    check_dropout,
    check_image_size,
    check_widths,
    with_plans,
)

_KERNEL = 3


def mobilenet_like(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    channels: Sequence[int] = (16, 32, 32, 64, 64, 128),
    halve_at: Sequence[int] = (4, 6),
    halve_by: str = "max_pool",
    norm: str = "batch",
    norm_place: str = "before",
    activation: str = "relu",
    drop_prob: float = 0.0,
) -> nn.Sequential:
    """Network of depthwise separable convolutions (Howard et al. 2017, MobileNet), with delayed pooling.

    Layer 1 is a 3x3 convolution. Each further layer filters every channel by a 3x3 kernel of its own (depthwise), then
    mixes channels by a 1x1 convolution (pointwise), each followed by norm and activation. On P pixels, from M to N
    channels, this takes P M (9 + N) multiply-adds, the fraction 1/N + 1/9 of a 3x3 convolution's 9 P M N. Global
    average pooling and a linear output follow. Source: UIUC ECE 598, "Summary" (separable convolutions, point-wise
    convolutions, delaying max-pooling).

    `channels`: of each layer's output; `halve_at`: numbers of the layers, from 1, that halve the maps, in rising order:
    late ones keep large maps, which are more accurate and cost more (Iandola et al. 2016); `halve_by`: max_pool (2x2,
    after the layer) or stride (2, of the 3x3 convolution, as in MobileNet); `norm`, `norm_place`: see `norm_layer` and
    `Style`; `drop_prob`: in [0, 1), of the pooled features. MobileNet itself, 4,231,976 parameters for 1000 classes, is
    channels [32,64,128,128,256,256,512,512,512,512,512,512,1024,1024], halve_at [1,3,5,7,13], halve_by stride. Raises
    ValueError for other values, and for images that are too small to be halved so often.
    """
    style = Style(norm, activation, norm_place)
    check_widths("channels", channels, 1)
    check_choice("halve_by", halve_by, ("max_pool", "stride"))
    _check_layers(halve_at, len(channels))
    check_dropout(drop_prob)
    _check_size(input_shape, len(halve_at), halve_by, norm)
    layers: dict[str, nn.Module] = {}
    num_channels = input_shape[0]
    for number, num_filters in enumerate(channels, 1):
        halves = number in halve_at
        stride = 2 if halves and halve_by == "stride" else 1
        if number == 1:
            layers["conv1"] = style.conv(num_channels, num_filters, _KERNEL, stride)
        else:
            layers[f"depthwise{number}"] = style.conv(num_channels, num_channels, _KERNEL, stride, groups=num_channels)
            layers |= style.after_conv(num_channels, f"{number}_depthwise")
            layers[f"pointwise{number}"] = style.conv(num_channels, num_filters, 1)
        layers |= style.after_conv(num_filters, number)
        if halves and halve_by == "max_pool":
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        num_channels = num_filters
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    if drop_prob:
        layers["dropout"] = nn.Dropout(drop_prob)
    layers["output"] = nn.Linear(num_channels, num_outputs)
    stages = [name for name in layers if name.startswith(("depthwise", "output"))]
    return with_plans(layers, _tensor_plan(layers, norm), stages)


def _check_layers(halve_at: Sequence[int], num_layers: int) -> None:
    check_wholes("halve_at", halve_at, 1)
    rising = list(halve_at) == sorted(set(halve_at)) and max(halve_at, default=0) <= num_layers
    check_that(rising, "halve_at", list(halve_at), f"numbers of the {num_layers} layers, from 1, in rising order")


def _check_size(input_shape: tuple[int, int, int], times: int, halve_by: str, norm: str) -> None:
    """A strided convolution leaves ceil(s / 2) of s pixels, max pooling floor(s / 2)."""
    last = 2 if norm == "instance" else 1  # pixels on a side that the last maps need
    smallest = last * 2**times if halve_by == "max_pool" else (last - 1) * 2**times + 1
    why = f"norm={norm} and {times} halvings" if last > 1 else f"{times} halvings"
    check_image_size("mobilenet_like", input_shape, smallest, why)


def _tensor_plan(layers: dict[str, nn.Module], norm: str) -> dict[str, str]:
    """Channels are split from one mixing convolution to the next, the depthwise one between them included.

    Norms that need all channels at once keep the maps whole.
    """
    plan: dict[str, str] = {}
    is_split = False
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            plan |= {name: "row"} if is_split else {}
        elif isinstance(layer, nn.Conv2d) and name.startswith("depthwise"):
            plan |= {name: "group"} if is_split else {}
        elif isinstance(layer, nn.Conv2d):
            is_split = not is_split and norm not in ("layer", "group")
            plan[name] = "column" if is_split else "gather" if norm in ("layer", "group") else "row"
        elif is_split and (name.startswith("norm") or isinstance(layer, nn.Dropout)):
            plan[name] = "split"
    return plan
