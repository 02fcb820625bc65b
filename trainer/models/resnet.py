"""The CIFAR family of residual networks, and the corresponding plain networks."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.parts import activation_layer, check_choice, check_image_size, check_widths, with_plans


class PadShortcut(nn.Module):
    """Option A of He et al. 2015: subsamples both axes by 2 and pads new channels with zeros; no parameters."""

    def __init__(self, num_new_channels: int) -> None:
        super().__init__()
        self.num_new_channels = num_new_channels

    def forward(self, features_NCHW: Tensor) -> Tensor:
        return F.pad(features_NCHW[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.num_new_channels))


class Block(nn.Module):
    """Two 3x3 convolutions with norms and activations; the shortcut is added before the last activation."""

    def __init__(self, num_inputs: int, num_filters: int, *, shortcut: str, norm: str, activation: str) -> None:
        super().__init__()
        stride = 1 if num_inputs == num_filters else 2
        self.conv1 = _conv(num_inputs, num_filters, 3, stride, norm)
        self.norm1 = _norm(num_filters, norm)
        self.activation1 = activation_layer(activation)
        self.conv2 = _conv(num_filters, num_filters, 3, 1, norm)
        self.norm2 = _norm(num_filters, norm)
        self.residual_end = "conv2" if norm == "none" else "norm2"
        self.activation2 = activation_layer(activation)
        self.shortcut: nn.Module | None = None
        if shortcut != "none" and stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "identity":
            self.shortcut = PadShortcut(num_filters - num_inputs)
        elif shortcut == "projection":
            projection = _conv(num_inputs, num_filters, 1, stride, norm)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, norm=_norm(num_filters, norm)))

    def forward(self, features_NCHW: Tensor) -> Tensor:
        # not in place: a hook may keep a layer's output
        out_NCHW: Tensor = self.activation1(self.norm1(self.conv1(features_NCHW)))
        out_NCHW = self.norm2(self.conv2(out_NCHW))
        if self.shortcut is not None:
            out_NCHW = out_NCHW + self.shortcut(features_NCHW)
        result: Tensor = self.activation2(out_NCHW)
        return result


def resnet(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    depth: int = 20,
    width: int = 16,
    shortcut: str = "identity",
    norm: str = "batch",
    activation: str = "relu",
) -> nn.Sequential:
    """Residual network for small images (He et al. 2015, section 4.2).

    A 3x3 convolution, three stages of n blocks with `width`, 2 `width`, 4 `width` filters (the second and the third
    start with stride 2), global average pooling, a linear output; `depth` = 6n+2 counts the layers with weights on the
    main path. Blocks are named block<stage>_<number>.

    `shortcut`: identity (option A: zero-padding if the size changes, the paper's choice on CIFAR), projection (option
    B: a 1x1 convolution with norm if the size changes), or none (the plain network). `norm`: batch or none
    (convolutions then have biases). Raises ValueError for other values, and for images smaller than 4x4.
    """
    _check_depth(depth)
    check_widths("width", [width])
    check_choice("shortcut", shortcut, ("identity", "projection", "none"))
    check_choice("norm", norm, ("batch", "none"))
    check_image_size("resnet", input_shape, 4)
    layers: dict[str, nn.Module] = {
        "conv1": _conv(input_shape[0], width, 3, 1, norm),
        "norm1": _norm(width, norm),
        "activation1": activation_layer(activation),
    }
    num_channels = width
    for stage, num_filters in enumerate((width, 2 * width, 4 * width), 1):
        for number in range(1, (depth - 2) // 6 + 1):
            layers[f"block{stage}_{number}"] = Block(
                num_channels, num_filters, shortcut=shortcut, norm=norm, activation=activation
            )
            num_channels = num_filters
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["output"] = nn.Linear(num_channels, num_outputs)
    blocks = [name for name, layer in layers.items() if isinstance(layer, Block)]
    plan = {f"{block}.{name}": kind for block in blocks for name, kind in _BLOCK_PLAN.items()}
    if norm == "none":
        plan = {name: kind for name, kind in plan.items() if kind != "split"}
    return with_plans(layers, plan, [*blocks, "pool", "output"])


# the shortcut is added to whole feature maps
_BLOCK_PLAN = {"conv1": "column", "norm1": "split", "conv2": "row"}


def _conv(num_inputs: int, num_filters: int, kernel_size: int, stride: int, norm: str) -> nn.Conv2d:
    """A convolution padded to keep the size; without bias before a norm, which would cancel it."""
    return nn.Conv2d(num_inputs, num_filters, kernel_size, stride, padding=kernel_size // 2, bias=norm == "none")


def _norm(num_channels: int, norm: str) -> nn.Module:
    return nn.BatchNorm2d(num_channels) if norm == "batch" else nn.Identity()


def _check_depth(depth: int) -> None:
    if depth >= 8 and depth % 6 == 2:
        return
    below = depth - (depth - 2) % 6
    nearest = "8" if depth < 8 else f"{below} and {below + 6}"
    raise ValueError(f"depth={depth}: must be 6n+2 with n >= 1; the nearest allowed: {nearest}")
