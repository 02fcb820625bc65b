"""Initializers whose weights follow a rule instead of independent draws."""

from typing import Literal

import torch
from torch import nn

from trainer.base.capabilities import residual_ends
from trainer.base.checks import check_number
from trainer.initializers.activations import following, gain_of
from trainer.initializers.random import KaimingNormal
from trainer.initializers.weights import OfLayers, initialize


class Constant(OfLayers):
    """w = `value` for every weight, so that all units of a layer stay equal (CS7150, "Break the Symmetry").

    A counter-example: the units receive equal gradients, so no training makes them differ.
    """

    def __init__(self, value: float = 0.01) -> None:
        self._value = check_number("value", value)

    def __call__(self, model: nn.Module) -> None:
        initialize(model, lambda values, _: values.fill_(self._value))


class Orthogonal(OfLayers):
    """gain times orthonormal rows or columns, a kernel as a matrix (C_out, C_in*k*k) (Saxe et al. 2014).

    `gain` > 0, or auto: that of the activation after each layer (see `KaimingNormal`).
    """

    def __init__(self, gain: float | Literal["auto"] = "auto", *, input_shape: tuple[int, ...] | None = None) -> None:
        if gain != "auto":
            check_number("gain", gain, 0, above=True, must="a number above 0 or auto")
        self._gain, self._input_shape = gain, input_shape

    def __call__(self, model: nn.Module) -> None:
        found = following(model, self._input_shape) if self._gain == "auto" else {}

        def gain(layer: nn.Module) -> float:
            return gain_of(*found.get(id(layer), ("linear", 0.0))) if self._gain == "auto" else self._gain

        initialize(model, lambda values, weight: nn.init.orthogonal_(values, gain(weight.layer)))


class IdentityResidual(OfLayers):
    """`KaimingNormal`, and 0 for the last layer of each residual branch, so that each block begins as the identity.

    The last layer is the norm after the last convolution, whose scale becomes 0, or the convolution itself (Goyal et
    al. 2017, section 5.1; Zhang et al. 2019, Fixup). Raises ValueError if the model declares no residual branches.
    """

    def __init__(self, *, input_shape: tuple[int, ...] | None = None) -> None:
        self._others = KaimingNormal(input_shape=input_shape)

    def check(self, model: nn.Module) -> None:
        if not residual_ends(model):
            raise ValueError("the model declares no residual branches (see residual_end); resnet has some")

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        self._others(model)
        for end in residual_ends(model):
            for parameter in end.parameters(recurse=False):
                parameter.zero_()
