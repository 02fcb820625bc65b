"""Layers, bytes and messages of a step, computed on the meta device, and a strategy's `Cost`."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.contracts import tensor_plan

ForwardHook = Callable[[nn.Module, tuple[object, ...], object], None]
"""What torch calls after a module, with its inputs and its output."""


class Sent(NamedTuple):
    """What one rank sends in a step: bytes, and the number of sequential messages."""

    bytes: float = 0.0
    messages: float = 0.0

    def plus(self, other: "Sent") -> "Sent":
        return Sent(self.bytes + other.bytes, self.messages + other.messages)

    def times(self, factor: float) -> "Sent":
        return Sent(factor * self.bytes, factor * self.messages)

    def seconds(self, bytes_per_second: float, latency: float) -> float:
        """Time on a link without overlap with computation; `latency` is in seconds per message."""
        return self.bytes / bytes_per_second + self.messages * latency


def all_reduce(size: float, ranks: int) -> Sent:
    """Cost of a ring all-reduce of `size` bytes."""
    return Sent(2 * (ranks - 1) / ranks * size, 2 * (ranks - 1))


def all_gather(size: float, ranks: int) -> Sent:
    """Cost of a ring all-gather of `size` bytes in total; a reduce-scatter costs the same."""
    return Sent((ranks - 1) / ranks * size, ranks - 1)


@dataclass(frozen=True)
class Layer:
    """One call of a module without children, in numbers of elements, not bytes.

    `inputs`, `outputs` and `work` are per sample. `weights` counts parameters with two or more axes, `others` the
    rest; `work` is the number of multiply-adds of the forward pass (of convolutions, linear and recurrent layers);
    `channels` those of a batch norm; `plan` is how a tensor-parallel group splits it ("": not at all);
    `needs_gradient`: whether a layer before it has parameters.
    """

    name: str
    weights: int
    others: int
    inputs: int
    outputs: int
    work: int
    channels: int = 0
    plan: str = ""
    needs_gradient: bool = True
    is_linear: bool = False

    @property
    def parameters(self) -> int:
        return self.weights + self.others

    @property
    def work_of_step(self) -> int:
        """Multiply-adds of the forward pass, the weights' gradient and, if it is needed, the inputs' gradient."""
        return self.work * (3 if self.needs_gradient else 2)


def layers_of(model: nn.Module, input_shape: Sequence[int], plan: Mapping[str, str] | None = None) -> tuple[Layer, ...]:
    """Return the layers in call order, for one image of `input_shape`.

    `plan` replaces the model's own `tensor_plan`. Parameters shared by two layers, and those not owned by any called
    layer, are counted once. Raises RuntimeError for a model that cannot run on the meta device.
    """
    words = tensor_plan(model) if plan is None else plan
    copied = copy.deepcopy(model).eval()
    calls: list[tuple[str, nn.Module, int, int]] = []

    def remember(name: str) -> ForwardHook:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            calls.append((name, module, _numbers(inputs), _numbers((output,))))

        return hook

    for name, module in copied.named_modules():
        if not list(module.children()):
            module.register_forward_hook(remember(name))
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*copied.named_parameters(), *copied.named_buffers())
    }
    with torch.no_grad():
        torch.func.functional_call(copied, state, (torch.empty(1, *input_shape, device="meta"),))
    counted: set[int] = set()
    layers: list[Layer] = []
    for name, module, inputs, outputs in calls:
        needs_gradient = bool(counted)
        sizes = _new_parameters(module.parameters(recurse=False), counted)
        channels = module.num_features if isinstance(module, _BatchNorm) else 0
        work = _work(module, inputs, outputs)
        layers.append(Layer(
            name, *sizes, inputs, outputs, work, channels, words.get(name, ""), needs_gradient,
            isinstance(module, nn.Linear),
        ))  # fmt: skip
    if any(rest := _new_parameters(copied.parameters(), counted)):
        layers.append(Layer("", *rest, 0, 0, 0))
    return tuple(layers)


def _numbers(values: Iterable[object]) -> int:
    return sum(value.numel() for value in values if isinstance(value, Tensor))


def _new_parameters(parameters: Iterable[nn.Parameter], counted: set[int]) -> tuple[int, int]:
    weights = others = 0
    for parameter in parameters:
        if id(parameter) not in counted:
            counted.add(id(parameter))
            if parameter.dim() > 1:
                weights += parameter.numel()
            else:
                others += parameter.numel()
    return weights, others


def _work(module: nn.Module, inputs: int, outputs: int) -> int:
    """Multiply-adds of a convolution or linear layer: one per output and input connected to it; of a recurrent layer:
    one per weight and time step."""
    if isinstance(module, nn.RNNBase):
        weights = (p for name, p in module.named_parameters(recurse=False) if name.startswith("weight_"))
        return inputs // module.input_size * sum(weight.numel() for weight in weights)
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 0
    return outputs * math.prod(module.weight.shape[1:])


@dataclass(frozen=True)
class Step:
    """A step of `batch_size` samples over all ranks, in micro-batches of `micro_batch` (None: all) samples.

    `value_bytes` is the size of a weight or gradient element, `activation_bytes` that of an activation element.
    """

    layers: tuple[Layer, ...]
    batch_size: int
    micro_batch: int | None = None
    value_bytes: int = 4
    activation_bytes: int = 4

    @property
    def parts(self) -> int:
        return 1 if self.micro_batch is None else -(-self.batch_size // self.micro_batch)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def work(self) -> int:
        return sum(layer.work for layer in self.layers)


@dataclass(frozen=True)
class Cost:
    """Cost of a step for the rank with the highest cost.

    `sent` is by kind of data. The next four are fractions of the memory of a single device. `speed_up` is relative
    to a single device with the same batch, with free communication and equally fast ranks. `collected` is how often the
    main rank holds all weights and optimizer state in the memory of its CPU while a checkpoint is written.
    """

    sent: dict[str, Sent] = field(default_factory=dict)
    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 1.0
    activations: float = 1.0
    speed_up: float = 1.0
    collected: float = 1.0

    @property
    def total(self) -> Sent:
        total = Sent()
        for sent in self.sent.values():
            total = total.plus(sent)
        return total
