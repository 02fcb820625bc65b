"""AlexNet in one column, and the convolutions that it shares with the one in two columns."""

from collections.abc import Sequence

from torch import nn

from trainer.base.checks import check_that
from trainer.models.parts import (
    Style,
    check_dropout,
    check_image_size,
    check_widths,
    dense_layers,
    paired,
    with_plans,
)

_KERNELS = (None, 5, 3, 3, 3)
_POOLED = (1, 2, 5)
_LARGE = 64
SMALLEST = 8


def alexnet(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    channels: Sequence[int] = (96, 256, 384, 384, 256),
    hidden: Sequence[int] = (4096, 4096),
    norm: str = "none",
    norm_place: str = "before",
    activation: str = "relu",
    drop_prob: float = 0.5,
) -> nn.Sequential:
    """AlexNet (Krizhevsky et al. 2012) in one column: every filter sees all feature maps of the layer before.

    Five convolutions, fully connected layers, a linear output. With the default widths, images of 224x224 (or 227x227)
    and 1000 classes it has 62,378,344 parameters; `alexnet_two_column`, as the paper trained it, has 60,965,224. Images
    of 224x224 become maps 96x55x55 -> pool 27x27 -> 256x27x27 -> pool 13x13 -> 384, 384, 256x13x13 -> pool 6x6.

    For images of at least 64x64 the first convolution is 11x11 with stride 4 and padding 2, and max pooling is 3x3
    with stride 2. For smaller ones they are 5x5 with stride 1 and padding 2, and 2x2 with stride 2. Pooling follows
    convolutions 1, 2 and 5. Local response normalization is omitted.

    `channels`: filters of the five convolutions; `hidden`: widths of the fully connected layers; `norm` and
    `norm_place`: of the convolutions, see `Style`; `drop_prob`: drop probability in [0, 1), after the activations of
    the fully connected layers (p of UIUC ECE 598, "Drop-out", is the keep probability). Raises ValueError for other
    values and for images smaller than 8x8.
    """
    check_widths("channels", channels, minimum=5)
    check_that(len(channels) == 5, "channels", list(channels), "a list of 5 numbers, one for each convolution")
    check_widths("hidden", hidden)
    check_dropout(drop_prob)
    check_image_size("alexnet", input_shape, SMALLEST)
    layers, num_features = convolutions(channels, input_shape, Style(norm, activation, norm_place))
    dense = dense_layers(
        num_features, hidden, num_outputs, activation=activation, norm="none", drop_prob=drop_prob, first=6
    )
    return with_plans({**layers, "flatten": nn.Flatten(), **dense}, paired(layers) | paired(dense))


def convolutions(
    channels: Sequence[int],
    input_shape: tuple[int, int, int],
    style: Style,
    groups: Sequence[int] = (1, 1, 1, 1, 1),
) -> tuple[dict[str, nn.Module], int]:
    """The convolutions with norm, activation and pooling, and the number of features that they return."""
    num_channels, height, width = input_shape
    is_large = min(height, width) >= _LARGE
    sides = [height, width]
    layers: dict[str, nn.Module] = {}
    for i, num_filters in enumerate(channels, 1):
        kernel_size = _KERNELS[i - 1] or (11 if is_large else 5)
        stride = 4 if i == 1 and is_large else 1
        padding = 2 if i == 1 else kernel_size // 2
        layers[f"conv{i}"] = style.conv(num_channels, num_filters, kernel_size, stride, padding, groups[i - 1])
        layers |= style.after_conv(num_filters, i)
        sides = [(side + 2 * padding - kernel_size) // stride + 1 for side in sides]
        if i in _POOLED:
            pooled = 3 if is_large else 2
            layers[f"pool{i}"] = nn.MaxPool2d(pooled, 2)
            sides = [(side - pooled) // 2 + 1 for side in sides]
        num_channels = num_filters
    return layers, num_channels * sides[0] * sides[1]
