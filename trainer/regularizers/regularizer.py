"""The contract of regularizers, and what ours share: coefficients by patterns over parameter names."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor

from trainer.base.checks import check_number
from trainer.base.stateful import State


class Regularizer(ABC):
    """Penalty R(w) on the weights, added to the mean data loss."""

    element_wise: ClassVar[bool] = True
    """Whether R is a sum over elements, so that a shard of a weight can be treated alone."""
    decays: ClassVar[bool] = False
    """Whether it contains the squared norm, so that an optimizer's own weight decay would count twice."""
    decoupled: bool = False
    """Whether `shrink` is called before a step, instead of `add_gradient`."""

    @abstractmethod
    def coefficients_of(self, names: Collection[str], excluded: Collection[str]) -> dict[str, float]:
        """Return the coefficient of each parameter that is penalized; `excluded` are those in `no_weight_decay`."""

    @abstractmethod
    def attach(self, weights: Mapping[str, Tensor], excluded: Collection[str]) -> None:
        """Receive the trainable parameters by name, initialized, and the names of those in `no_weight_decay`."""

    @abstractmethod
    def terms(self) -> list[tuple[Tensor, Tensor]]:
        """Return each penalized weight and its summand of R, a differentiable scalar; for a shard, the shard's."""

    @abstractmethod
    def add_gradient(self, scale: Tensor | None) -> None:
        """Add the gradient of R, times `scale` if given, to `.grad` in place."""

    def value(self) -> Tensor:
        """Return R, differentiable."""
        terms = [term for _, term in self.terms()]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def shrink(self, lr: Callable[[Tensor], float], applied: Tensor | None) -> None:
        """Make the decoupled step of each weight that has a gradient.

        `lr` gives the learning rate of a weight, `applied` is 0 if the step is skipped.
        """
        raise AssertionError(f"{type(self).__name__} has no decoupled form")

    def stepped(self) -> None:
        """Called after the weights have been stepped."""

    def unmatched(self, names: Collection[str]) -> list[str]:
        """Return its patterns that match none of these parameter names."""
        return []

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


class Weighted(Regularizer):
    """Base of penalties with a coefficient for each weight."""

    def __init__(self, coefficient: float, coefficients: Mapping[str, float]) -> None:
        self.coefficient = check_number("coefficient", coefficient, 0)
        self.coefficients = {
            pattern: check_number(f"coefficients.{pattern}", value, 0) for pattern, value in coefficients.items()
        }
        self.weights: dict[float, list[Tensor]] = {}  # by their coefficient

    def coefficients_of(self, names: Collection[str], excluded: Collection[str]) -> dict[str, float]:
        found = {name: self._coefficient(name, name in excluded) for name in names}
        return {name: coefficient for name, coefficient in found.items() if coefficient}

    def _coefficient(self, name: str, is_excluded: bool) -> float:
        for pattern, value in self.coefficients.items():
            if fnmatchcase(name, pattern):
                return value
        return 0.0 if is_excluded else self.coefficient

    def attach(self, weights: Mapping[str, Tensor], excluded: Collection[str]) -> None:
        self.weights = {}
        for name, coefficient in self.coefficients_of(weights, excluded).items():
            self.weights.setdefault(coefficient, []).append(weights[name])

    def unmatched(self, names: Collection[str]) -> list[str]:
        return [pattern for pattern in self.coefficients if not any(fnmatchcase(name, pattern) for name in names)]
