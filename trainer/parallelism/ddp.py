"""Data parallelism: every rank has the whole model and a shard of the batch; gradients are summed."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from trainer.base.checks import check_one_of
from trainer.parallelism import cost
from trainer.parallelism.differentiable import Replicated, SumOfShards
from trainer.parallelism.exchange import Group
from trainer.parallelism.ranks import Ranks
from trainer.parallelism.sizes import Cost, Step

_SYNC_BUFFERS = (  # renamed in torch 2.15
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


class DataParallel(Ranks):
    """Each rank computes the gradient of its shard of the batch; their sum is the gradient of the batch:

    g = sum over ranks of sum over the shard of dl/dw / N, with N samples in all shards. For equal shards this is the
    average of the lectures, and it is exact for unequal ones. Source: CUHK ELEG 5491, "Data Parallelism".

    `batch_norm` synchronized: statistics over all ranks, as on one device; plain: over each shard, which is faster
    but not the same model. `unused_parameters`: support parameters that a step does not use. Raises ValueError for
    other values.
    """

    replicates = True
    preload: tuple[str, ...] = ("torch._dynamo",)  # by DistributedDataParallel
    differentiates = True

    def __init__(
        self,
        devices: int | str = "auto",
        batch_norm: Literal["synchronized", "plain"] = "synchronized",
        unused_parameters: bool = False,
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(devices, max_restarts, timeout)
        check_one_of("batch_norm", batch_norm, ("synchronized", "plain"))
        self.batch_norm, self.unused_parameters = batch_norm, unused_parameters
        self.uses_all_parameters = not unused_parameters
        self._wrapped: DistributedDataParallel | None = None

    def is_exact(self, model: nn.Module) -> bool:
        return self.batch_norm != "plain" or not any(isinstance(module, _BatchNorm) for module in model.modules())

    @property
    def norm_shards(self) -> int:  # type: ignore[override]
        return 1 if self.is_synchronized else self.data_size

    def notices(self, model: nn.Module) -> list[str]:
        if not self.is_exact(model):
            return ["batch norm is plain: it uses the statistics of each shard; the curve is not that of one device"]
        return []

    @property
    def is_synchronized(self) -> bool:
        """Whether batch norm uses statistics over all ranks."""
        return self.batch_norm == "synchronized"

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        return cost.data_parallel(step, self.world_size, self.is_synchronized)

    def apply(self, model: nn.Module) -> nn.Module:
        self.use_global_batch(model, synchronize=self.is_synchronized)
        buffers: dict[str, Any] = {_SYNC_BUFFERS: False}  # buffers are equal already, or differ on purpose
        self._wrapped = DistributedDataParallel(
            model,
            process_group=self.data_group,
            **buffers,
            gradient_as_bucket_view=True,
            find_unused_parameters=self.unused_parameters,
        )
        self._wrapped.register_comm_hook(self.data_group, sum_gradients)
        return self._wrapped

    def accumulating(self) -> AbstractContextManager[None]:
        assert self._wrapped is not None
        return self._wrapped.no_sync()

    def replicated(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        joined: Tensor = Replicated.apply(torch.cat([w.reshape(-1) for w in weights]), self.data_group)
        parts = joined.split([w.numel() for w in weights])
        return [part.view(w.shape).to(w.dtype) for part, w in zip(parts, weights, strict=True)]

    def sum_of_shards(self, value: Tensor) -> Tensor:
        total: Tensor = SumOfShards.apply(value, self.data_group)
        return total

    def close(self) -> None:
        self._wrapped = None
        super().close()


def sum_gradients(group: Group, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Communication hook that sums; torch's own averages. (torch requires the parameter name `bucket`.)"""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
