"""The contract of a strategy: the only interface through which training uses devices and ranks.

Every loss is a local sum divided by a global count and every reduction is a sum, so that all synchronous
strategies give the same curve as one device.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.base.config import Config
from trainer.base.stateful import State
from trainer.base.without_compiler import backward
from trainer.parallelism.named_state import load_named_state, named_state
from trainer.parallelism.sizes import Cost, Step

T = TypeVar("T")
Forward = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Evaluated = tuple[Tensor, Tensor, Tensor]  # the sum of the loss, the outputs, and the targets


class PeerLost(RuntimeError):
    """A process that this rank depends on has ended."""


class MicroBatch(NamedTuple):
    """This rank's shard of a micro-batch; `num_global` is the number of its samples over all ranks."""

    images: Tensor
    targets: Tensor
    num_global: int


Part = MicroBatch
"""The former name of `MicroBatch`."""


class Strategy(ABC):
    """Contract of every form of parallelism. Methods that are not abstract are optional."""

    devices: int | str = 1
    max_restarts: int = 0
    timeout: float = 0.0
    rank: int = 0
    world_size: int = 1
    # index of this rank's shard of a batch, and number of shards; ranks that split a model have the same shard
    data_rank: int = 0
    data_size: int = 1
    is_synchronous: bool = True
    """Whether all ranks take the same steps together. If not, each rank has only its own losses, and only the main
    rank has evaluation metrics."""
    takes_closures: bool = True
    """Whether an optimizer may evaluate the objective in its step."""
    cuts_weights: bool = False
    """Whether a rank steps shards of weights, so that the optimizer must be element-wise."""
    steps_all_weights: bool = True
    """Whether each rank steps all weights, so that the optimizer may join those of several layers."""
    replicates: bool = False
    """Whether every rank holds the whole model, with the same weights after every step."""
    uses_all_parameters: bool = False
    """Whether every step must use every parameter of the model."""
    weights_differ: bool = False
    """Whether a weight can have other values on other ranks between two steps."""
    norm_shards: int = 1
    """Number of shards of a micro-batch of which batch norm takes the statistics separately; 1: of all ranks' samples
    together."""
    differentiates: bool = False
    """Whether the loss over all ranks can be differentiated twice, for optimizers that use second derivatives."""
    preload: tuple[str, ...] = ()
    """Modules that its ranks import sooner or later, besides the strategy's own: the process from which they are forked
    imports them once."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    @property
    def steps_only(self) -> bool:
        """Whether this rank only trains, while the main rank, which does not wait for it, logs, evaluates and saves.

        Such a rank calls `fetch` first and ends when a method raises PeerLost.
        """
        return False

    def is_exact(self, model: nn.Module) -> bool:
        """Whether the curve equals that of one device up to rounding, so that the run can be replayed on one."""
        return True

    def tolerates(self, rank: int) -> bool:
        """Whether the run continues without this rank if it is lost."""
        return False

    # --- before any process is started

    @abstractmethod
    def plan(self, available: int | None, machines: int) -> None:
        """Resolve `devices` (`auto`: all `available` ones) and `world_size`, before any process is started.

        `available` is None on a CPU, where any number is allowed. Raises ValueError if the degrees of parallelism
        do not divide.
        """

    def divide(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """Decide how the model is divided among the ranks; called on every rank, after `plan` and before `validate`.

        `model` is on the meta device; `input_shape` is that of a sample. All ranks must decide the same.
        """

    def validate(self, config: Config, model: nn.Module) -> None:
        """Raise ValueError for a configuration that is not supported; `model` is on the meta device."""

    def notices(self, model: nn.Module) -> list[str]:
        """Return messages for the user if a run is not equal to one on a single device."""
        return []

    def differences(self, model: nn.Module, dtype: torch.dtype | None) -> list[str]:
        """Return `notices`, and one for a `dtype` other than float32, in which ranks round parts of sums."""
        if dtype is None or self.world_size == 1:
            return self.notices(model)
        name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
        rounded = f"{name}: each rank rounds its part of a sum; the losses are those of one device to about 1e-4"
        return [*self.notices(model), rounded]

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        """Return what a step sends and a rank stores, for `plan`, or None if unknown; `model` is on the meta device."""
        return None

    # --- the ranks

    @abstractmethod
    def connect(self, device: torch.device) -> None:
        """Initialize the default process group."""

    @abstractmethod
    def shard(self, count: int) -> slice:
        """Return this rank's shard of a micro-batch of `count` samples; it may be empty."""

    @abstractmethod
    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the shards of samples, each counted once; the same on every rank."""

    @abstractmethod
    def agree(self, flag: bool) -> bool:
        """Return whether any rank passed True at the previous call, without synchronizing with the device."""

    @abstractmethod
    def broadcast(self, value: T) -> T:
        """Return the main rank's value on every rank; plain containers and tensors."""

    @abstractmethod
    def from_main(self, make: Callable[[], T]) -> T:
        """Call `make` on the main rank only and return its result on every rank; the others wait without a timeout.

        The result consists of plain containers and tensors.
        """

    @abstractmethod
    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks on every rank; plain containers and tensors."""

    def collect(self, value: T) -> list[T]:
        """Return the values of all ranks on the main rank, for a checkpoint; the result on others is not used."""
        return self.gather(value)

    def close(self) -> None:
        """Destroy process groups and close connections."""

    # --- model and optimizer

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Prepare the model in place, keeping names, and return the module to call (which may wrap it).

        The optimizer is constructed afterwards, on the model's parameters.
        """

    def wrap_optimizer(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """Return the optimizer to step with; asynchronous strategies replace it."""
        return optimizer

    def computing(self, batch: MicroBatch) -> None:
        """Called before the loss of a micro-batch is computed without `backward`."""

    def replicated(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the weights for this rank's shard of the samples, such that their gradients are summed over ranks."""
        return weights

    def sum_of_shards(self, value: Tensor) -> Tensor:
        """Like `sum`, but differentiable, together with `replicated`; only if `differentiates`."""
        return self.sum(value)

    def fetch(self) -> int:
        """Fetch the current weights; returns the number of steps of the main rank. Called only if `steps_only`.

        Raises PeerLost if the main rank has ended.
        """
        raise NotImplementedError(f"{type(self).__name__}: a strategy with `steps_only` must define `fetch`")

    @abstractmethod
    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        """Add the gradient of `weight * loss(forward(images), targets)` to `.grad`, summed over ranks unless within
        `accumulating`.

        `loss` is a sum over samples; `weight` is 1 / (samples of the step over all ranks), times a loss scale.
        Returns the sum of the loss, and the outputs and targets that count on this rank.
        """

    def accumulating(self) -> AbstractContextManager[None]:
        """Context manager around all but the last micro-batch of a step, which need no communication."""
        return nullcontext()

    @abstractmethod
    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Return the global L2 norm of the whole model's gradients, the same on every rank."""

    def sum_over_weights(self, terms: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the sum over the whole model of a number for each weight, the same on every rank.

        `terms` are this rank's weights, each with its number; that of a shard is the shard's. A collective call.
        """
        numbers = [term for _, term in terms]
        return sum(torch.stack(numbers).tolist()) if numbers else 0.0  # waits for the device once

    def stepped(self, model: nn.Module, step: int) -> None:
        """Called after optimizer step `step` (the first is 1)."""

    def evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Context manager around an evaluation; within it, the model has the weights that a checkpoint would hold."""
        return nullcontext()

    # --- state

    @abstractmethod
    def state_dict(self, model: nn.Module) -> State:
        """Return the full state under whole-model names, loadable by any other strategy. A collective call.

        Only the main rank's result is used: ranks that hold shards send them there, a tensor at a time, and return {}.
        """

    @abstractmethod
    def load_state_dict(self, model: nn.Module, state: State) -> None:
        """Load the result of `state_dict`."""

    @abstractmethod
    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> State:
        """Return `state`, full tensors by parameter name, and `groups`, settings by group name. A collective call.

        Only the main rank's result is used, as in `state_dict`.
        """

    @abstractmethod
    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: State) -> None:
        """Load the result of `optimizer_state`."""

    def local_state(self, model: nn.Module, optimizer: Optimizer) -> State | None:
        """Return further state that this rank needs to continue bit-identically, under the same strategy and world
        size, or None."""
        return None

    def load_local_state(self, model: nn.Module, optimizer: Optimizer, state: State) -> None:
        """Load the result of `local_state`; called after the other two."""

    def distribute(self, state: State | None, model: nn.Module) -> State | None:
        """Return the main rank's checkpoint, or None, on every rank; a rank may get only those tensors, or parts of
        tensors, that it loads. A collective call."""
        return self.broadcast(state)

    # --- numbers

    def metrics(self) -> dict[str, float]:
        """Return the strategy's own metrics since the last call, for a logged step."""
        return {}

    def histograms(self) -> dict[str, Tensor]:
        """Return the strategy's own values since the last call, for TensorBoard histograms."""
        return {}


class WholeModel(Strategy):
    """Base of strategies whose ranks hold the model's parameters as plain tensors under their own names."""

    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        outputs = forward(batch.images)
        loss_sum = loss(outputs, batch.targets)
        backward(loss_sum, weight)
        return loss_sum.detach(), outputs.detach(), batch.targets

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
        return norm

    def state_dict(self, model: nn.Module) -> State:
        return model.state_dict()

    def load_state_dict(self, model: nn.Module, state: State) -> None:
        model.load_state_dict(state)

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> State:
        return named_state(model, optimizer, whole=lambda name, value: value)

    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: State) -> None:
        load_named_state(model, optimizer, state, local=lambda name, value: value)


class Unreduced(WholeModel):
    """Base of strategies without reductions over ranks: a single process, or asynchronous workers."""

    def sum(self, value: Tensor) -> Tensor:
        return value

    def agree(self, flag: bool) -> bool:
        return flag

    def broadcast(self, value: T) -> T:
        return value

    def from_main(self, make: Callable[[], T]) -> T:
        return make()

    def gather(self, value: T) -> list[T]:
        return [value]
