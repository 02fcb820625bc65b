"""Penalties that are a sum over the elements of the weights."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.base.checks import check_number
from trainer.regularizers.regularizer import Weighted


class _Norm(Weighted):
    """Base of penalties that are a sum over elements."""

    def __init__(self, coefficient: float, coefficients: Mapping[str, float], decoupled: bool) -> None:
        super().__init__(coefficient, coefficients)
        self.decoupled = decoupled

    def terms(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (weight, self.penalty(_local(weight), coefficient))
            for coefficient, weights in self.weights.items()
            for weight in weights
        ]

    @torch.no_grad()
    def add_gradient(self, scale: Tensor | None) -> None:
        for coefficient, weights in self.weights.items():
            present = [(_local(w), _local(w.grad)) for w in weights if w.grad is not None]
            if not present:
                continue
            values, gradients = map(list, zip(*present, strict=True))
            added = self.gradients(values, coefficient)
            if scale is not None:
                torch._foreach_mul_(added, scale)
            torch._foreach_add_(gradients, added)

    @torch.no_grad()
    def shrink(self, lr: Callable[[Tensor], float], applied: Tensor | None) -> None:
        for coefficient, weights in self.weights.items():
            for weight in weights:
                if weight.grad is None:  # frozen, or not used in this step
                    continue
                self.shrink_(_local(weight), coefficient, lr(weight) if applied is None else lr(weight) * applied)

    @abstractmethod
    def penalty(self, weight: Tensor, coefficient: float) -> Tensor:
        """R of a weight, differentiable."""

    @abstractmethod
    def gradients(self, weights: list[Tensor], coefficient: float) -> list[Tensor]:
        """The gradients of R, in new tensors."""

    @abstractmethod
    def shrink_(self, weight: Tensor, coefficient: float, lr: float | Tensor) -> None:
        """The decoupled step of a weight, in place."""


class L2(_Norm):
    """R = lambda/2 |w|^2, or lambda |w|^2 without `half`: weight decay (UIUC ECE 598; CUHK ELEG 5491).

    Gradient lambda w (2 lambda w). Decoupled: w <- (1 - lr lambda) w before the step, as in AdamW and SGDW (Loshchilov
    & Hutter 2019). Coefficients >= 0. Raises ValueError for others.
    """

    decays = True

    def __init__(
        self,
        coefficient: float = 1e-4,
        half: bool = True,
        coefficients: Mapping[str, float] | None = None,
        decoupled: bool = False,
    ) -> None:
        super().__init__(coefficient, coefficients or {}, decoupled)
        self.slope = 1.0 if half else 2.0

    def penalty(self, weight: Tensor, coefficient: float) -> Tensor:
        return weight.square().sum() * (self.slope * coefficient / 2)

    def gradients(self, weights: list[Tensor], coefficient: float) -> list[Tensor]:
        return list(torch._foreach_mul(weights, self.slope * coefficient))

    def shrink_(self, weight: Tensor, coefficient: float, lr: float | Tensor) -> None:
        weight.mul_(1 - lr * (self.slope * coefficient))


class L1(_Norm):
    """R = lambda |w|_1, or lambda/2 |w|_1 with `half` (CUHK ELEG 5491; UVic PHYS 555 and CS7150 halve it).

    Gradient lambda sign(w), 0 at w = 0. Decoupled: soft thresholding, w <- sign(w) max(|w| - lr lambda, 0) before the
    step, which sets weights to exactly 0 (proximal gradient; Parikh & Boyd 2014). Coefficients >= 0. Raises ValueError
    for others.
    """

    def __init__(
        self,
        coefficient: float = 1e-5,
        half: bool = False,
        coefficients: Mapping[str, float] | None = None,
        decoupled: bool = False,
    ) -> None:
        super().__init__(coefficient, coefficients or {}, decoupled)
        self.slope = 0.5 if half else 1.0

    def penalty(self, weight: Tensor, coefficient: float) -> Tensor:
        return weight.abs().sum() * (self.slope * coefficient)

    def gradients(self, weights: list[Tensor], coefficient: float) -> list[Tensor]:
        signs = list(torch._foreach_sign(weights))
        torch._foreach_mul_(signs, self.slope * coefficient)
        return signs

    def shrink_(self, weight: Tensor, coefficient: float, lr: float | Tensor) -> None:
        threshold = lr * (self.slope * coefficient)
        weight.copy_(weight.sign() * (weight.abs() - threshold).clamp_(min=0))


class ElasticNet(_Norm):
    """R = lambda (a |w|_1 + (1 - a)/2 |w|^2), `l1_ratio` a in [0, 1] (Zou & Hastie 2005).

    scikit-learn's parameters. Decoupled: soft thresholding, then shrinking. Coefficients >= 0. Raises ValueError for
    other values.
    """

    decays = True

    def __init__(
        self,
        coefficient: float = 1e-4,
        l1_ratio: float = 0.5,
        coefficients: Mapping[str, float] | None = None,
        decoupled: bool = False,
    ) -> None:
        super().__init__(coefficient, coefficients or {}, decoupled)
        ratio = check_number("l1_ratio", l1_ratio, 0, 1)
        self.parts: list[tuple[_Norm, float]] = [(L1(), ratio), (L2(), 1 - ratio)]

    def penalty(self, weight: Tensor, coefficient: float) -> Tensor:
        return torch.stack([part.penalty(weight, share * coefficient) for part, share in self.parts]).sum()

    def gradients(self, weights: list[Tensor], coefficient: float) -> list[Tensor]:
        (one, first), (two, second) = self.parts
        added = one.gradients(weights, first * coefficient)
        torch._foreach_add_(added, two.gradients(weights, second * coefficient))
        return added

    def shrink_(self, weight: Tensor, coefficient: float, lr: float | Tensor) -> None:
        for part, share in self.parts:
            part.shrink_(weight, share * coefficient, lr)


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, sharing memory; other tensors as they are."""
    part = tensor
    if type(tensor).__name__ == "DTensor":
        sharded: Any = tensor
        part = sharded.to_local()
    return part
