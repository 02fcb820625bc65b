"""Batch norm over the batch of all ranks, with the statistics of one device and the whole batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.parallelism.exchange import Group


class _Context(FunctionCtx):
    group: Group


class SumOverRanks(torch.autograd.Function):
    """y = sum over ranks of x; dL/dx = sum over ranks of dL/dy, as every rank's loss depends on every rank's x."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SyncBatchNorm(_BatchNorm):
    """Batch norm with mean and variance over the samples of all ranks, from sums and counts:

    mean = sum x / N, var = sum (x - mean)^2 / N with N = samples * spatial positions over the ranks of `group`; the
    running variance divides by N - 1. Shards may differ in size or be empty. `torch.nn.SyncBatchNorm` does not
    support the CPU. Source: UVic PHYS 555, "Batch Normalization"; Ioffe & Szegedy 2015, algorithm 1.
    """

    group: Group = None

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, with channels second, as this class replaces all kinds of batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.track_running_stats:
            return super().forward(input)
        reduced = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        # at least float32 statistics, as in torch's kernels
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_tensor([x.numel() / x.size(1)])
        sums = SumOverRanks.apply(torch.cat([x.sum(reduced), count]), self.group)
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = x - mean.view(shape)
        variance = SumOverRanks.apply((centred * centred).sum(reduced), self.group) / total
        if self.training and self.running_mean is not None and self.running_var is not None:
            self._remember(mean.detach(), variance.detach() * (total / (total - 1).clamp(min=1)))
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        normalized: Tensor = y.to(input.dtype)
        return normalized

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        self.running_var.mul_(1 - momentum).add_(variance, alpha=momentum)


def synchronize_batch_norms(model: nn.Module, group: Group) -> None:
    """Replace every batch norm in place by one over `group` (None: all ranks), keeping names and parameters."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm | nn.SyncBatchNorm):
                setattr(module, name, _exchanged(child, group))


def _exchanged(norm: _BatchNorm, group: Group) -> nn.Module:
    on_cuda = next((t.is_cuda for t in (*norm.parameters(), *norm.buffers())), False)
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made: nn.SyncBatchNorm | SyncBatchNorm
    with torch.device("meta"):
        made = nn.SyncBatchNorm(*settings) if on_cuda else SyncBatchNorm(*settings)
    made._parameters, made._buffers = norm._parameters, norm._buffers
    if isinstance(made, SyncBatchNorm):
        made.group = group
    else:
        made.process_group = group
    return made.train(norm.training)
