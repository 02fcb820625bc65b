"""Summary of a model: layers, output shapes, parameters, floating-point operations."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.base.without_compiler import spare_flop_counter, zeros_for

Shape = tuple[int, ...]

_aten = torch.ops.aten
_FUSED_RNN = _aten.mkldnn_rnn_layer  # one layer in float32 on the CPU
# what these operations return, or its shape, depends on values: `item`, `if tensor`, masks as indices
_READ_VALUES = (_aten._local_scalar_dense, _aten.equal, _aten.nonzero, _aten.masked_select, _aten._unique2)


@dataclass(frozen=True)
class Layer:
    """A module that has its own parameters or contains no other modules.

    `output_shape` (for a tuple, of its first tensor) excludes the batch dimension; it is None if `forward` does not
    call the module. Parameters shared with an earlier layer (tied weights) are not counted again, so the layers add
    up to the total.
    """

    name: str
    kind: str
    output_shape: Shape | None
    parameters: int


@dataclass(frozen=True)
class ModelSummary:
    """Summary of a model. `flops` counts the forward pass of one sample, a multiply-add as 2.

    FLOPs include matrix products, convolutions and attention, but not elementwise operations, normalization and
    pooling (torch.utils.flop_counter). If the model cannot run on the meta device, `problem` says why, and `flops`
    and all output shapes are None.
    """

    layers: tuple[Layer, ...]
    parameters: int
    trainable: int
    flops: int | None
    problem: str | None = None


def summarize(model: nn.Module, input_shape: Shape, dtype: torch.dtype = torch.float32) -> ModelSummary:
    """Summarize a model for inputs of `input_shape` (without the batch dimension), in evaluation mode.

    The forward pass runs on the meta device, without computation; for a small model on the CPU, with zero weights.
    The model is not changed.
    """
    shapes: dict[str, Shape] = {}
    flops, problem = None, None
    try:
        flops = _forward_flops(model, input_shape, dtype, shapes)
    except RuntimeError as error:
        shapes, problem = {}, str(error).strip().partition("\n")[0]
    layers = tuple(_layers(model, shapes))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return ModelSummary(layers, sum(layer.parameters for layer in layers), trainable, flops, problem)


def render(summary: ModelSummary) -> Group:
    """Return a table of the layers, with totals below it."""
    trainable = "all" if summary.trainable == summary.parameters else f"{summary.trainable:,}"
    total = f"{summary.parameters:,} parameters, {trainable} trainable"
    if summary.flops is None:
        total += f"\nFLOPs unknown: {summary.problem}"
    else:
        total += f"\n{_scaled(summary.flops)}FLOPs forward a sample (a multiply-add is 2)"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("layer", "kind"):
        table.add_column(title, overflow="fold")
    for title in ("output", "parameters"):
        table.add_column(title, justify="right", no_wrap=True)
    for layer in summary.layers:
        shape = "?" if layer.output_shape is None else "x".join(map(str, layer.output_shape))
        count = f"{layer.parameters:,}" if layer.parameters else ""
        table.add_row(*map(Text, (layer.name or "(model)", layer.kind, shape, count)))
    return Group(table, Text(total))


def _layers(model: nn.Module, shapes: dict[str, Shape]) -> Iterator[Layer]:
    counted: set[int] = set()
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own or not list(module.children()):
            parameters = sum(parameter.numel() for parameter in own if id(parameter) not in counted)
            counted |= {id(parameter) for parameter in own}
            yield Layer(name, type(module).__name__, shapes.get(name), parameters)


def _forward_flops(model: nn.Module, input_shape: Shape, dtype: torch.dtype, shapes: dict[str, Shape]) -> int:
    """Return the FLOPs of a forward pass of one sample; records output shapes in `shapes`."""
    zeros = zeros_for(model, input_shape)
    if zeros is not None:
        with suppress(Exception), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return _count(model, zeros, torch.zeros(1, *input_shape, dtype=dtype), shapes)
        shapes.clear()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state = {name: torch.empty_like(tensor, device="meta", requires_grad=False) for name, tensor in tensors}
    return _count(model, state, torch.empty(1, *input_shape, dtype=dtype, device="meta"), shapes)


def _count(model: nn.Module, state: dict[str, Tensor], inputs: Tensor, shapes: dict[str, Shape]) -> int:
    """Return the FLOPs of a forward pass with parameters and buffers replaced; records output shapes in `shapes`."""
    from torch.utils.flop_counter import FlopCounterMode

    spare_flop_counter()
    mapping = dict.fromkeys(_READ_VALUES, _refuse) | {_FUSED_RNN: _flops_of_rnn}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with _evaluating(model), _recording(model, shapes), _counted_attention(), torch.no_grad(), counter:
        torch.func.functional_call(model, state, (inputs,))
    return int(counter.get_total_flops())


def _refuse(*args: object, **kwargs: object) -> int:
    """Refuse operations that fail on the meta device: with zero weights, the shapes could be wrong."""
    raise RuntimeError("the model reads values")


def _flops_of_rnn(
    inputs: Shape, input_weights: Shape, recurrent_weights: Shape, *args: object, **kwargs: object
) -> int:
    """Two for each weight, time step and sample; inputs (T, N, D)."""
    return 2 * inputs[0] * inputs[1] * (prod(input_weights) + prod(recurrent_weights))


@contextmanager
def _counted_attention() -> Iterator[None]:
    """Compute attention as matrix products: torch's counter has no formula for fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _recording(model: nn.Module, shapes: dict[str, Shape]) -> Iterator[None]:
    names = {module: name for name, module in model.named_modules()}

    def record(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, tuple):
            output = output[0]
        if isinstance(output, Tensor):
            shapes[names[module]] = tuple(output.shape[1:])

    hooks = [module.register_forward_hook(record) for module in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _scaled(count: int) -> str:
    for limit, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} "
