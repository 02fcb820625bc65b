"""The activation that follows each layer, and its gain."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trainer.initializers.weights import Layer

GAINS = ("relu", "leaky_relu", "tanh", "sigmoid", "selu", "linear")
"""Activations whose gain `torch.nn.init.calculate_gain` gives."""
_OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
}
# what a model may call, as functions see it; relu6 has the gain of relu
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6), "relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_), "tanh"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_), "sigmoid"),
    **dict.fromkeys((F.selu, torch.selu, torch.selu_), "selu"),
    **{function: name for name, function in _OTHERS.items()},
}
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid",
    nn.SELU: "selu", nn.GELU: "gelu", nn.SiLU: "silu", nn.ELU: "elu", nn.Mish: "mish", nn.Softplus: "softplus",
    nn.Hardswish: "hardswish",
}  # fmt: skip
_NODES = 4001  # of the integral over the normal distribution


@cache
def gain_of(name: str, slope: float = 0.0) -> float:
    """Gain with which a layer before this activation keeps the variance of its outputs.

    torch's value if it has one; otherwise 1 / sqrt(E f(z)^2) with z ~ N(0, 1), which is sqrt(2) for relu.
    """
    if name in GAINS:
        return nn.init.calculate_gain(name, slope)  # type: ignore[arg-type]
    z = torch.linspace(-10, 10, _NODES, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return 1 / math.sqrt(float(torch.trapezoid(_OTHERS[name](z).square() * density, z)))


def following(model: nn.Module, input_shape: tuple[int, ...] | None) -> dict[int, tuple[str, float]]:
    """Name and negative slope of the activation after each layer, by the layer's id; "linear" if there is none.

    The model runs once on two samples of zeros, so that functions are seen as well as modules. Without `input_shape`,
    and if that fails, modules are taken in the order in which they were registered.
    """
    watch = _Watch(model)
    if input_shape is not None:
        with suppress(Exception):  # a model may need other inputs than zeros
            return watch.run(input_shape)
    return watch.registered()


class _Watch(TorchFunctionMode):
    """Records layers and activation functions in the order of their calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.found: dict[int, tuple[str, float]] = {}
        self.last: int | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _FUNCTIONS.get(function)
        if name is not None:
            slope = kwargs.get("negative_slope", args[1] if len(args) > 1 and name == "leaky_relu" else 0.01)
            self.activation(name, slope if name == "leaky_relu" else 0.0)
        return function(*args, **kwargs)

    def layer(self, module: nn.Module) -> None:
        self.last = id(module)
        self.found.setdefault(self.last, ("linear", 0.0))

    def activation(self, name: str, slope: float) -> None:
        if self.last is not None and self.found[self.last][0] == "linear":
            self.found[self.last] = name, slope
        self.last = None

    def run(self, input_shape: tuple[int, ...]) -> dict[int, tuple[str, float]]:
        device = next(self.model.parameters()).device
        hooks = [
            module.register_forward_pre_hook(lambda module, _: self.layer(module))
            for module in self.model.modules()
            if isinstance(module, Layer)
        ]
        was_training = self.model.training
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), self:
                self.model.eval()(torch.zeros((2, *input_shape), device=device))
        finally:
            self.model.train(was_training)
            for hook in hooks:
                hook.remove()
        return self.found

    def registered(self) -> dict[int, tuple[str, float]]:
        self.found, self.last = {}, None
        for module in self.model.modules():
            name = _MODULES.get(type(module))
            if isinstance(module, Layer):
                self.layer(module)
            elif name is not None:
                slope = float(module.negative_slope) if isinstance(module, nn.LeakyReLU) else 0.0
                self.activation(name, slope)
        return self.found
