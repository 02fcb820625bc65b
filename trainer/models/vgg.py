"""VGG: stacks of 3x3 convolutions."""

from collections.abc import Sequence

from torch import nn

from trainer.models.parts import (
    Style,
    check_dropout,
    check_image_size,
    check_one_of,
    check_widths,
    dense_layers,
    paired,
    with_plans,
)

# convolutions of each of the five stages, by the number of layers with weights (Simonyan & Zisserman, table 1)
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_FACTORS = (1, 2, 4, 8, 8)


def vgg(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    depth: int = 16,
    width: int = 64,
    hidden: Sequence[int] = (4096, 4096),
    norm: str = "none",
    norm_place: str = "before",
    activation: str = "relu",
    drop_prob: float = 0.5,
) -> nn.Sequential:
    """VGG (Simonyan & Zisserman 2015): five stages of 3x3 convolutions with 2x2 max pooling, fully connected layers.

    The stages have 1, 2, 4, 8 and 8 times `width` filters; `depth` (11, 13, 16 or 19: configurations A, B, D, E)
    counts the layers with weights. With the default widths, images of 224x224 and 1000 classes, VGG-11, 13, 16 and 19
    have 132,863,336, 133,047,848, 138,357,544 and 143,667,240 parameters, and maps of 224, 112, 56, 28, 14 and, after
    the last pooling, 7 pixels.

    Pooling rounds sizes up. For images of 16 pixels or fewer on a side, stages are not pooled from the first one on
    until the maps are at least 2x2 in every stage: the first two at 8x8, the first one at 9x9 to 16x16.

    `hidden`: widths of the fully connected layers; `norm` and `norm_place`: of the convolutions, see `Style` (the
    original has none); `drop_prob`: drop probability in [0, 1), after the activations of the fully connected layers (p
    of UIUC ECE 598, "Drop-out", is the keep probability). Raises ValueError for other values and for images smaller
    than 4x4.
    """
    check_one_of("depth", depth, tuple(_STAGES))
    check_widths("width", [width])
    check_widths("hidden", hidden)
    style = Style(norm, activation, norm_place)
    check_dropout(drop_prob)
    check_image_size("vgg", input_shape, 4)
    num_channels, *sides = input_shape
    num_unpooled = sum(min(sides) <= largest for largest in (16, 8, 4))
    layers: dict[str, nn.Module] = {}
    for stage, (count, factor) in enumerate(zip(_STAGES[depth], _FACTORS, strict=True), 1):
        for number in range(1, count + 1):
            layers[f"conv{stage}_{number}"] = style.conv(num_channels, factor * width, 3)
            num_channels = factor * width
            layers |= style.after_conv(num_channels, f"{stage}_{number}")
        if stage > num_unpooled:
            layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
            sides = [-(-side // 2) for side in sides]
    dense = dense_layers(
        num_channels * sides[0] * sides[1],
        hidden,
        num_outputs,
        activation=activation,
        norm="none",
        drop_prob=drop_prob,
        first=6,
    )
    return with_plans({**layers, "flatten": nn.Flatten(), **dense}, paired(layers) | paired(dense))
