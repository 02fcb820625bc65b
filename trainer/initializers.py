"""Weight initializers. An initializer is called once with the freshly built model and changes it in place.

Weights of linear and convolutional layers are drawn in the order of `named_modules` from torch's default CPU
generator, whatever the model's device; their biases become 0, scales of norms 1 and biases of norms 0. All other
parameters (embeddings, attention projections held as plain tensors, recurrent layers) are unchanged.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.base.checks import check_choice, check_number, check_that

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NONLINEARITIES = ("relu", "leaky_relu", "tanh", "sigmoid", "selu", "linear")


class Normal:
    """w ~ N(0, std^2), one `std` > 0 for every layer (UVic PHYS 555, "Weights initialization": 0.01 and 0.05)."""

    def __init__(self, std: float = 0.01) -> None:
        check_number("std", std, 0, above=True, must="a number above 0")
        self._std = std

    def __call__(self, model: nn.Module) -> None:
        _initialize(model, lambda values, layer: values.normal_(0, self._std))


class _Xavier:
    def __init__(self, gain: float = 1.0) -> None:
        check_number("gain", gain, 0, above=True, must="a number above 0")
        self._gain = gain

    def _std(self, layer: Layer) -> float:
        return self._gain * sqrt(2 / sum(_fans(layer)))


class XavierNormal(_Xavier):
    """w ~ N(0, gain^2 * 2 / (fan_in + fan_out)) (Glorot & Bengio 2010).

    fan_in = C_in*k*k and fan_out = C_out*k*k for a convolution. `gain` > 0. CUHK ELEG 5491 prints the variance 1/(d+u)
    for the normal distribution, a misprint: it contradicts Var(W) = 2/(d+u) one line above. UVic PHYS 555 calls it a
    truncated normal; this one is not truncated.
    """

    def __call__(self, model: nn.Module) -> None:
        _initialize(model, lambda values, layer: values.normal_(0, self._std(layer)))


class XavierUniform(_Xavier):
    """w ~ U(-b, b), b = gain * sqrt(6 / (fan_in + fan_out)): the variance of `XavierNormal`.

    `gain` > 0. CS7150 prints N(-b, b) where it means the uniform distribution.
    """

    def __call__(self, model: nn.Module) -> None:
        _initialize(model, lambda values, layer: _uniform(values, self._std(layer)))


class _Kaiming:
    def __init__(
        self,
        mode: str = "fan_in",
        nonlinearity: str = "relu",
        a: float = 0.0,
        conv_fan_out: str = "receptive_field",
    ) -> None:
        check_choice("mode", mode, ("fan_in", "fan_out"))
        check_choice("nonlinearity", nonlinearity, _NONLINEARITIES)
        check_choice("conv_fan_out", conv_fan_out, ("receptive_field", "channels"))
        check_number("a", a)
        check_that(a == 0 or nonlinearity == "leaky_relu", "a", a, "0 unless nonlinearity=leaky_relu")
        has_channels = conv_fan_out == "channels"
        check_that(
            not has_channels or mode == "fan_out", "conv_fan_out", conv_fan_out, "receptive_field unless mode=fan_out"
        )
        self._mode = mode
        self._gain = nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
        self._conv_fan_out = conv_fan_out

    def _std(self, layer: Layer) -> float:
        fan_in, fan_out = _fans(layer)
        if self._conv_fan_out == "channels":
            fan_out = layer.weight.shape[0]
        return self._gain / sqrt(fan_in if self._mode == "fan_in" else fan_out)


class KaimingNormal(_Kaiming):
    """w ~ N(0, gain^2 / fan) (He et al. 2015, "Delving deep into rectifiers").

    `mode`: fan_in preserves the variance of activations from layer to layer, fan_out that of gradients. gain^2 is 2
    for relu, 2 / (1 + a^2) for leaky_relu with negative slope `a`, (5/3)^2 for tanh, (3/4)^2 for selu, 1 for sigmoid
    and linear (`torch.nn.init.calculate_gain`). For a convolution fan_in is C_in*k*k; fan_out is C_out*k*k
    (`conv_fan_out`: receptive_field, as in torch and the paper) or C_out (channels, as in CS7150, "Question"). As in
    torch, groups do not reduce fan_out.

    CUHK ELEG 5491 says that n in Var = 2/n counts the *output* units of the layer, but its own derivation sums over
    the inputs, and UIUC ECE 598 and the paper have n = dim(x). Here n is fan_in.

    Raises ValueError for an unknown name, and for `a` or `conv_fan_out` if they would have no effect.
    """

    def __call__(self, model: nn.Module) -> None:
        _initialize(model, lambda values, layer: values.normal_(0, self._std(layer)))


class KaimingUniform(_Kaiming):
    """w ~ U(-b, b), b = gain * sqrt(3 / fan): variance and arguments as in `KaimingNormal`."""

    def __call__(self, model: nn.Module) -> None:
        _initialize(model, lambda values, layer: _uniform(values, self._std(layer)))


@torch.no_grad()
def _initialize(model: nn.Module, draw: Callable[[Tensor, Layer], object]) -> None:
    """Draw each layer's weights in a CPU tensor and copy them. Raises ValueError if there is no layer."""
    num_layers = 0
    for module in model.modules():
        if isinstance(module, Layer):
            values = torch.empty(module.weight.shape, dtype=torch.float32, device="cpu")
            draw(values, module)
            module.weight.copy_(values)
            num_layers += 1
        elif isinstance(module, _NORMS) and module.weight is not None:
            module.weight.fill_(1)
        else:
            continue
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()  # type: ignore[operator, union-attr]
    if num_layers == 0:
        raise ValueError("the model has no linear or convolution layer to initialize")


def _uniform(values: Tensor, std: float) -> Tensor:
    bound = sqrt(3) * std
    return values.uniform_(-bound, bound)


def _fans(layer: Layer) -> tuple[int, int]:
    """fan_in and fan_out, both including the receptive field of a convolution."""
    receptive_field = layer.weight[0, 0].numel()
    return layer.weight.shape[1] * receptive_field, layer.weight.shape[0] * receptive_field
