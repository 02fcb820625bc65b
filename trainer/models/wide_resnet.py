"""Wide residual networks for small images."""

from torch import Tensor, nn

from trainer.models.parts import (
    StochasticDepth,
    Style,
    check_depth,
    check_dropout,
    check_image_size,
    check_stochastic_depth,
    check_widths,
    depth_drop_probs,
    with_plans,
)

_FIRST = 16  # filters of the first convolution


class WideBlock(nn.Module):
    """y = s(x) + conv f(norm conv f(norm x)), dropout before the second convolution; see `wide_resnet`.

    s is the identity, or a 1x1 convolution of f(norm x) if the shape changes.
    """

    def __init__(
        self, num_inputs: int, num_filters: int, stride: int, style: Style, drop_prob: float, depth_drop_prob: float
    ) -> None:
        super().__init__()
        self.norm0 = style.norm_layer(num_inputs)
        self.activation0 = style.activation_layer()
        self.conv1 = style.conv(num_inputs, num_filters, 3, stride)
        self.norm1 = style.norm_layer(num_filters)
        self.activation1 = style.activation_layer()
        self.dropout1 = nn.Dropout(drop_prob) if drop_prob else None
        self.conv2 = style.unnormalized_conv(num_filters, num_filters, 3)
        self.residual_end = "conv2"
        self.stochastic_depth = StochasticDepth(depth_drop_prob) if depth_drop_prob else None
        is_same = num_inputs == num_filters and stride == 1
        self.shortcut = None if is_same else style.unnormalized_conv(num_inputs, num_filters, 1, stride)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        active_NCHW: Tensor = self.activation0(self.norm0(features_NCHW))
        out_NCHW: Tensor = self.activation1(self.norm1(self.conv1(active_NCHW)))
        if self.dropout1 is not None:
            out_NCHW = self.dropout1(out_NCHW)
        out_NCHW = self.conv2(out_NCHW)
        if self.stochastic_depth is not None:
            out_NCHW = self.stochastic_depth(out_NCHW)
        return out_NCHW + (features_NCHW if self.shortcut is None else self.shortcut(active_NCHW))


def wide_resnet(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    depth: int = 16,
    width: int = 4,
    norm: str = "batch",
    activation: str = "relu",
    drop_prob: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Sequential:
    """Wide residual network WRN-`depth`-`width` (Zagoruyko & Komodakis 2016; CUHK ELEG 5491, "SGDR").

    A 3x3 convolution with 16 filters, three stages of n blocks with 16, 32, 64 times `width` filters (the second and
    the third start with stride 2), norm, activation, global average pooling, a linear output. Images (C, H, W) become
    maps (16 width, H, W), (32 width, H/2, W/2), (64 width, H/4, W/4), rounded up. `depth` = 6n+4 counts the
    convolutions, shortcuts included where a stage begins. With 10 classes and 3 channels, WRN-28-10 has 36.5 million
    parameters, WRN-28-20 145.8 million.

    Blocks are pre-activated (He et al. 2016, "Identity mappings"): norm and activation stand before each of the two
    3x3 convolutions, and a 1x1 convolution of the activated input is the shortcut where the shape changes. `norm`: see
    `norm_layer`. `drop_prob`: drop probability between the convolutions of a block; the paper's is 0 or 0.3.
    `stochastic_depth`: drop probability of the last block's branch for a sample; that of block l of L is l/L of it
    (Huang et al. 2016). Both are in [0, 1).

    Raises ValueError for other values, and for images smaller than 4x4 (5x5 with instance norm).
    """
    check_depth(depth, outside=4)
    check_widths("width", [width])
    style = Style(norm, activation)
    check_dropout(drop_prob)
    check_stochastic_depth(stochastic_depth)
    check_image_size("wide_resnet", input_shape, *((5, "norm=instance") if norm == "instance" else (4,)))
    num_blocks, num_channels = (depth - 4) // 6, _FIRST
    layers: dict[str, nn.Module] = {"conv1": style.unnormalized_conv(input_shape[0], _FIRST, 3)}
    drops = iter(depth_drop_probs(stochastic_depth, 3 * num_blocks))
    for stage in (1, 2, 3):
        num_filters = _FIRST * 2 ** (stage - 1) * width
        for number in range(1, num_blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            block = WideBlock(num_channels, num_filters, stride, style, drop_prob, next(drops))
            layers[f"block{stage}_{number}"] = block
            num_channels = num_filters
    blocks = [name for name in layers if name.startswith("block")]
    layers |= style.after_conv(num_channels, "_last")
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["output"] = nn.Linear(num_channels, num_outputs)
    plan = {f"{block}.{name}": kind for block in blocks for name, kind in style.residual_plan(drop_prob).items()}
    return with_plans(layers, plan, [*blocks, "pool", "output"])
