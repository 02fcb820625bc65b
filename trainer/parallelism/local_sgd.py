"""Local SGD: every rank trains independently on its shard of the data; the weights are averaged periodically."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from trainer.base.checks import check_whole
from trainer.base.snapshot import Copied
from trainer.base.stateful import State
from trainer.base.torch_optimizers import lay_out_state
from trainer.parallelism import cost
from trainer.parallelism.global_dropout import global_dropout
from trainer.parallelism.named_state import named_state
from trainer.parallelism.ranks import Ranks
from trainer.parallelism.sizes import Cost, Step
from trainer.parallelism.strategy import Evaluated, Forward, Loss, MicroBatch


class LocalSGD(Ranks):
    """Rank r of R steps with the gradient of its shard; every `period` steps all weights are replaced by their mean:

    g_r = R / N * sum over the shard of dl/dw, with N samples in all shards; after steps period, 2 period, ...:
    w <- sum over ranks of w_r / R (also buffers of batch norm; momentum is not averaged). With period 1 and an
    update that is linear in the gradient, this equals a step on one device. Evaluations and checkpoints use the mean.
    Between averages, ranks exchange two numbers a step: the loss, and whether all gradients are finite.

    Raises ValueError for a `period` under 1. Sources: Stich 2018, algorithm 1; Lin et al. 2018.
    """

    weights_differ = True

    def __init__(
        self, devices: int | str = "auto", period: int = 8, max_restarts: int = 0, timeout: float = 300.0
    ) -> None:
        super().__init__(devices, max_restarts, timeout)
        check_whole("period", period, 1, must="at least 1 (steps between averages)")
        self.period = period
        self._model: nn.Module | None = None

    def is_exact(self, model: nn.Module) -> bool:
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
        return self.world_size == 1 or (self.period == 1 and not has_batch_norm)

    @property
    def norm_shards(self) -> int:  # type: ignore[override]
        return self.world_size

    def notices(self, model: nn.Module) -> list[str]:
        if self.is_exact(model):
            return []
        if self.period > 1:
            return [f"weights are averaged only every {self.period} steps: the curve is not that of one device"]
        return ["batch norm uses the statistics of each shard: the curve is not that of one device"]

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        return cost.local_sgd(step, self.world_size, self.period)

    def apply(self, model: nn.Module) -> nn.Module:
        self._model = model
        if self.world_size > 1:
            global_dropout(model, self.shard, total=lambda _: self.num_global)
        return model

    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        weight = weight * self.world_size
        if len(batch.targets):
            return super().backward(forward, loss, batch, weight)
        assert self._model is not None
        self._model.eval()  # zero gradients, and no update of batch-norm statistics
        seen = super().backward(forward, loss, batch, weight)
        self._model.train()
        return seen

    def stepped(self, model: nn.Module, step: int) -> None:
        if step % self.period == 0:
            self._average(model)

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        own = [tensor.clone() for tensor in _averaged(model)]
        self._average(model)
        try:
            yield
        finally:
            for tensor, value in zip(_averaged(model), own, strict=True):
                tensor.copy_(value)

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Return this rank's own norm, used for clipping; not finite on all ranks if it is not finite on one."""
        norm = super().grad_norm(gradients)
        return norm + self.sum(norm - norm)

    def state_dict(self, model: nn.Module) -> State:
        """Return the mean over ranks."""
        state = {name: self._kept(value) for name, value in model.state_dict().items()}
        return Copied(state) if self.is_main else {}

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> State:
        """Return the mean over ranks."""
        state = named_state(model, optimizer, whole=lambda name, value: self._kept(value), copies=self.is_main)
        return state if self.is_main else {}

    def local_state(self, model: nn.Module, optimizer: Optimizer) -> State:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def load_local_state(self, model: nn.Module, optimizer: Optimizer, state: State) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        lay_out_state(optimizer)

    def close(self) -> None:
        self._model = None
        super().close()

    @torch.no_grad()
    def _average(self, model: nn.Module) -> None:
        """Replace weights and buffers by their mean, with one all-reduce per dtype."""
        tensors = _averaged(model)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            mean = self._mean(torch.cat([tensor.flatten() for tensor in alike]))
            for tensor, value in zip(alike, mean.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(value.view(tensor.shape))

    def _kept(self, value: Tensor) -> Tensor:
        """Return a copy of the mean over ranks on the CPU of the main rank, and the value itself on others."""
        mean = self._mean(value)
        return mean.detach().to("cpu", copy=mean is value) if self.is_main else value

    def _mean(self, value: Tensor) -> Tensor:
        """Return the mean over ranks; integer counters, which are the same on all ranks, are returned unchanged."""
        if not value.is_floating_point():
            return value
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.div_(self.world_size)


def _averaged(model: nn.Module) -> list[Tensor]:
    """Tensors that are averaged: weights, and floating-point buffers."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
