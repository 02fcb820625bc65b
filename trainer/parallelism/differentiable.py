"""Sums over ranks that can be differentiated any number of times.

All ranks compute the same loss from the same weights, each from its shard of the batch. `SumOfShards` joins the shards'
sums to the loss, and `Replicated` gives the weights to the shards; the backward pass of one is the other.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from trainer.parallelism.exchange import Group


class _Context(FunctionCtx):
    group: Group


class SumOfShards(torch.autograd.Function):
    """y = sum over ranks of x, the same on every rank; dL/dx = dL/dy, as L is one value that all ranks compute."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        return Replicated.apply(gradient, ctx.group), None


class Replicated(torch.autograd.Function):
    """y = x, the same on every rank, for its shard; dL/dx = sum over ranks of dL/dy."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        return SumOfShards.apply(gradient, ctx.group), None
