"""What the ranks of a group exchange inside a forward pass, and its gradient in the backward pass.

Where every rank computes the same loss from the same (whole) tensor, its gradient is the same on every rank;
where each rank computes a part from a whole tensor, the parts of the gradient are added up.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Enter(torch.autograd.Function):
    """y = x, before a layer of which every rank has a part; dL/dx = sum over ranks of dL/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(gradient, ctx.group), None


class Leave(torch.autograd.Function):
    """y = sum over ranks of x, of which every rank goes on with the whole; dL/dx = dL/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Gather(torch.autograd.Function):
    """y = the ranks' x, `sizes` of axis `dim`, one after another; dL/dx = this rank's part of dL/dy.

    With `is_partial` each rank has a part of a sum for dL/dy, as where a split layer follows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, dim: int, sizes: Sequence[int], is_partial: bool) -> Tensor:
        ctx.group, ctx.dim, ctx.sizes, ctx.is_partial = group, dim, sizes, is_partial
        return gathered(x, group, dim, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        # gloo has no reduce-scatter for unequal parts: a sum of which each rank keeps its own
        whole = summed(gradient, ctx.group) if ctx.is_partial else gradient
        return own_part(whole, ctx.group, ctx.dim, ctx.sizes), None, None, None, None


class Keep(torch.autograd.Function):
    """y = this rank's part of x, `sizes` of axis `dim`; dL/dx = the ranks' dL/dy, one after another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, dim: int, sizes: Sequence[int]) -> Tensor:
        ctx.group, ctx.dim, ctx.sizes = group, dim, sizes
        return own_part(x, group, dim, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gathered(gradient, ctx.group, ctx.dim, ctx.sizes), None, None, None


def summed(x: Tensor, group: Any) -> Tensor:
    """The sum over the ranks, in a tensor of its own."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def gathered(x: Tensor, group: Any, dim: int, sizes: Sequence[int]) -> Tensor:
    """The ranks' tensors, `sizes` of axis `dim`, one after another; parts may differ and be empty."""
    longest = max(sizes)
    padding = list(x.shape)
    padding[dim] = longest - x.size(dim)
    padded = torch.cat([x, x.new_zeros(padding)], dim) if padding[dim] else x
    parts = [torch.empty(padded.shape, dtype=x.dtype, device=x.device) for _ in sizes]
    dist.all_gather(parts, padded.contiguous(), group=group)
    return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim)


def own_part(x: Tensor, group: Any, dim: int, sizes: Sequence[int]) -> Tensor:
    """This rank's `sizes` of axis `dim`."""
    rank = dist.get_rank(group)
    return x.narrow(dim, sum(sizes[:rank]), sizes[rank]).clone(memory_format=torch.contiguous_format)
