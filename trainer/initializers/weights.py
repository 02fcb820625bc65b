"""The weights of a model that an initializer draws."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.base.capabilities import num_blocks_of
from trainer.contracts import Initializer

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_GATES = {"LSTM": 4, "GRU": 3}


class Weight(NamedTuple):
    """A matrix or kernel of a layer, its name in the model and the layer itself; fans include the receptive field."""

    name: str
    layer: nn.Module
    values: Tensor

    @property
    def fans(self) -> tuple[int, int]:
        """fan_in = C_in*k*k and fan_out = C_out*k*k. As in torch, groups do not reduce fan_out."""
        receptive_field = self.values[0, 0].numel()
        return self.values.shape[1] * receptive_field, self.values.shape[0] * receptive_field


def weights_of(model: nn.Module) -> Iterator[Weight]:
    """Yield the weights of all layers, in the order of `named_modules`."""
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            for part in module.weight.chunk(num_blocks_of(module)):
                yield Weight(name, module, part)
        elif isinstance(module, nn.RNNBase):
            for key, parameter in module.named_parameters(recurse=False):
                if key.startswith("weight_"):  # weight_ih_l0, weight_hh_l0, ..., the gates below one another
                    for part in parameter.chunk(_GATES.get(module.mode, 1)):
                        yield Weight(name, module, part)
        elif isinstance(module, nn.MultiheadAttention):
            whole = [module.in_proj_weight] if module.in_proj_weight is not None else []
            for parameter in (*whole, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
                for part in () if parameter is None else parameter.chunk(3 if whole else 1):
                    yield Weight(name, module, part)


class OfLayers(Initializer):
    """Base of initializers that draw the weights of layers. Raises ValueError for a model without such layers."""

    def check(self, model: nn.Module) -> None:
        if next(weights_of(model), None) is None:
            raise ValueError("the model has no linear or convolution layer to initialize")


@torch.no_grad()
def initialize(model: nn.Module, draw: Callable[[Tensor, Weight], object]) -> None:
    """Draw each weight in a CPU tensor and copy it; biases become 0, scales of norms 1."""
    for weight in weights_of(model):
        values = torch.empty(weight.values.shape, dtype=torch.float32, device="cpu")
        draw(values, weight)
        weight.values.copy_(values)
    for parameter, value in _fixed(model):
        parameter.fill_(value)


def _fixed(model: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """Yield biases and the scales of norms, with their values."""
    for module in model.modules():
        if isinstance(module, _NORMS) and module.weight is not None:
            yield module.weight, 1.0
        if isinstance(module, (*_NORMS, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase, nn.MultiheadAttention)):
            for name, parameter in module.named_parameters(recurse=False):
                if "bias" in name:
                    yield parameter, 0.0


def left_alone(model: nn.Module) -> list[str]:
    """Names of the parameters that initializers leave as the model's constructor made them."""
    fixed = {id(parameter) for parameter, _ in _fixed(model)}
    drawn = {id(module) for _, module, _ in weights_of(model)}
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in fixed and not _is_weight(model, name, drawn)
    ]


def _is_weight(model: nn.Module, name: str, drawn: set[int]) -> bool:
    owner, _, key = name.rpartition(".")
    return id(model.get_submodule(owner)) in drawn and "weight" in key
