"""One device: every verb, plainly."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.parallelism.named_state import load_named_state, named_state
from trainer.parallelism.strategy import Forward, Loss, Part


class Single:
    """One process, one device; what all other strategies are compared with."""

    devices: int | str = 1
    max_restarts, timeout = 0, 0.0
    rank, world_size = 0, 1
    data_rank, data_size = 0, 1
    is_synchronous = True

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def plan(self, available: int | None, machines: int) -> None:
        pass

    def validate(self, config: Mapping[str, Any], model: nn.Module) -> None:
        pass

    def notices(self, model: nn.Module) -> list[str]:
        return []

    def connect(self, device: torch.device) -> None:
        pass

    def apply(self, model: nn.Module) -> nn.Module:
        return model

    def wrap_optimizer(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        return optimizer

    def share(self, count: int) -> slice:
        return slice(0, count)

    def backward(self, forward: Forward, loss: Loss, part: Part, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = forward(part.images)
        loss_sum = loss(outputs, part.targets)
        loss_sum.backward(weight)
        return loss_sum.detach(), outputs.detach(), part.targets

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def stepped(self, model: nn.Module, step: int) -> None:
        pass

    def evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        return value

    def agree(self, flag: bool) -> bool:
        return flag

    def broadcast(self, value: Any) -> Any:
        return value

    def from_main(self, make: Callable[[], Any]) -> Any:
        return make()

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
        return norm

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        return model.state_dict()

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        model.load_state_dict(state)

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        return named_state(model, optimizer, whole=lambda name, value: value)

    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        load_named_state(model, optimizer, state, local=lambda name, value: value)

    def local_state(self, model: nn.Module, optimizer: Optimizer) -> Any:
        return None

    def load_local_state(self, model: nn.Module, optimizer: Optimizer, state: Any) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}

    def histograms(self) -> dict[str, Tensor]:
        return {}

    def close(self) -> None:
        pass
