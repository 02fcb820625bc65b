"""Dropout that does not depend on the world size: drawn for the whole tensor, of which a rank keeps its shard."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd


def global_dropout(model: nn.Module, shard: Callable[[int], slice], total: Callable[[int], int], dim: int = 0) -> None:
    """Let every dropout (and stochastic depth) module draw as on one device, in place.

    A rank has `shard(total(n))` of axis `dim`, of which there are n on this rank. Its activations stand in a
    tensor of the global shape while the module works on it, so that the same numbers are drawn. Dropout that
    a foreign model calls as a function is left as it is: its masks depend on the world size.
    """
    for module in model.modules():
        if is_random(module):
            _wrap(module, shard, total, dim)


def is_random(module: nn.Module) -> bool:
    """Whether the module draws numbers while it trains."""
    return isinstance(module, _DropoutNd) or type(module).__name__ == "StochasticDepth"


def _wrap(module: nn.Module, shard: Callable[[int], slice], total: Callable[[int], int], dim: int) -> None:
    draw: Any = module.forward

    def forward(x: Tensor) -> Tensor:
        if not module.training:
            unchanged: Tensor = draw(x)
            return unchanged
        size = total(x.size(dim))
        mine = shard(size)
        if mine.stop - mine.start != x.size(dim):
            raise ValueError(
                f"{type(module).__name__} on a tensor of shape {tuple(x.shape)}: axis {dim} is not the one that is "
                f"shared by the ranks ({mine.stop - mine.start} on this one)"
            )
        kept: Tensor = draw(_embedded(x, dim, mine, size)).narrow(dim, mine.start, x.size(dim))
        return kept

    module.forward = forward


def _embedded(x: Tensor, dim: int, mine: slice, size: int) -> Tensor:
    """`x` at its place in a tensor of the global shape, zeros around it."""
    before, after = list(x.shape), list(x.shape)
    before[dim], after[dim] = mine.start, size - mine.stop
    whole = torch.cat([x.new_zeros(before), x, x.new_zeros(after)], dim)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        whole = whole.contiguous(memory_format=torch.channels_last)
    return whole
