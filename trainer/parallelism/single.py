"""One device: every verb, plainly."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Single:
    """One process, one device; what all other strategies are compared with."""

    rank, world_size, is_main = 0, 1, True

    def validate(self, config: Mapping[str, Any]) -> None:
        pass

    def apply(self, model: nn.Module) -> nn.Module:
        return model

    def slice(self, indices_B: Tensor) -> Tensor:
        return indices_B

    def backward(
        self, objective: Callable[[Tensor, Tensor], Tensor], images: Tensor, targets: Tensor, weight: Tensor
    ) -> Tensor:
        loss_sum = objective(images, targets)
        loss_sum.backward(weight)
        return loss_sum.detach()

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        return value

    def agree(self, flag: bool) -> bool:
        return flag

    def broadcast(self, value: Any) -> Any:
        return value

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
        return norm

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        return model.state_dict()

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        model.load_state_dict(state)

    def close(self) -> None:
        pass
