"""Layers split over the ranks of a group: plain parameters, local arithmetic, explicit communication."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.base.capabilities import num_heads_of
from trainer.parallelism.exchange import Enter, Gather, Group, Leave
from trainer.parallelism.global_dropout import global_dropout, is_random

# axis along which a weight is split: its outputs, or its inputs
_WEIGHT_AXIS = {"column": 0, "gather": 0, "cross": 0, "group": 0, "row": 1}
_FIELDS = {"Linear": ("inputs", "outputs"), "Conv2d": ("channels", "filters")}


Layer = nn.Linear | nn.Conv2d


class Member(NamedTuple):
    """A tensor-parallel group, this process's rank in it, and its size."""

    group: Group
    rank: int
    size: int


def check_split(plan: Mapping[str, str], model: nn.Module, size: int, asked: str) -> None:
    """Raise ValueError if `size` ranks cannot split a layer of the plan evenly; `asked` is the key for the message."""
    for name, kind in plan.items():
        found = model.get_submodule(name)
        if kind == "split":
            continue
        module = _layer(found)
        count, noun = module.weight.size(_WEIGHT_AXIS[kind]), _FIELDS[type(module).__name__][1 - _WEIGHT_AXIS[kind]]
        if kind == "group":
            assert isinstance(module, nn.Conv2d)
            count, noun = module.groups, "groups"
        heads = num_heads_of(model.get_submodule(name.rpartition(".")[0]))
        if heads is not None and kind != "row":
            count, noun = heads, "heads"
        if count % size:
            raise ValueError(f"{asked}: must divide the {count} {noun} of {name}")


def _layer(module: nn.Module) -> Layer:
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return module


def split_layers(model: nn.Module, plan: Mapping[str, str], member: Member) -> dict[str, int]:
    """Replace every module in the plan by this rank's shard, in place.

    Returns the axis along which each parameter and buffer is split, by name; all others are whole.
    """
    axes: dict[str, int] = {}
    for name, kind in plan.items():
        module = model.get_submodule(name)
        cut = _cut_channels(module, member) if kind == "split" else _cut_layer(module, kind, member)
        axes |= {f"{name}.{key}": axis for key, axis in cut.items()}
    return axes


def channel_axis(x: Tensor) -> int:
    """The axis of features: 1 of images (N, C, H, W) and vectors (N, D), the last one of tokens (N, T, D)."""
    return 1 if x.dim() == 4 else x.dim() - 1


def part_of(x: Tensor, axis: int, member: Member) -> Tensor:
    """Return a copy of this rank's equal part along an axis, in the memory format of `x`."""
    size = x.size(axis) // member.size
    is_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    return x.detach().narrow(axis, member.rank * size, size).clone(memory_format=layout)


def _cut_layer(module: nn.Module, kind: str, member: Member) -> dict[str, int]:
    axes = {"weight": _WEIGHT_AXIS[kind]}
    if kind != "row" and module.bias is not None:
        axes["bias"] = 0
    _cut(module, axes, member)
    module.forward = _forward(_layer(module), kind, member)
    return axes


def _cut_channels(module: nn.Module, member: Member) -> dict[str, int]:
    """Split per-channel parameters and statistics with their channels; draw random numbers for all channels."""
    if is_random(module):
        global_dropout(module, lambda n: _range(n // member.size, member.rank), lambda n: n * member.size, channel_axis)
        return {}
    assert isinstance(module, _NormBase)  # statistics of each channel
    axes = {name: 0 for name, value in (*module.named_parameters(), *module.named_buffers()) if value.dim()}
    _cut(module, axes, member)
    module.num_features //= member.size
    return axes


def _cut(module: nn.Module, axes: Mapping[str, int], member: Member) -> None:
    for name, axis in axes.items():
        whole = getattr(module, name)
        part = part_of(whole, axis, member)
        if isinstance(whole, nn.Parameter):
            part = nn.Parameter(part, whole.requires_grad)
        setattr(module, name, part)


def _range(size: int, rank: int) -> slice:
    return slice(rank * size, (rank + 1) * size)


def _forward(module: Layer, kind: str, member: Member) -> Callable[[Tensor], Tensor]:
    """Return the module's forward on this rank's shard, with the communication that its kind needs."""
    group = member.group

    def gather(x: Tensor, is_partial: bool) -> Tensor:
        axis = channel_axis(x)
        whole: Tensor = Gather.apply(x, group, axis, [x.size(axis)] * member.size, is_partial)
        return whole

    def row(x: Tensor) -> Tensor:
        y: Tensor = Leave.apply(_apply(module, x, None, member), group)
        if module.bias is None:
            return y
        bias: Tensor = module.bias.to(y.dtype)
        return y + (bias if isinstance(module, nn.Linear) else bias.view(1, -1, 1, 1))

    def part(x: Tensor) -> Tensor:
        return _apply(module, x, module.bias, member)

    forwards: dict[str, Callable[[Tensor], Tensor]] = {
        "column": lambda x: part(Enter.apply(x, group)),
        "gather": lambda x: gather(part(Enter.apply(x, group)), is_partial=False),
        "cross": lambda x: part(gather(x, is_partial=True)),
        "group": part,
        "row": row,
    }
    return forwards[kind]


def _apply(module: Layer, x: Tensor, bias: Tensor | None, member: Member) -> Tensor:
    if isinstance(module, nn.Linear):
        return F.linear(x, module.weight, bias)
    groups = module.groups // member.size if module.groups > 1 else 1
    return F.conv2d(x, module.weight, bias, module.stride, module.padding, module.dilation, groups)
