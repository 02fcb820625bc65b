"""Layers with fewer connections than a dense one: unshared convolutions and block-diagonal matrices."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.base.checks import check_that, check_whole
from trainer.models.parts import (
    Style,
    activation_layer,
    check_dropout,
    check_image_size,
    check_widths,
    dense_layers,
    paired,
    with_plans,
)


class BlockDiagonal(nn.Conv1d):
    """y_b = W_b x_b + b_b for each of B blocks of the features; (N, inputs) -> (N, outputs).

    It has inputs * outputs / B weights and multiply-adds. Parameters are those of a 1x1 convolution with B groups; the
    blocks are computed as one batch of matrix products.
    """

    def __init__(self, num_inputs: int, num_outputs: int, num_blocks: int, bias: bool = True) -> None:
        super().__init__(num_inputs, num_outputs, 1, groups=num_blocks, bias=bias)
        self.num_blocks = num_blocks

    def forward(self, features_ND: Tensor) -> Tensor:
        blocks_BND = features_ND.unflatten(1, (self.num_blocks, -1)).transpose(0, 1)
        weights_BDE = self.weight.squeeze(2).unflatten(0, (self.num_blocks, -1)).transpose(1, 2)
        outputs_NE = torch.bmm(blocks_BND, weights_BDE).transpose(0, 1).flatten(1)
        return outputs_NE if self.bias is None else outputs_NE + self.bias


class LocallyConnected(BlockDiagonal):
    """A convolution whose kernels are not shared: each output pixel l has its own; (N, C, H, W) -> (N, F, H', W').

    y[n, f, l] = sum_d w[l, f, d] p[n, l, d] + b[l, f], where p[n, l] are the D = C k^2 pixels that the convolution's
    kernel would see. The weight (L F, D, 1) is a block-diagonal matrix with L = H' W' blocks.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], num_filters: int, kernel_size: int, stride: int = 1, bias: bool = True
    ) -> None:
        num_channels, *sides = input_shape
        self.window, self.step, self.border = kernel_size, stride, kernel_size // 2
        self.output_hw = tuple((side + 2 * self.border - kernel_size) // stride + 1 for side in sides)
        num_pixels = prod(self.output_hw)
        super().__init__(num_pixels * num_channels * kernel_size**2, num_pixels * num_filters, num_pixels, bias)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        padded_NCHW = F.pad(features_NCHW, (self.border,) * 4)
        windows_NCHWKK = padded_NCHW.unfold(2, self.window, self.step).unfold(3, self.window, self.step)
        patches_NX = windows_NCHWKK.permute(0, 2, 3, 1, 4, 5).flatten(1)
        outputs_NLF = super().forward(patches_NX).unflatten(1, (self.num_blocks, -1))
        outputs_NFHW: Tensor = outputs_NLF.transpose(1, 2).unflatten(2, self.output_hw)
        return outputs_NFHW.contiguous()

    def extra_repr(self) -> str:
        height, width = self.output_hw
        return f"kernel_size={self.window}, stride={self.step}, output={height}x{width}"


def locally_connected(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    channels: Sequence[int] = (8, 16),
    kernel_size: int = 3,
    hidden: Sequence[int] = (),
    shared: bool = False,
    norm: str = "none",
    norm_place: str = "before",
    activation: str = "relu",
    drop_prob: float = 0.0,
) -> nn.Sequential:
    """Network of locally connected layers (LeCun 1989): convolutions with stride 2 that do not share weights.

    An output of L pixels and F channels takes L F C k^2 multiply-adds from C channels of H x W pixels, a dense layer
    L F C H W (Optimization (Part 2), "Global connectivity vs. local connectivity"). Without sharing, features may
    differ from place to place, for L times as many weights: each layer has L F (C k^2 + 1) parameters.

    For each of `channels` such a layer with k = `kernel_size` (odd, padded by k // 2), norm and activation, then fully
    connected layers of the widths `hidden` and a linear output. `shared`: whether the layers are ordinary convolutions
    of the same geometry, for comparison; `norm`, `norm_place`: see `norm_layer` and `Style`; `drop_prob`: in [0, 1), of
    the fully connected layers' outputs or, without any, of the features. Raises ValueError for other values.
    """
    style = Style(norm, activation, norm_place)
    check_widths("channels", channels, 1)
    check_widths("hidden", hidden)
    check_whole("kernel_size", kernel_size, 1)
    check_that(kernel_size % 2 == 1, "kernel_size", kernel_size, "odd")
    check_dropout(drop_prob)
    if norm == "instance":
        check_image_size("locally_connected", input_shape, 2 ** len(channels) + 1, "norm=instance")
    layers: dict[str, nn.Module] = {}
    shape = input_shape
    for number, num_filters in enumerate(channels, 1):
        if shared:
            layers[f"conv{number}"] = style.conv(shape[0], num_filters, kernel_size, 2)
        else:
            layers[f"local{number}"] = LocallyConnected(shape, num_filters, kernel_size, 2, bias=style.has_bias)
        layers |= style.after_conv(num_filters, number)
        shape = num_filters, (shape[1] + 1) // 2, (shape[2] + 1) // 2
    layers["flatten"] = nn.Flatten()
    if drop_prob and not hidden:
        layers["dropout"] = nn.Dropout(drop_prob)
    dense = dense_layers(
        prod(shape),
        hidden,
        num_outputs,
        activation=activation,
        norm="none",
        drop_prob=drop_prob,
        first=len(channels) + 1,
    )
    return with_plans(layers | dense, paired(dense))


def block_diagonal(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    hidden: Sequence[int] = (64, 64),
    num_blocks: int = 2,
    activation: str = "relu",
    drop_prob: float = 0.0,
) -> nn.Sequential:
    """Multi-layer perceptron whose hidden layers are block-diagonal: a = W^T x becomes W_A^T x_A + W_B^T x_B + ...

    With B = `num_blocks`, a layer from D to E features takes D E / B multiply-adds instead of D E: 16 instead of 32 for
    D = 8, E = 4, B = 2 (Optimization (Part 2), "Global connectivity vs. local connectivity"). Block b of a layer sees
    block b of the layer before, and at first the b-th part of the flattened image; the linear output sees all. With
    B = 1 it is `mlp`.

    `hidden`: widths, each a multiple of B; `drop_prob`: in [0, 1), after every activation. Raises ValueError for other
    values, and for images whose number of values is no multiple of B.
    """
    check_widths("hidden", hidden, 1)
    check_whole("num_blocks", num_blocks, 1)
    check_dropout(drop_prob)
    num_inputs = prod(input_shape)
    shape = "x".join(map(str, input_shape))
    check_that(
        num_inputs % num_blocks == 0, "num_blocks", num_blocks, f"a divisor of the {num_inputs} values of {shape}"
    )
    fits = all(width % num_blocks == 0 for width in hidden)
    check_that(fits, "hidden", list(hidden), f"multiples of num_blocks={num_blocks}")
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number, width in enumerate(hidden, 1):
        layers[f"blocks{number}"] = BlockDiagonal(num_inputs, width, num_blocks)
        layers[f"activation{number}"] = activation_layer(activation)
        if drop_prob:
            layers[f"dropout{number}"] = nn.Dropout(drop_prob)
        num_inputs = width
    layers["output"] = nn.Linear(num_inputs, num_outputs)
    return with_plans(layers, {"output": "gather"})
