"""The verbs by which the loop speaks to a strategy; the loop knows nothing else about devices or ranks.

Every loss is a local sum divided by a global count and every reduction is a sum, so that all synchronous
strategies give the same curve as one device.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

Objective = Callable[[Tensor, Tensor], Tensor]


class Strategy(Protocol):
    """What every form of parallelism answers."""

    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        ...

    def validate(self, config: Mapping[str, Any]) -> None:
        """Refuse a configuration that cannot be exact under this strategy. Raises ValueError."""
        ...

    def apply(self, model: nn.Module) -> nn.Module:
        """Prepare the model in place, names kept; the optimizer is built after it."""
        ...

    def slice(self, indices_B: Tensor) -> Tensor:
        """This rank's share of a global batch of sample indices."""
        ...

    def backward(self, objective: Objective, images: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Add the gradient of `weight * objective(images, targets)`; returns the local sum of the loss.

        `objective` returns a sum over samples; `weight` is 1 / (global number of samples), times a loss scale.
        """
        ...

    def accumulating(self) -> AbstractContextManager[None]:
        """Wraps all but the last part of a step: nothing needs to be exchanged yet."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks."""
        ...

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so: stops, signals and lack of memory are one decision."""
        ...

    def broadcast(self, value: Any) -> Any:
        """The main rank's value, on every rank."""
        ...

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Global L2 norm of the gradients of the whole model."""
        ...

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Full state under whole-model names, loadable under any other strategy."""
        ...

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """The inverse."""
        ...

    def close(self) -> None:
        """Leave the process group, if there is one."""
        ...
