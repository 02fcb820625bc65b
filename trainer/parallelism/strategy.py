"""The contract of a strategy: the verbs by which the loop speaks to it; it knows nothing else about devices or ranks.

Every loss is a local sum divided by a global count and every reduction is a sum, so that all synchronous
strategies give the same curve as one device.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.base.without_compiler import backward
from trainer.parallelism.named_state import load_named_state, named_state
from trainer.parallelism.sizes import Cost, Step

Forward = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Evaluated = tuple[Tensor, Tensor, Tensor]  # the sum of the loss, the outputs, and the targets


class PeerLost(RuntimeError):
    """Another process that this rank depends on is gone."""


class MicroBatch(NamedTuple):
    """This rank's shard of samples that are computed at once; `num_global` is their number over all ranks."""

    images: Tensor
    targets: Tensor
    num_global: int


Part = MicroBatch
"""The former name of `MicroBatch`."""


class Strategy(ABC):
    """What every form of parallelism answers. Verbs that are not abstract are optional."""

    devices: int | str = 1
    max_restarts: int = 0
    timeout: float = 0.0
    rank: int = 0
    world_size: int = 1
    # which of how many shards of a batch this rank computes; ranks that split a model have the same one
    data_rank: int = 0
    data_size: int = 1
    is_synchronous: bool = True
    """Whether all ranks make the same step together. If not, each knows its own losses only, and only the main rank
    knows the evaluations."""
    takes_closures: bool = True
    """Whether an optimizer may evaluate the objective in its step."""
    cuts_weights: bool = False
    """Whether a rank steps parts of weights, so that the optimizer must be elementwise."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    @property
    def steps_only(self) -> bool:
        """Whether this rank only makes steps, beside a main rank that does not wait for it and that alone logs,
        evaluates and saves. It calls `fetch` first, and ends when a verb raises PeerLost."""
        return False

    def is_exact(self, model: nn.Module) -> bool:
        """Whether the curve is that of one device, up to rounding; only such a run can be replayed on one."""
        return True

    def tolerates(self, rank: int) -> bool:
        """Whether the others go on when this rank is lost."""
        return False

    # --- before any process is started

    @abstractmethod
    def plan(self, available: int | None, machines: int) -> None:
        """Resolve `devices` (`auto`: the `available` ones) and `world_size`, before any process is started.

        `available` is None on a CPU, where any number may be asked for. Raises ValueError for degrees that do
        not divide.
        """

    def validate(self, config: Mapping[str, Any], model: nn.Module) -> None:
        """Refuse a configuration that cannot be exact; `model` is on the meta device. Raises ValueError."""

    def notices(self, model: nn.Module) -> list[str]:
        """What the user should be told about a run that is not equal to one on a single device."""
        return []

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        """What a step sends and a rank keeps, for `plan`; `model` is on the meta device. None: unknown."""
        return None

    # --- the ranks

    @abstractmethod
    def connect(self, device: torch.device) -> None:
        """Join the other ranks; the default process group exists from here on."""

    @abstractmethod
    def shard(self, count: int) -> slice:
        """This rank's samples out of `count` that are computed at once; shards may be empty."""

    @abstractmethod
    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the shards of samples, each counted once; on every rank the same."""

    @abstractmethod
    def agree(self, flag: bool) -> bool:
        """Whether any rank said so at the call before this one, without waiting for the device."""

    @abstractmethod
    def broadcast(self, value: Any) -> Any:
        """The main rank's value, on every rank; plain containers and tensors."""

    @abstractmethod
    def from_main(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the main rank, where alone it is called, on every rank; the others wait for it as
        long as it takes. Plain containers and tensors."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank; plain containers and tensors."""

    def close(self) -> None:
        """Let go of groups and connections."""

    # --- model and optimizer

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Prepare the model in place, names kept, and return the module to compute with (which may wrap it).

        The optimizer is built over the model's parameters after it.
        """

    def wrap_optimizer(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """The optimizer to step with; only asynchronous strategies put another one in its place."""
        return optimizer

    def fetch(self) -> int:
        """Take the current weights, and return how many steps the main rank has done; called only if `steps_only`.

        Raises PeerLost if the main rank has ended.
        """
        raise NotImplementedError(f"{type(self).__name__}: a strategy with `steps_only` must define `fetch`")

    @abstractmethod
    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        """Add the gradient of `weight * loss(forward(images), targets)` to `.grad`, summed over the ranks unless
        inside `accumulating`.

        `loss` is a sum over samples; `weight` is 1 / (samples of the step over all ranks), times a loss scale.
        Returns the sum of the loss, the outputs and the targets to be counted on this rank.
        """

    def accumulating(self) -> AbstractContextManager[None]:
        """Wraps all but the last micro-batch of a step: nothing needs to be exchanged yet."""
        return nullcontext()

    @abstractmethod
    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Global L2 norm of the gradients of the whole model, on every rank the same."""

    def stepped(self, model: nn.Module, step: int) -> None:
        """After optimizer step `step` (the first is 1)."""

    def evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Wraps an evaluation: inside, the model has the weights that a checkpoint would hold."""
        return nullcontext()

    # --- state

    @abstractmethod
    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Full state under whole-model names, loadable under any other strategy; all ranks call it."""

    @abstractmethod
    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """The inverse."""

    @abstractmethod
    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """`state`: full tensors by the parameter's name; `groups`: settings by the group's name."""

    @abstractmethod
    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """The inverse."""

    def local_state(self, model: nn.Module, optimizer: Optimizer) -> Any:
        """What else a rank needs to go on with the same bits under the same strategy and world size, or None."""
        return None

    def load_local_state(self, model: nn.Module, optimizer: Optimizer, state: Any) -> None:
        """The inverse; called after the other two."""

    # --- numbers

    def metrics(self) -> dict[str, float]:
        """Numbers of its own since the last call, for a logged step."""
        return {}

    def histograms(self) -> dict[str, Tensor]:
        """Values of its own since the last call, for TensorBoard."""
        return {}


class WholeModel(Strategy):
    """What strategies share whose ranks hold the model's parameters as plain tensors under their own names."""

    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        outputs = forward(batch.images)
        loss_sum = loss(outputs, batch.targets)
        backward(loss_sum, weight)
        return loss_sum.detach(), outputs.detach(), batch.targets

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


class Unreduced(WholeModel):
    """What a process shares with another that reduces nothing over ranks: it is alone, or does not wait for others."""

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
