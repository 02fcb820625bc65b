"""Dropout that does not depend on the world size: masks are drawn for the whole tensor, each rank uses its shard."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd


def global_dropout(
    model: nn.Module,
    shard: Callable[[int], slice],
    total: Callable[[int], int],
    axis_of: Callable[[Tensor], int] = lambda _: 0,
) -> None:
    """Make every dropout and stochastic-depth module of the model draw as on one device, in place.

    A rank with n elements along the axis `axis_of(activations)` has the range `shard(total(n))` of it. While the module
    runs, the activations are embedded in a tensor of the global shape, so that the same numbers are drawn. Functional
    dropout (`F.dropout`) is not changed: its masks depend on the world size.
    """
    for module in model.modules():
        if is_random(module):
            _wrap(module, shard, total, axis_of)


def is_random(module: nn.Module) -> bool:
    """Whether the module draws random numbers in training mode."""
    return isinstance(module, _DropoutNd) or type(module).__name__ == "StochasticDepth"


def memory_order(x: Tensor) -> tuple[int, ...]:
    """The axes from the outermost to the innermost in memory: torch draws masks in this order."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return (0, 2, 3, 1)
    return tuple(sorted(range(x.dim()), key=x.stride().__getitem__, reverse=True))


def arranged(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return `x` with its axes in this order in memory."""
    inverse = [order.index(axis) for axis in range(x.dim())]
    return x.permute(*order).contiguous().permute(inverse)


def _wrap(
    module: nn.Module, shard: Callable[[int], slice], total: Callable[[int], int], axis_of: Callable[[Tensor], int]
) -> None:
    draw: Callable[[Tensor], Tensor] = module.forward
    order: tuple[int, ...] | None = None

    def forward(x: Tensor) -> Tensor:
        nonlocal order
        if not module.training:
            return draw(x)
        dim = axis_of(x)
        size = total(x.size(dim))
        own = shard(size)
        if own.stop - own.start != x.size(dim):
            raise ValueError(
                f"{type(module).__name__} on a tensor of shape {tuple(x.shape)}: axis {dim} is not the one that is "
                f"sharded over ranks ({own.stop - own.start} on this one)"
            )
        if order is None or x.size(dim) > 1:  # strides do not tell the order of an axis of size 1
            order = memory_order(x)
        return draw(_embedded(x, dim, own, size, order)).narrow(dim, own.start, x.size(dim))

    module.forward = forward


def _embedded(x: Tensor, dim: int, own: slice, size: int, order: Sequence[int]) -> Tensor:
    """Return `x` at its position in a tensor of the global shape and of this order in memory, zero elsewhere."""
    before, after = list(x.shape), list(x.shape)
    before[dim], after[dim] = own.start, size - own.stop
    return arranged(torch.cat([x.new_zeros(before), x, x.new_zeros(after)], dim), order)
