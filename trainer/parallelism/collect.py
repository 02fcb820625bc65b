"""Collects state on the CPU of the main rank, and distributes it from there, one tensor at a time.

Collected tensors of a device travel in the default process group, those of the CPU in the group `control`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.base.memory_layout import dense
from trainer.base.snapshot import Copied, snapshot
from trainer.base.stateful import State, StateValue
from trainer.parallelism.exchange import Group

Path = tuple[object, ...]
"""The keys and indices that lead to a value in nested containers."""


class _Slot(NamedTuple):
    """The layout of a tensor that follows."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str


def collect(value: StateValue, control: Group) -> list[StateValue]:
    """Return copies of the values of all ranks on the main rank, and nothing on the others."""
    if dist.get_rank() != 0:
        tensors: list[Tensor] = []
        dist.send_object_list([_without_tensors(value, tensors)], dst=0, group=control)
        for tensor in tensors:
            _send(_flat(tensor), control)
        return []
    values = [snapshot(value)]
    for rank in range(1, dist.get_world_size()):
        box: list[StateValue] = [None]
        dist.recv_object_list(box, src=rank, group=control)

        def fill(path: Path, slot: _Slot, rank: int = rank) -> Tensor:
            tensor = _empty(slot)
            if tensor.numel():
                _receive(_flat(tensor), rank, slot.device, control)
            return tensor

        values.append(_filled(box[0], fill))
    return [Copied(value) if isinstance(value, Mapping) else value for value in values]


def distribute(state: StateValue, keep: Callable[[Path, Tensor], StateValue], control: Group) -> StateValue:
    """Return the main rank's state, where other ranks have `keep(path, tensor)` in the place of every tensor."""
    if dist.get_rank() == 0:
        tensors: list[Tensor] = []
        dist.broadcast_object_list([_without_tensors(state, tensors)], src=0, group=control)
        for tensor in tensors:
            if tensor.numel():
                dist.broadcast(_flat(tensor), src=0, group=control)
        return state
    box: list[StateValue] = [None]
    dist.broadcast_object_list(box, src=0, group=control)

    def fill(path: Path, slot: _Slot) -> StateValue:
        tensor = _empty(slot)
        if tensor.numel():
            dist.broadcast(_flat(tensor), src=0, group=control)
        return keep(path, tensor)

    return _filled(box[0], fill)


def name_of(path: Path) -> str | None:
    """Return the parameter or buffer to which a tensor in a checkpoint belongs; None if to none."""
    if len(path) == 2 and path[0] == "model":
        return str(path[1])
    is_state = len(path) == 4 and path[0] in ("optimizer", "averaging") and path[1] == "state"
    return str(path[2]) if is_state else None


def put_together(part: Tensor, axis: int, sizes: Sequence[int], control: Group) -> Tensor:
    """Return a copy of the whole of a tensor on the main rank, and the part itself on others.

    Rank i has `sizes[i]` of it along `axis`; ranks from len(sizes) on have nothing that is needed.
    """
    rank = dist.get_rank()
    if rank != 0:
        if rank < len(sizes):
            _send(part.detach().contiguous(), control)
        return part
    shape = list(part.shape)
    shape[axis] = sum(sizes)
    whole = torch.empty(shape, dtype=part.dtype)
    for owner, place in enumerate(whole.split(list(sizes), axis)):
        if owner == 0:
            place.copy_(part.detach())
        elif place.numel():
            _receive(place, owner, part.device.type, control)
    return whole


def merged(states: Sequence[State]) -> State:
    """Return one mapping of the states of all ranks; empty on ranks that have collected nothing."""
    return Copied({name: value for state in states for name, value in state.items()})


def _without_tensors(value: StateValue, tensors: list[Tensor]) -> StateValue:
    """Replace every tensor by its layout, and append it to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(dense(value.detach()))
        return _Slot(tuple(value.shape), tensors[-1].stride(), value.dtype, value.device.type)
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_tensors(item, tensors) for item in value)
    return value


def _filled(value: StateValue, fill: Callable[[Path, _Slot], StateValue], path: Path = ()) -> StateValue:
    """Replace every layout by the tensor that `fill` returns, in the order of `_without_tensors`."""
    if isinstance(value, _Slot):
        return fill(path, value)
    if isinstance(value, Mapping):
        return {key: _filled(item, fill, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, fill, (*path, index)) for index, item in enumerate(value))
    return value


def _empty(slot: _Slot) -> Tensor:
    return torch.empty_strided(slot.shape, slot.stride, dtype=slot.dtype)


def _flat(tensor: Tensor) -> Tensor:
    """Return the elements of a dense tensor in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _send(tensor: Tensor, control: Group) -> None:
    if tensor.numel():
        dist.send(tensor, dst=0, group=control if tensor.device.type == "cpu" else None)


def _receive(place: Tensor, rank: int, device: str, control: Group) -> None:
    """Receive a tensor of `rank` that is on such a device into memory on the CPU."""
    if device == "cpu" and place.is_contiguous():
        dist.recv(place, src=rank, group=control)
    else:
        buffer = torch.empty(place.shape, dtype=place.dtype, device=device)
        dist.recv(buffer, src=rank, group=control if device == "cpu" else None)
        place.copy_(buffer)
