"""The verbs by which the loop speaks to a strategy; the loop knows nothing else about devices or ranks.

Every loss is a local sum divided by a global count and every reduction is a sum, so that all synchronous
strategies give the same curve as one device.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Forward = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Part(NamedTuple):
    """This rank's share of samples that are computed at once; `num_global` is their number over all ranks."""

    images: Tensor
    targets: Tensor
    num_global: int


class Strategy(Protocol):
    """What every form of parallelism answers."""

    devices: int | str
    max_restarts: int
    timeout: float
    rank: int
    world_size: int
    # which of how many shares of a batch this rank computes; ranks that split a model have the same one
    data_rank: int
    data_size: int
    is_synchronous: bool  # every rank takes the same step with the same gradient

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        ...

    def plan(self, available: int | None, machines: int) -> None:
        """Settle `devices` (`auto`: the `available` ones) and `world_size`, before any process is started.

        `available` is None on a CPU, where any number may be asked for. Raises ValueError for degrees that do
        not divide.
        """
        ...

    def validate(self, config: Mapping[str, Any], model: nn.Module) -> None:
        """Refuse a configuration that cannot be exact; `model` is on the meta device. Raises ValueError."""
        ...

    def notices(self, model: nn.Module) -> list[str]:
        """What the user should be told about a run that is not equal to one on a single device."""
        ...

    def connect(self, device: torch.device) -> None:
        """Take one's place among the ranks; the default process group is there."""
        ...

    def apply(self, model: nn.Module) -> nn.Module:
        """Prepare the model in place, names kept, and return the module to compute with (which may wrap it).

        The optimizer is built over the model's parameters after it.
        """
        ...

    def wrap_optimizer(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """The optimizer to step with; only asynchronous strategies put another one in its place."""
        ...

    def share(self, count: int) -> slice:
        """This rank's samples out of `count` that are computed at once; shares may be empty."""
        ...

    def backward(self, forward: Forward, loss: Loss, part: Part, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradient of `weight * loss(forward(images), targets)` to `.grad`, summed over the ranks unless
        inside `accumulating`.

        `loss` is a sum over samples; `weight` is 1 / (samples of the step over all ranks), times a loss scale.
        Returns the sum of the loss, the outputs and the targets to be counted on this rank.
        """
        ...

    def accumulating(self) -> AbstractContextManager[None]:
        """Wraps all but the last part of a step: nothing needs to be exchanged yet."""
        ...

    def stepped(self, model: nn.Module, step: int) -> None:
        """After optimizer step `step` (the first is 1)."""
        ...

    def evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Wraps an evaluation: inside, the model has the weights that a checkpoint would hold."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the shares of samples, each counted once; on every rank the same."""
        ...

    def agree(self, flag: bool) -> bool:
        """Whether any rank said so at the call before this one, without waiting for the device."""
        ...

    def broadcast(self, value: Any) -> Any:
        """The main rank's value, on every rank; plain containers and tensors."""
        ...

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the main rank, where alone it is called, on every rank; the others wait for it as
        long as it takes. Plain containers and tensors."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank; plain containers and tensors."""
        ...

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Global L2 norm of the gradients of the whole model, on every rank the same."""
        ...

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Full state under whole-model names, loadable under any other strategy; all ranks call it."""
        ...

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """The inverse."""
        ...

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """`state`: full tensors by the parameter's name; `groups`: settings by the group's name."""
        ...

    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """The inverse."""
        ...

    def local_state(self, model: nn.Module, optimizer: Optimizer) -> Any:
        """What else a rank needs to go on with the same bits under the same strategy and world size, or None."""
        ...

    def load_local_state(self, model: nn.Module, optimizer: Optimizer, state: Any) -> None:
        """The inverse; called after the other two."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers of its own since the last call, for a logged step."""
        ...

    def histograms(self) -> dict[str, Tensor]:
        """Values of its own since the last call, for TensorBoard."""
        ...

    def close(self) -> None:
        """Let go of groups and connections."""
        ...
