"""The CIFAR family of residual networks, and the corresponding plain networks."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.parts import (
    StochasticDepth,
    Style,
    check_choice,
    check_depth,
    check_dropout,
    check_image_size,
    check_stochastic_depth,
    check_widths,
    depth_drop_probs,
    with_plans,
)


class PadShortcut(nn.Module):
    """Option A of He et al. 2015: subsamples both axes by 2 and pads new channels with zeros; no parameters."""

    def __init__(self, num_new_channels: int) -> None:
        super().__init__()
        self.num_new_channels = num_new_channels

    def forward(self, features_NCHW: Tensor) -> Tensor:
        return F.pad(features_NCHW[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.num_new_channels))


class Block(nn.Module):
    """Two 3x3 convolutions with norms and activations, and a shortcut; see `resnet`.

    `drop_prob` is that of dropout before the second convolution, `depth_drop_prob` that of the whole branch.
    """

    def __init__(
        self,
        num_inputs: int,
        num_filters: int,
        *,
        shortcut: str,
        style: Style,
        drop_prob: float = 0.0,
        depth_drop_prob: float = 0.0,
    ) -> None:
        super().__init__()
        stride = 1 if num_inputs == num_filters else 2
        self.adds_last = style.norm_place == "after" and style.norm != "none"
        self.conv1 = style.conv(num_inputs, num_filters, 3, stride)
        self.norm1 = style.norm_layer(num_filters)
        self.activation1 = style.activation_layer()
        self.dropout1 = nn.Dropout(drop_prob) if drop_prob else None
        self.conv2 = style.conv(num_filters, num_filters, 3)
        self.norm2 = style.norm_layer(num_filters)
        self.residual_end = "conv2" if style.norm == "none" else "norm2"
        self.activation2 = style.activation_layer()
        self.stochastic_depth = StochasticDepth(depth_drop_prob) if depth_drop_prob else None
        self.shortcut: nn.Module | None = None
        if shortcut != "none" and stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "identity":
            self.shortcut = PadShortcut(num_filters - num_inputs)
        elif shortcut == "projection":
            layers: dict[str, nn.Module] = {"conv": style.conv(num_inputs, num_filters, 1, stride)}
            self.shortcut = nn.Sequential(OrderedDict(layers, norm=style.norm_layer(num_filters)))

    def forward(self, features_NCHW: Tensor) -> Tensor:
        # not in place: a hook may keep a layer's output
        first, second = (self.activation1, self.norm1) if self.adds_last else (self.norm1, self.activation1)
        out_NCHW: Tensor = second(first(self.conv1(features_NCHW)))
        if self.dropout1 is not None:
            out_NCHW = self.dropout1(out_NCHW)
        out_NCHW = self.conv2(out_NCHW)
        out_NCHW = self.norm2(self.activation2(out_NCHW) if self.adds_last else out_NCHW)
        if self.stochastic_depth is not None:
            out_NCHW = self.stochastic_depth(out_NCHW)
        if self.shortcut is not None:
            out_NCHW = out_NCHW + self.shortcut(features_NCHW)
        result: Tensor = out_NCHW if self.adds_last else self.activation2(out_NCHW)
        return result


def resnet(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    depth: int = 20,
    width: int = 16,
    shortcut: str = "identity",
    norm: str = "batch",
    norm_place: str = "before",
    activation: str = "relu",
    drop_prob: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Sequential:
    """Residual network for small images (He et al. 2015, section 4.2; UVic PHYS 555, "Can we keep going deeper?").

    A 3x3 convolution, three stages of n blocks with `width`, 2 `width`, 4 `width` filters (the second and the third
    start with stride 2), global average pooling, a linear output; `depth` = 6n+2 counts the layers with weights on the
    main path. Blocks are named block<stage>_<number>. Images (C, H, W) become maps (width, H, W), (2 width, H/2, W/2),
    (4 width, H/4, W/4), rounded up.

    `shortcut`: identity (option A: zero-padding if the size changes, the paper's choice on CIFAR), projection (option
    B: a 1x1 convolution with norm if the size changes), or none (the plain network).

    `norm`: see `norm_layer`. `norm_place`: with `before`, a block is y = f(x + norm conv f(norm conv x)) with the
    activation f, as in the paper; with `after`, y = x + norm f(conv norm f(conv x)), so that every convolution has
    activation, then norm. `drop_prob`: drop probability of dropout between the convolutions of a block (Zagoruyko &
    Komodakis 2016). `stochastic_depth`: drop probability of the last block's branch for a sample; that of block l of L
    is l/L of it (Huang et al. 2016). Both are in [0, 1); p of UIUC ECE 598, "Drop-out", is the keep probability.

    Raises ValueError for other values, and for images smaller than 4x4 (5x5 with instance norm).
    """
    check_depth(depth, outside=2)
    check_widths("width", [width])
    check_choice("shortcut", shortcut, ("identity", "projection", "none"))
    style = Style(norm, activation, norm_place)
    check_dropout(drop_prob)
    check_stochastic_depth(stochastic_depth, shortcut != "none")
    # the last maps of images of 4x4 are 1x1
    check_image_size("resnet", input_shape, *((5, "norm=instance") if norm == "instance" else (4,)))
    layers: dict[str, nn.Module] = {"conv1": style.conv(input_shape[0], width, 3), **style.after_conv(width, 1)}
    num_channels, num_blocks = width, (depth - 2) // 6
    drops = iter(depth_drop_probs(stochastic_depth, 3 * num_blocks))
    for stage, num_filters in enumerate((width, 2 * width, 4 * width), 1):
        for number in range(1, num_blocks + 1):
            layers[f"block{stage}_{number}"] = Block(
                num_channels,
                num_filters,
                shortcut=shortcut,
                style=style,
                drop_prob=drop_prob,
                depth_drop_prob=next(drops),
            )
            num_channels = num_filters
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["output"] = nn.Linear(num_channels, num_outputs)
    blocks = [name for name, layer in layers.items() if isinstance(layer, Block)]
    # the shortcut is added to whole feature maps
    plan = {f"{block}.{name}": kind for block in blocks for name, kind in style.residual_plan(drop_prob).items()}
    return with_plans(layers, plan, [*blocks, "pool", "output"])
