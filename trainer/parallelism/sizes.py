"""What a step computes and sends, worked out on the meta device: layers, bytes, and a strategy's `Cost`."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.contracts import tensor_plan


class Sent(NamedTuple):
    """What one rank sends in a step: bytes, and messages that wait for one another."""

    bytes: float = 0.0
    messages: float = 0.0

    def plus(self, other: "Sent") -> "Sent":
        return Sent(self.bytes + other.bytes, self.messages + other.messages)

    def times(self, factor: float) -> "Sent":
        return Sent(factor * self.bytes, factor * self.messages)

    def seconds(self, bytes_per_second: float, latency: float) -> float:
        """Time on a link, nothing of it hidden behind computing; `latency` is seconds a message."""
        return self.bytes / bytes_per_second + self.messages * latency


def all_reduce(size: float, ranks: int) -> Sent:
    """A sum of `size` bytes that every rank gets."""
    return Sent(2 * (ranks - 1) / ranks * size, 2 * (ranks - 1))


def all_gather(size: float, ranks: int) -> Sent:
    """`size` bytes in all, of which every rank has a shard before; backwards it is a reduce-scatter."""
    return Sent((ranks - 1) / ranks * size, ranks - 1)


@dataclass(frozen=True)
class Layer:
    """One call of a module without children. Numbers, not bytes; `inputs`, `outputs` and `work` are a sample's.

    `weights` are its parameters with two or more axes, `others` the rest; `work` its multiply-adds forward (of
    convolutions and linear layers); `channels` those of a batch norm; `plan` how a tensor-parallel group shares
    it ("" : each has it whole). `needs_gradient`: whether anything before it learns.
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


def layers_of(model: nn.Module, input_shape: Sequence[int], plan: Mapping[str, str] | None = None) -> tuple[Layer, ...]:
    """The layers in the order in which they are called, for one image of `input_shape`.

    `plan` takes the place of the model's own `tensor_plan`. Parameters that two layers share are counted once,
    and so are those that no call of a child shows. Raises RuntimeError for a model that cannot run on the meta
    device.
    """
    words = tensor_plan(model) if plan is None else plan
    copied = copy.deepcopy(model).eval()
    calls: list[tuple[str, nn.Module, int, int]] = []

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
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
        layers.append(Layer(
            name, *sizes, inputs, outputs, _work(module, outputs), channels, words.get(name, ""), needs_gradient,
            isinstance(module, nn.Linear),
        ))  # fmt: skip
    if any(rest := _new_parameters(copied.parameters(), counted)):
        layers.append(Layer("", *rest, 0, 0, 0))
    return tuple(layers)


def _numbers(values: Iterable[Any]) -> int:
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


def _work(module: nn.Module, outputs: int) -> int:
    """Every output of a convolution or linear layer takes as many multiply-adds as it has inputs."""
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 0
    return outputs * math.prod(module.weight.shape[1:])


@dataclass(frozen=True)
class Step:
    """What a step computes: `batch_size` samples over all ranks, `micro_batch` (None: all) at a time.

    `value_bytes` are those of a weight or gradient, `activation_bytes` those of an activation.
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
    """Of the rank that has most of it. `sent` by what it is; the next four are fractions of what a single device
    keeps; `speed_up` is over a single device with the same batch, links being free and all ranks equally fast.
    """

    sent: dict[str, Sent] = field(default_factory=dict)
    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 1.0
    activations: float = 1.0
    speed_up: float = 1.0

    @property
    def total(self) -> Sent:
        total = Sent()
        for sent in self.sent.values():
            total = total.plus(sent)
        return total
