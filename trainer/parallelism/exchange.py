"""Differentiable collectives for the forward pass of a split model.

If every rank computes the same loss from the same (whole) tensor, its gradient is the same on every rank. If each
rank computes a part of the result from a whole tensor, the gradients of the ranks are summed.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

Group = dist.ProcessGroup | None
"""The ranks that exchange; None: all."""


def own_group(made: dist.ProcessGroup | int | None) -> dist.ProcessGroup:
    """A group that torch has made, of which this rank is a member."""
    assert isinstance(made, dist.ProcessGroup)
    return made


class _Context(FunctionCtx):
    """What a forward pass leaves for the backward pass."""

    group: Group
    dim: int
    sizes: Sequence[int]
    is_partial: bool


class Enter(torch.autograd.Function):
    """y = x, before a layer that is split over ranks; dL/dx = sum over ranks of dL/dy."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(gradient, ctx.group), None


class Leave(torch.autograd.Function):
    """y = sum over ranks of x, used as a whole on every rank; dL/dx = dL/dy."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: Group) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Gather(torch.autograd.Function):
    """y = concatenation of the ranks' x along axis `dim`, with `sizes`; dL/dx = this rank's part of dL/dy.

    With `is_partial`, dL/dy is first summed over ranks, as needed if a split layer follows.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: Group, dim: int, sizes: Sequence[int], is_partial: bool) -> Tensor:
        ctx.group, ctx.dim, ctx.sizes, ctx.is_partial = group, dim, sizes, is_partial
        return gathered(x, group, dim, sizes)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        # gloo has no reduce-scatter for unequal sizes: sum everything and keep this rank's part
        whole = summed(gradient, ctx.group) if ctx.is_partial else gradient
        return own_part(whole, ctx.group, ctx.dim, ctx.sizes), None, None, None, None


class Keep(torch.autograd.Function):
    """y = this rank's part of x along axis `dim`, with `sizes`; dL/dx = concatenation of the ranks' dL/dy."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: Group, dim: int, sizes: Sequence[int]) -> Tensor:
        ctx.group, ctx.dim, ctx.sizes = group, dim, sizes
        return own_part(x, group, dim, sizes)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gathered(gradient, ctx.group, ctx.dim, ctx.sizes), None, None, None


def summed(x: Tensor, group: Group) -> Tensor:
    """Return the sum over ranks in a new tensor."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def gathered(x: Tensor, group: Group, dim: int, sizes: Sequence[int]) -> Tensor:
    """Concatenate the ranks' tensors along axis `dim`; `sizes` may differ and be 0."""
    longest = max(sizes)
    padding = list(x.shape)
    padding[dim] = longest - x.size(dim)
    padded = torch.cat([x, x.new_zeros(padding)], dim) if padding[dim] else x
    parts = [torch.empty(padded.shape, dtype=x.dtype, device=x.device) for _ in sizes]
    dist.all_gather(parts, padded.contiguous(), group=group)
    return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim)


def own_part(x: Tensor, group: Group, dim: int, sizes: Sequence[int]) -> Tensor:
    """Return a copy of this rank's part of `x` along axis `dim`."""
    rank = dist.get_rank(group)
    return x.narrow(dim, sum(sizes[:rank]), sizes[rank]).clone(memory_format=torch.contiguous_format)
