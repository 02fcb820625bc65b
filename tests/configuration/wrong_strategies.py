"""Strategies as users plug them in, each with one mistake, and what its message contains."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.parallelism.single import Single
from trainer.parallelism.strategy import MicroBatch

WRONG_STRATEGIES: list[tuple[str, Any, tuple[str, ...]]] = []


def wrong(*words: str) -> Callable[[type], type]:
    """Register a class, with words of its message."""

    def keep(item: type) -> type:
        WRONG_STRATEGIES.append(("parallelism", item, words))
        return item

    return keep


class GoodStrategy(Single):
    """Subclasses change one thing."""


@wrong("after plan(), devices is the str two; must be a whole number of at least 1")
class DevicesText(GoodStrategy):
    def plan(self, available: Any, machines: int) -> None:
        self.devices = "two"


@wrong("after plan(), world_size is the float 2; must be a whole number")
class WorldFloat(GoodStrategy):
    def plan(self, available: Any, machines: int) -> None:
        self.world_size = 4 / 2  # type: ignore[assignment]


@wrong("plan() fails with KeyError: 'devices' (", "wrong_strategies.py:")
class PlanRaises(GoodStrategy):
    def plan(self, available: Any, machines: int) -> None:
        {}["devices"]


@wrong("is_synchronous is the str yes; must be True or False")
class FlagText(GoodStrategy):
    is_synchronous = "yes"  # type: ignore[assignment]


@wrong("timeout is the float -5; must be a number of at least 0")
class NegativeTimeout(GoodStrategy):
    timeout = -5.0


@wrong("preload is the str torch; must be a tuple of names of modules")
class PreloadText(GoodStrategy):
    preload = "torch"  # type: ignore[assignment]


@wrong("divide() or validate() fails with AttributeError: ", "wrong_strategies.py:")
class ValidateRaises(GoodStrategy):
    def validate(self, config: Any, model: nn.Module) -> None:
        model.no_such_layer()  # type: ignore[operator]


@wrong("notices() returns the str slow; must return a list of texts")
class NoticesText(GoodStrategy):
    def notices(self, model: nn.Module) -> Any:
        return "slow"


@wrong("connect() fails with OSError: no network (", "wrong_strategies.py:")
class ConnectRaises(GoodStrategy):
    def connect(self, device: torch.device) -> None:
        raise OSError("no network")


@wrong("sum() returns a float32 tensor of shape (); must return the value that it was given, as there is one rank")
class SumOfAll(GoodStrategy):
    def sum(self, value: Tensor) -> Tensor:
        return value.sum()


@wrong("broadcast() returns None; must return the value that it was given")
class BroadcastNone(GoodStrategy):
    def broadcast(self, value: Any) -> Any:
        pass


@wrong("from_main() returns a function; must return the value")
class FromMainUncalled(GoodStrategy):
    def from_main(self, make: Any) -> Any:
        return make


@wrong("gather() returns a dict; must return a list with the value of each rank")
class GatherBare(GoodStrategy):
    def gather(self, value: Any) -> Any:
        return value


@wrong("shard() returns a range; must return slice(0, 4), as there is one rank")
class ShardRange(GoodStrategy):
    def shard(self, count: int) -> Any:
        return range(count)


@wrong("shard() returns a slice; must return slice(0, 4)")
class ShardHalf(GoodStrategy):
    def shard(self, count: int) -> slice:
        return slice(0, count // 2)


@wrong("agree() returns a bool tensor of shape (); must return True or False")
class AgreeTensor(GoodStrategy):
    def agree(self, flag: bool) -> Any:
        return torch.tensor(flag)


@wrong("apply() returns None; must return the module to call")
class ApplyNone(GoodStrategy):
    def apply(self, model: nn.Module) -> Any:
        model.train()


@wrong("wrap_optimizer() returns a list; must return an optimizer")
class WrapList(GoodStrategy):
    def wrap_optimizer(self, optimizer: Optimizer, model: nn.Module) -> Any:
        return [optimizer]


@wrong("backward() returns a float32 tensor of shape (); must return the sum of the loss, the outputs and the targets")
class BackwardLoss(GoodStrategy):
    def backward(self, forward: Any, loss: Any, batch: MicroBatch, weight: Tensor) -> Any:
        return super().backward(forward, loss, batch, weight)[0]


@wrong("after backward(), the gradient of 'weight' is 4 times what it should be; must be that of the weight times")
class WithoutWeight(GoodStrategy):
    def backward(self, forward: Any, loss: Any, batch: MicroBatch, weight: Tensor) -> Any:
        return super().backward(forward, loss, batch, torch.ones(()))


@wrong("after backward(), the gradient of 'weight' is missing")
class NoBackward(GoodStrategy):
    def backward(self, forward: Any, loss: Any, batch: MicroBatch, weight: Tensor) -> Any:
        outputs = forward(batch.images)
        return loss(outputs, batch.targets).detach(), outputs.detach(), batch.targets


@wrong("backward() returns the loss ", " instead of ")
class MeanLoss(GoodStrategy):
    def backward(self, forward: Any, loss: Any, batch: MicroBatch, weight: Tensor) -> Any:
        total, outputs, targets = super().backward(forward, loss, batch, weight)
        return total / len(targets), outputs, targets


@wrong("backward() fails with TypeError: ", "wrong_strategies.py:")
class BackwardRaises(GoodStrategy):
    def backward(self, forward: Any, loss: Any, batch: MicroBatch, weight: Tensor) -> Any:
        return loss(forward(batch.images))


@wrong("accumulating() returns None; must return a context manager")
class AccumulatingNone(GoodStrategy):
    def accumulating(self) -> Any:
        pass


@wrong("grad_norm() returns the float", "must return a scalar tensor")
class NormFloat(GoodStrategy):
    def grad_norm(self, gradients: Iterable[Tensor]) -> Any:
        return float(super().grad_norm(gradients))


@wrong("grad_norm() returns ", "must return the L2 norm, here ")
class NormSquared(GoodStrategy):
    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        return super().grad_norm(gradients) ** 2 + 1


@wrong("state_dict() returns the names module.weight, module.bias; must return those of the whole model, weight, bias")
class PrefixedState(GoodStrategy):
    def state_dict(self, model: nn.Module) -> Any:
        return {f"module.{name}": value for name, value in model.state_dict().items()}


@wrong("optimizer_state() returns a list; must return a dict of state and groups")
class StateList(GoodStrategy):
    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> Any:
        return list(optimizer.state.values())


@wrong("metrics() returns a list; must return a dict with names")
class MetricsList(GoodStrategy):
    def metrics(self) -> Any:
        return [random.random()]
