"""Sharded data parallelism: each rank keeps a part of every weight, its gradient and its optimizer state."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from trainer.parallelism.named_state import load_named_state, named_state
from trainer.parallelism.ranks import Ranks


class FullySharded(Ranks):
    """As data parallelism, with 1 / ranks of the weights on each rank: a layer's are gathered just before it is
    computed and let go of after it; its gradient is summed and scattered, so that a rank steps its own part only.

    Same gradient as `ddp` (g = sum over all samples of dl/dw / N), two thirds of its memory's worst part spared:
    weights, gradients and optimizer state take 1 / ranks each, for half as much communication again. Batch norm is
    synchronized. Sources: A "Data Parallelism"; Rajbhandari et al. 2020 (ZeRO, stage 3); Zhao et al. 2023.
    """

    _sharded: Any = None

    def apply(self, model: nn.Module) -> nn.Module:
        self.share_model(model)
        device = next(model.parameters()).device.type
        mesh = init_device_mesh(device, (self.world_size,))
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # rows are cut: no channels last
        for unit in [*_units(model), model]:
            _shard(unit, mesh)
        self._sharded = model
        return model

    @contextmanager
    def accumulating(self) -> Iterator[None]:  # type: ignore[override]
        self._sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._sharded.set_requires_gradient_sync(True)

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:  # type: ignore[override]
        # what is gathered into lives on: made in inference mode, training could not use it any more
        with torch.inference_mode(False), torch.no_grad():
            yield

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """|g| of all shards: sqrt of the sum over ranks of the local squares."""
        return self.sum(super().grad_norm(gradients).square()).sqrt()

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        return {name: _whole(name, value) for name, value in model.state_dict().items()}

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        now = model.state_dict()
        model.load_state_dict({name: _like(value, now.get(name)) for name, value in state.items()})

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        self._sharded.reshard()
        return named_state(model, optimizer, whole=_whole)

    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        self._sharded.reshard()
        parameters = dict(model.named_parameters())
        load_named_state(model, optimizer, state, local=lambda name, value: _like(value, parameters[name]))

    def close(self) -> None:
        self._sharded = None
        super().close()
