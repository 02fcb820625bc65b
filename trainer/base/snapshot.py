"""Copies of state in this process's memory, to keep while training continues."""

from collections.abc import Mapping

import torch

from trainer.base.stateful import StateValue


class Copied(dict[str, StateValue]):
    """State whose tensors are copies on the CPU that nothing else refers to, so that a snapshot takes them as they are.

    Containers in it are plain ones.
    """


def num_bytes(value: StateValue) -> int:
    """Return the size of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping | list | tuple):
        return sum(num_bytes(item) for item in (value.values() if isinstance(value, Mapping) else value))
    return 0


def snapshot(value: StateValue) -> StateValue:
    """Copy nested containers; every tensor is copied to new memory on the CPU, unless it is such a copy (`Copied`)."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Copied):
        return dict(value)
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value
