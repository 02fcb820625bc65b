"""Initializers that draw weights from a distribution."""

from collections.abc import Callable
from math import erf, exp, pi, sqrt
from typing import Literal

from torch import Tensor, nn

from trainer.base.checks import check_choice, check_number, check_that
from trainer.initializers.activations import GAINS, following, gain_of
from trainer.initializers.weights import OfLayers, Weight, initialize

_ABOVE = "a number above 0"
_CUT = 2.0  # standard deviations at which a truncated normal distribution is cut


class Normal(OfLayers):
    """w ~ N(0, std^2), one `std` > 0 for every layer (UVic PHYS 555, "Weights initialization": 0.01 and 0.05)."""

    def __init__(self, std: float = 0.01) -> None:
        self._std = check_number("std", std, 0, above=True, must=_ABOVE)

    def __call__(self, model: nn.Module) -> None:
        initialize(model, lambda values, _: _normal(values, self._std))


class Uniform(OfLayers):
    """w ~ U(-b, b), b = sqrt(3) std, so that `std` > 0 is the standard deviation; one for every layer."""

    def __init__(self, std: float = 0.01) -> None:
        self._std = check_number("std", std, 0, above=True, must=_ABOVE)

    def __call__(self, model: nn.Module) -> None:
        initialize(model, lambda values, _: _uniform(values, self._std))


class TruncatedNormal(OfLayers):
    """A normal distribution cut at two standard deviations, whose own standard deviation after the cut is `std` > 0.

    torch's `trunc_normal_` takes the standard deviation before the cut: 0.8796 of it remain.
    """

    def __init__(self, std: float = 0.02) -> None:
        self._std = check_number("std", std, 0, above=True, must=_ABOVE)

    def __call__(self, model: nn.Module) -> None:
        initialize(model, lambda values, _: _truncated(values, self._std))


class _Xavier(OfLayers):
    def __init__(self, gain: float | Literal["auto"] = 1.0, *, input_shape: tuple[int, ...] | None = None) -> None:
        if gain != "auto":
            check_number("gain", gain, 0, above=True, must=f"{_ABOVE} or auto")
        self._gain, self._input_shape = gain, input_shape

    def _draw(self, model: nn.Module, draw: Callable[[Tensor, float], object]) -> None:
        found = following(model, self._input_shape) if self._gain == "auto" else {}

        def std(weight: Weight) -> float:
            gain = gain_of(*found.get(id(weight.layer), ("linear", 0.0))) if self._gain == "auto" else self._gain
            return gain * sqrt(2 / sum(weight.fans))

        initialize(model, lambda values, weight: draw(values, std(weight)))


class XavierNormal(_Xavier):
    """w ~ N(0, gain^2 * 2 / (fan_in + fan_out)) (Glorot & Bengio 2010).

    fan_in = C_in*k*k and fan_out = C_out*k*k for a convolution. `gain` > 0, or auto: that of the activation after each
    layer (see `KaimingNormal`). The derivation is for small signals: in a deep tanh network, gain 1 lets the variance
    decay as 1/depth, and 5/3 keeps it.

    Slide: CUHK ELEG 5491 prints the variance 1/(d+u) for the normal distribution, a misprint: it contradicts
    Var(W) = 2/(d+u) one line above. UVic PHYS 555 calls it a truncated normal, which is `XavierTruncated`.
    """

    def __call__(self, model: nn.Module) -> None:
        self._draw(model, _normal)


class XavierUniform(_Xavier):
    """w ~ U(-b, b), b = gain * sqrt(6 / (fan_in + fan_out)): variance and arguments as in `XavierNormal`.

    Slide: CS7150 prints N(-b, b) where it means the uniform distribution.
    """

    def __call__(self, model: nn.Module) -> None:
        self._draw(model, _uniform)


class XavierTruncated(_Xavier):
    """`XavierNormal`, cut at two standard deviations and with the same variance (UVic PHYS 555)."""

    def __call__(self, model: nn.Module) -> None:
        self._draw(model, _truncated)


