"""AlexNet in two columns, as designed for two devices."""

from collections.abc import Sequence

from torch import nn

from trainer.models.alexnet import SMALLEST, convolutions
from trainer.models.parts import (
    Style,
    check_choice,
    check_dropout,
    check_image_size,
    check_widths,
    dense_layers,
    with_plans,
)

# the third convolution takes the feature maps of both columns, the others only those of their own
_COLUMNS = (1, 2, 1, 2, 2)
_CONVOLUTIONS = {"conv1": "column", "conv2": "group", "conv3": "cross", "conv4": "group", "conv5": "group"}


def alexnet_two_column(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    channels: Sequence[int] = (96, 256, 384, 384, 256),
    hidden: Sequence[int] = (4096, 4096),
    activation: str = "relu",
    norm: str = "none",
    drop_prob: float = 0.5,
) -> nn.Sequential:
    """AlexNet (Krizhevsky et al. 2012): five convolutions with half of the filters in each of two columns.

    The columns exchange feature maps at the third convolution and at the fully connected layers. With the default
    widths, images of 224x224 and 1000 classes it has 60,965,224 parameters, as in the paper. On one device it is an
    ordinary model whose second, fourth and fifth convolutions have two groups; under `parallelism=two_column` each of
    two devices holds a column.

    For images of at least 64x64 the first convolution is 11x11 with stride 4 and padding 2, and max pooling is 3x3
    with stride 2. For smaller ones they are 5x5 with stride 1 and padding 2, and 2x2 with stride 2. Pooling follows
    convolutions 1, 2 and 5. Local response normalization is omitted.

    `channels`: filters of the five convolutions, even; `hidden`: widths of the fully connected layers; `norm`: none or
    batch, before every activation; `drop_prob`: a drop probability in [0, 1), after the activations of the fully
    connected layers. Raises ValueError for other values and for images smaller than 8x8.
    """
    if len(channels) != 5 or any(not isinstance(width, int) or width < 2 or width % 2 for width in channels):
        raise ValueError(f"channels={list(channels)}: must be a list of 5 even numbers >= 2, half of each per column")
    check_widths("hidden", hidden)
    check_choice("norm", norm, ("none", "batch"))
    check_dropout(drop_prob)
    check_image_size("alexnet_two_column", input_shape, SMALLEST)
    layers, num_features = convolutions(channels, input_shape, Style(norm, activation), _COLUMNS)
    layers["flatten"] = nn.Flatten()
    plan = _CONVOLUTIONS if norm == "none" else _CONVOLUTIONS | {f"norm{i}": "split" for i in range(1, 6)}
    dense = dense_layers(
        num_features,
        hidden,
        num_outputs,
        activation=activation,
        norm=norm,
        drop_prob=drop_prob,
        first=6,
    )
    return with_plans(layers | dense, plan | _crossing(dense))


def _crossing(dense: dict[str, nn.Module]) -> dict[str, str]:
    """Tensor plan of the fully connected layers: each takes the features of both columns; the output layer sums."""
    kinds = {nn.Linear: "cross", nn.BatchNorm1d: "split", nn.Dropout: "split"}
    return {name: kinds[type(layer)] for name, layer in dense.items() if type(layer) in kinds} | {"output": "row"}
