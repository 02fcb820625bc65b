"""What second-order methods share: weights as one vector, Hessian products, and Armijo's backtracking."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_SHARE = 1e-4  # of the decrease that the slope promises (Nocedal & Wright 2006, section 3.1)
_FACTOR, _MOST_TRIALS = 0.5, 40


class Closure(Protocol):
    """The objective of a step, as the trainer passes it."""

    def __call__(self) -> Tensor:
        """Compute the gradient of the objective into `.grad`."""
        ...

    def objective(self) -> Tensor:
        """Return the objective, data loss plus penalty."""
        ...

    def loss(self, create_graph: bool = False) -> Tensor:
        """Return the objective; with `create_graph`, differentiable any number of times."""
        ...


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the elements of all tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def parts_of(vector: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the vector's elements in the shapes of the parameters."""
    parts = vector.split([p.numel() for p in params])
    return [part.view(p.shape) for part, p in zip(parts, params, strict=True)]


class Derivatives:
    """The objective's value, gradient and Hessian at the present weights, as vectors and a matrix over all weights."""

    def __init__(self, closure: Closure, params: Sequence[nn.Parameter]) -> None:
        self._params = params
        with torch.enable_grad():
            value = closure.loss(create_graph=True)
            gradients = torch.autograd.grad(value, params, create_graph=True, materialize_grads=True)
            self._gradient = flat(gradients)
        self.value, self.gradient = value.detach(), self._gradient.detach()

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian times a vector."""
        if not self._gradient.requires_grad:  # a linear objective
            return torch.zeros_like(vector)
        rows = torch.autograd.grad(self._gradient, self._params, vector, retain_graph=True, materialize_grads=True)
        return flat(rows)

    def hessian(self, rows_at_once: int = 64) -> Tensor:
        """Return the Hessian: several rows at a time, or one if an operation (such as an exchange between ranks) cannot
        be applied to several gradients at once."""
        size = len(self.gradient)
        if not self._gradient.requires_grad:
            return self.gradient.new_zeros(size, size)
        try:
            starts = range(0, size, rows_at_once)
            return torch.cat([self._rows(start, min(rows_at_once, size - start)) for start in starts])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return torch.stack([self.product(row) for row in torch.eye(size).to(self.gradient)])

    def _rows(self, start: int, count: int) -> Tensor:
        units = self.gradient.new_zeros(count, len(self.gradient))
        units.diagonal(start).fill_(1.0)
        rows = torch.autograd.grad(
            self._gradient, self._params, units, retain_graph=True, materialize_grads=True, is_grads_batched=True
        )
        return torch.cat([row.reshape(count, -1) for row in rows], 1)


@torch.no_grad()
def move(params: Sequence[Tensor], direction: Tensor, length: float) -> None:
    """Add `length` times the direction to the weights."""
    torch._foreach_add_(list(params), parts_of(direction, params), alpha=length)


@torch.no_grad()
def backtrack(
    params: Sequence[Tensor],
    direction: Tensor,
    *,
    value: Tensor,
    slope: Tensor,
    objective: Callable[[], Tensor],
    length: float = 1.0,
) -> float:
    """Move the weights along a direction by the first of length, length / 2, length / 4, ... that meets Armijo's
    condition J(w + t d) <= J(w) + 1e-4 t (g d). `value` is J(w) and `slope` g d, below 0.

    Returns t; 0 if there is none in 40 trials, which leaves the weights as they are.
    """
    start, promised = float(value), float(slope)
    before = [p.clone() for p in params]
    for _ in range(_MOST_TRIALS):
        move(params, direction, length)
        if float(objective()) <= start + _SHARE * length * promised:
            return length
        torch._foreach_copy_(list(params), before)
        length *= _FACTOR
    return 0.0
