"""Batch norm over the batch of all ranks, with the statistics of one device and the whole batch."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.parallelism.exchange import Group, summed


class _Context(FunctionCtx):
    group: Group
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


def statistics_over_ranks(x: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance (divisor N) of each channel over the samples of all ranks, and N, float64.

    In one exchange, each rank sends its count n, its mean m and its sum of squares about it M. Together (Chan, Golub &
    LeVeque 1983):

        N = sum n,  mean = sum n m / N,  N var = sum M + sum n (m - mean)^2

    which does not cancel as sums of x and x^2 do. All ranks add in the same order, so that they get the same bits.
    """
    reduced, shape = _axes(x)
    channels, count = x.size(1), x.numel() // x.size(1)
    mean = x.sum(reduced) / max(1, count)
    squares = (x - mean.view(shape)).square_().sum(reduced)
    own = torch.cat([mean, squares, x.new_tensor([count])])
    ranks = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(ranks, own, group=group)
    means_RC, squares_RC, counts_R1 = torch.stack(ranks).double().split([channels, channels, 1], 1)
    total = counts_R1.sum()
    mean_C = (counts_R1 * means_RC).sum(0) / total
    variance_C = (squares_RC + counts_R1 * (means_RC - mean_C).square()).sum(0) / total
    return mean_C, variance_C, total


class NormalizeOverRanks(torch.autograd.Function):
    """y = w z + b with z = (x - mean) / sqrt(var + eps), for the statistics of the samples x of all ranks.

    As they depend on x,

        dL/dx = w / sqrt(var + eps) (dL/dy - sum dL/dy / N - z sum z dL/dy / N)

    with sums over the samples of all ranks, in one exchange. dL/dw and dL/db are those of this rank's samples.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        total: Tensor,
        eps: float,
        group: Group,
    ) -> Tensor:
        ctx.group = group
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), total)  # type: ignore[arg-type]  # may be None
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        reduced, shape = _axes(x)
        dy = gradient.to(mean.dtype)
        z = (x - mean.view(shape)).mul_(scale.view(shape))
        own = torch.stack([dy.sum(reduced), (dy * z).sum(reduced)])
        dx = None
        if ctx.needs_input_grad[0]:
            mean_dy, mean_zdy = summed(own, ctx.group).div_(total)
            dx = torch.sub(dy, z.mul_(mean_zdy.view(shape))).sub_(mean_dy.view(shape))
            dx = dx.mul_((scale if weight is None else scale * weight).view(shape)).to(x.dtype)
        bias_gradient, weight_gradient = own if weight is not None else (None, None)
        return dx, weight_gradient, bias_gradient, None, None, None, None, None


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """Return all axes but that of channels, and the shape of a value per channel."""
    return [axis for axis in range(x.dim()) if axis != 1], [1, -1] + [1] * (x.dim() - 2)


class SyncBatchNorm(_BatchNorm):
    """Batch norm with mean and variance over the samples of all ranks of `group`:

    mean = sum x / N, var = sum (x - mean)^2 / N with N = samples * spatial positions; the running variance divides by
    N - 1. One exchange in the forward pass and one in the backward pass, as in `torch.nn.SyncBatchNorm`, which does
    not support the CPU. Shards may differ in size or be empty. Source: UVic PHYS 555, "Batch Normalization"; Ioffe &
    Szegedy 2015, algorithm 1.
    """

    group: Group = None

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, with channels second, as this class replaces all kinds of batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.track_running_stats:
            return super().forward(input)
        # at least float32 statistics, as in torch's kernels
        dtype = torch.promote_types(input.dtype, torch.float32)
        with torch.no_grad():
            mean, variance, total = statistics_over_ranks(input.to(dtype), self.group)
            if self.training and self.running_mean is not None and self.running_var is not None:
                self._remember(mean.to(dtype), (variance * total / (total - 1).clamp(min=1)).to(dtype))
        normalized: Tensor = NormalizeOverRanks.apply(
            input, self.weight, self.bias, mean.to(dtype), variance.to(dtype), total.to(dtype), self.eps, self.group
        )
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
