"""Building blocks shared by models: activations by name, fully connected layers, argument checks."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from trainer.base.checks import check_choice as check_choice
from trainer.base.checks import check_number, check_wholes

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
# for vectors of features; feature maps always use nn.BatchNorm2d
_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def activation_layer(name: str) -> nn.Module:
    """A new activation module. Raises ValueError for an unknown name."""
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def dense_layers(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    *,
    activation: str,
    norm: str,
    dropout: float,
    first: int = 1,
) -> dict[str, nn.Module]:
    """Fully connected layers by name: linear1, norm1, activation1, dropout1 for the first width, ... output.

    Numbering starts at `first`. A linear layer before batch norm has no bias, which batch norm would cancel.
    """
    layers: dict[str, nn.Module] = {}
    for i, width in enumerate(hidden, first):
        layers[f"linear{i}"] = nn.Linear(num_inputs, width, bias=norm != "batch")
        if norm != "none":
            layers[f"norm{i}"] = _NORMS[norm](width)
        layers[f"activation{i}"] = activation_layer(activation)
        if dropout > 0:
            layers[f"dropout{i}"] = nn.Dropout(dropout)
        num_inputs = width
    layers["output"] = nn.Linear(num_inputs, num_outputs)
    return layers


def with_plans(
    layers: Mapping[str, nn.Module], tensor_plan: Mapping[str, str], stages: Iterable[str] | None = None
) -> nn.Sequential:
    """Chain the layers in a Sequential, with two attributes that say how it may be split over devices.

    `pipeline_plan`: names of the children at which a pipeline stage may begin (None: all but the first).
    `tensor_plan`: how a tensor-parallel group splits each module, by name; modules that are not named are replicated.
    column: input whole, weight split by outputs, output split; row: input split, weight split by inputs, output whole;
    gather: as column, then the outputs are gathered; cross: input gathered first, then as column; group: a grouped
    convolution of split channels; split: parameters or random draws per channel, of split channels.
    """
    model: Any = nn.Sequential(OrderedDict(layers))
    model.pipeline_plan = list(layers)[1:] if stages is None else list(stages)
    model.tensor_plan = dict(tensor_plan)
    return model  # type: ignore[no-any-return]


def paired(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """A tensor plan that pairs the layers with weights, column then row, with whole inputs and outputs.

    A last layer without a partner is replicated, or gathered if it is a convolution or the only layer. Layers before
    layer norm, which needs all features at once, are gathered.
    """
    plan: dict[str, str] = {}
    weighted = [name for name, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)]
    before_layer_norm = any(isinstance(layer, nn.LayerNorm) for layer in layers.values())
    is_split = False
    for name, layer in layers.items():
        if name in weighted:
            is_last = name == weighted[-1]
            if is_split:
                plan[name], is_split = "row", False
            elif is_last:
                if isinstance(layer, nn.Conv2d) or len(weighted) == 1:
                    plan[name] = "gather"
            elif before_layer_norm:
                plan[name] = "gather"
            else:
                plan[name], is_split = "column", True
        elif is_split and isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout):
            plan[name] = "split"
    return plan


def check_widths(key: str, widths: Sequence[int], minimum: int = 0) -> None:
    """Raises ValueError unless `widths` holds at least `minimum` integers, each >= 1."""
    check_wholes(key, widths, 1, least=minimum)


def check_dropout(dropout: float) -> None:
    """Raises ValueError unless the drop probability is in [0, 1)."""
    check_number("dropout", dropout, 0, 1, below=True, must="a drop probability in [0, 1)")


def check_image_size(model: str, input_shape: tuple[int, int, int], smallest: int) -> None:
    """Raises ValueError if images are smaller than `smallest` pixels on a side."""
    _, height, width = input_shape
    if min(height, width) < smallest:
        raise ValueError(f"model {model} needs images of at least {smallest}x{smallest}; data gives {height}x{width}")
