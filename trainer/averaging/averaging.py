"""The contract of averages of the weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.base.stateful import State


class Averages(Optimizer):
    """Holds an average beside each parameter, as state that strategies gather and divide like that of an optimizer."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__([{"name": "all", "params": list(parameters)}], {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        raise AssertionError("holds averages; it is not an optimizer to step with")

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter and its average, of a shard that of the shard; empty before the first."""
        return [(parameter, kept["average"]) for parameter, kept in self.state.items() if kept]


class Averaging(ABC):
    """An average of the weights.

    `averages` holds it; the trainer stores it in checkpoints under the names of the parameters.
    """

    batch_norm_samples: int = 0
    """Number of training samples from which the statistics of batch norm are estimated for the averaged weights; 0:
    those of the trained model are used."""
    needs_cycles: bool = False
    """Whether it can only be used with a schedule of cycles, of which one ends within the run."""

    def attach(self, parameters: Iterable[Tensor]) -> None:
        """Receive the parameters that the optimizer steps; of a sharded model, this rank's shards."""
        self.averages = Averages(parameters)
        self.count = 0

    @abstractmethod
    def share(self, step: int, count: int) -> float | None:
        """Return the share of the weights after step `step` (the first is 1) in the average, which consists of `count`
        weights so far; None if these weights are not averaged. The share of the first weights is taken as 1."""

    @torch.no_grad()
    def stepped(self, moments: Iterable[int]) -> None:
        """Take the weights after a step into the average; `moments` are those that it has reached, the step's number
        unless the batch grows."""
        shares = (self.share(moment, self.count) for moment in moments)
        share = next((share for share in shares if share is not None), None)
        if share is None:
            return
        (group,) = self.averages.param_groups
        if self.count == 0:
            for parameter in group["params"]:
                self.averages.state[parameter]["average"] = parameter.detach().clone()
        else:
            weights = [parameter for parameter, kept in self.averages.state.items() if kept]
            held = [kept["average"] for kept in self.averages.state.values() if kept]
            torch._foreach_lerp_(held, weights, share)
        self.count += 1

    def notice(self, moments: int) -> str | None:
        """Return what the user of a run of so many moments should know, or None."""
        return None

    def keeps(self, moment: int) -> bool:
        """Whether the weights at this moment are kept in a file of their own; see `kept`."""
        return False

    def kept(self, step: int) -> None:
        """Receive that the weights after step `step` are on disk."""

    def evaluation_weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter with its average; nothing before the first."""
        return ((parameter.detach(), average) for parameter, average in self.averages.pairs())

    def state_dict(self) -> State:
        return {"count": self.count}

    def load_state_dict(self, state: State) -> None:
        self.count = state["count"]