class _Kaiming(OfLayers):
    def __init__(
        self,
        mode: str = "fan_in",
        nonlinearity: str = "auto",
        a: float = 0.0,
        conv_fan_out: str = "receptive_field",
        *,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        check_choice("mode", mode, ("fan_in", "fan_out"))
        check_choice("nonlinearity", nonlinearity, ("auto", *GAINS))
        check_choice("conv_fan_out", conv_fan_out, ("receptive_field", "channels"))
        check_number("a", a)
        check_that(a == 0 or nonlinearity == "leaky_relu", "a", a, "0 unless nonlinearity=leaky_relu")
        has_channels = conv_fan_out == "channels"
        check_that(
            not has_channels or mode == "fan_out", "conv_fan_out", conv_fan_out, "receptive_field unless mode=fan_out"
        )
        self._mode, self._conv_fan_out, self._input_shape = mode, conv_fan_out, input_shape
        self._gain = None if nonlinearity == "auto" else gain_of(nonlinearity, a)

    def _draw(self, model: nn.Module, draw: Callable[[Tensor, float], object]) -> None:
        found = following(model, self._input_shape) if self._gain is None else {}

        def std(weight: Weight) -> float:
            gain = gain_of(*found.get(id(weight.layer), ("linear", 0.0))) if self._gain is None else self._gain
            fan_in, fan_out = weight.fans
            if self._conv_fan_out == "channels":
                fan_out = weight.values.shape[0]
            return gain / sqrt(fan_in if self._mode == "fan_in" else fan_out)

        initialize(model, lambda values, weight: draw(values, std(weight)))


class KaimingNormal(_Kaiming):
    """w ~ N(0, gain^2 / fan) (He et al. 2015, "Delving deep into rectifiers").

    `mode`: fan_in preserves the variance of activations from layer to layer, fan_out that of gradients.
    `nonlinearity`: the activation after the layers, or auto, which finds that of each layer in the model (1 if there is
    none). gain^2 is 2 for relu, 2 / (1 + a^2) for leaky_relu with negative slope `a`, (5/3)^2 for tanh, (3/4)^2 for
    selu, 1 for sigmoid and linear (`torch.nn.init.calculate_gain`), and 1 / E f(z)^2 with z ~ N(0, 1) for others that
    auto finds. With linear, LeCun's initialization (LeCun et al. 1998). For a convolution fan_in is C_in*k*k; fan_out
    is C_out*k*k (`conv_fan_out`: receptive_field, as in torch and the paper) or C_out (channels, as in CS7150,
    "Question"). As in torch, groups do not reduce fan_out.

    Slide: CUHK ELEG 5491 says that n in Var = 2/n counts the *output* units of the layer, but its own derivation sums
    over the inputs, and UIUC ECE 598 and the paper have n = dim(x). Here n is fan_in.

    Raises ValueError for an unknown name, and for `a` or `conv_fan_out` if they would have no effect.
    """

    def __call__(self, model: nn.Module) -> None:
        self._draw(model, _normal)


class KaimingUniform(_Kaiming):
    """w ~ U(-b, b), b = gain * sqrt(3 / fan): variance and arguments as in `KaimingNormal`."""

    def __call__(self, model: nn.Module) -> None:
        self._draw(model, _uniform)


def _normal(values: Tensor, std: float) -> Tensor:
    return values.normal_(0, std)


def _uniform(values: Tensor, std: float) -> Tensor:
    bound = sqrt(3) * std
    return values.uniform_(-bound, bound)


def _truncated(values: Tensor, std: float) -> Tensor:
    density, mass = exp(-(_CUT**2) / 2) / sqrt(2 * pi), erf(_CUT / sqrt(2))
    sigma = std / sqrt(1 - 2 * _CUT * density / mass)
    return nn.init.trunc_normal_(values, 0, sigma, -_CUT * sigma, _CUT * sigma)
