"""LeNet: convolutions with pooling, then fully connected layers."""

from collections.abc import Sequence

from torch import nn

from trainer.models.parts import (
    activation_layer,
    check_choice,
    check_dropout,
    check_image_size,
    check_widths,
    dense_layers,
    paired,
    with_plans,
)

# the last feature map of Caffe's LeNet on 28x28 images; if it would be smaller, convolutions are padded
_SMALLEST_LAST_MAP = 4


def lenet(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    channels: Sequence[int] = (20, 50),
    hidden: Sequence[int] = (500,),
    activation: str = "relu",
    norm: str = "batch",
    drop_prob: float = 0.0,
) -> nn.Sequential:
    """LeNet-style network (LeCun et al. 1998).

    For each of `channels`: a 5x5 convolution, norm, activation, 2x2 max pooling; then fully connected layers of the
    widths in `hidden`, then a linear output.

    Convolutions are unpadded if the last feature map is then at least 4x4; otherwise all are padded to keep the size
    ("same"). 28x28 with channels [20, 50], hidden [500] is Caffe's LeNet (431,080 parameters for 10 classes), 32x32x1
    with [6, 16], [120, 84] is LeNet-5's modern form (61,706), and 8x8 images fit.

    `norm`: none or batch, before every activation; `drop_prob`: a drop probability in [0, 1), after the activations of
    the fully connected layers. Raises ValueError for other values, and for images that pooling would reduce to
    nothing.
    """
    check_widths("channels", channels, minimum=1)
    check_widths("hidden", hidden)
    check_choice("norm", norm, ("none", "batch"))
    check_dropout(drop_prob)
    check_image_size("lenet", input_shape, 2 ** len(channels))
    num_channels, height, width = input_shape
    padding = 0 if _last_size(min(height, width), len(channels), 0) >= _SMALLEST_LAST_MAP else 2

    layers: dict[str, nn.Module] = {}
    for i, num_filters in enumerate(channels, 1):
        layers[f"conv{i}"] = nn.Conv2d(num_channels, num_filters, 5, padding=padding, bias=norm == "none")
        if norm == "batch":
            layers[f"norm{i}"] = nn.BatchNorm2d(num_filters)
        layers[f"activation{i}"] = activation_layer(activation)
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        num_channels = num_filters
    layers["flatten"] = nn.Flatten()
    num_features = num_channels
    for size in (height, width):
        num_features *= _last_size(size, len(channels), padding)
    dense = dense_layers(
        num_features,
        hidden,
        num_outputs,
        activation=activation,
        norm=norm,
        drop_prob=drop_prob,
        first=len(channels) + 1,
    )
    return with_plans(layers | dense, paired(layers) | paired(dense))


def _last_size(size: int, num_stages: int, padding: int) -> int:
    """Side of the last feature map; not positive if the images are too small."""
    for _ in range(num_stages):
        size = (size + 2 * padding - 4) // 2
    return size
