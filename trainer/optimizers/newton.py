"""Newton's method with the exact Hessian, and on mini-batches with conjugate gradients."""

from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_choice, check_number, check_whole
from trainer.optimizers.second_order import Closure, Derivatives, backtrack, move, parameters_of

_LEAST_DAMPING, _FACTOR = 1e-6, 10.0


class Newton(Optimizer):
    """w <- w - t (H + damping I)^-1 g with the exact Hessian H of the objective over all weights.

    t is `step_size`, or with `line_search=backtracking` the first of step_size, step_size / 2, ... that meets Armijo's
    condition. `damping` is Levenberg's: it bounds the step where H is singular, as that of a softmax always is. While
    H + damping I is not positive definite, the damping of this step is multiplied by 10, so that the step always leads
    downhill. With step_size=1, damping=0 and no line search, one step solves a quadratic.

    CUHK ELEG 5491; CS7150 ("damped": step_size below 1). For models of a few thousand weights: H needs n^2 numbers.

    Slide: the first listing of CUHK ELEG 5491 lacks the sign of the step; without damping it has no answer where H is
    singular.

    Raises ValueError: `step_size` not in (0, 1], `damping` below 0.
    """

    needs_closure = True
    differentiates = True
    element_wise = False
    rate = "fixed"

    def __init__(
        self,
        params: ParamsT,
        step_size: float = 1.0,
        damping: float = 1e-2,
        line_search: Literal["none", "backtracking"] = "backtracking",
    ) -> None:
        check_number("step_size", step_size, 0, 1, above=True, must="above 0 and at most 1")
        check_number("damping", damping, 0)
        check_choice("line_search", line_search, ("none", "backtracking"))
        super().__init__(params, {"lr": step_size, "damping": damping})
        self.line_search = line_search == "backtracking"

    def extra_bytes(self, num_weights: int, bytes_each: int) -> int:
        """Return the memory of the Hessian, its damped copy and its factor."""
        return 3 * num_weights**2 * bytes_each

    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        params, group = parameters_of(self), self.param_groups[0]
        found = Derivatives(closure, params)
        if not torch.isfinite(found.gradient).all():
            return closure()  # tells the trainer, which sees values alone otherwise
        direction = -solve(found.hessian(), found.gradient, group["damping"])
        if not self.line_search:
            move(params, direction, group["lr"])
            return found.value
        slope = found.gradient @ direction
        backtrack(params, direction, value=found.value, slope=slope, objective=closure.objective, length=group["lr"])
        return found.value


def solve(hessian: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """Return (H + damping I)^-1 g, with the first of damping, 10 damping, ... that makes the matrix positive definite;
    a damping of 0 is followed by a millionth of the largest element of H.

    For a Hessian that is not finite, returns g.
    """
    if not torch.isfinite(hessian).all():
        return gradient
    hessian = (hessian + hessian.T) / 2
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return torch.cholesky_solve(gradient.unsqueeze(1), factor).squeeze(1)
        damping = max(_FACTOR * damping, _LEAST_DAMPING * float(hessian.abs().max()), _LEAST_DAMPING)


class StochasticNewton(Optimizer):
    """w <- w - lr d with (H + damping I) d = g solved by conjugate gradients, on a mini-batch; H is never formed.

    Conjugate gradients stop after `iterations`, when the residual is below `tolerance` |g|, or at negative curvature,
    p (H + damping I) p <= 0, which leaves the direction found so far (g / max(1, damping) if there is none). Each
    iteration needs one product of the Hessian with a vector, which takes as long as a gradient.

    CS7150, "Stochastic Version"; Martens 2010; Nocedal & Wright 2006, algorithm 7.1. Raises ValueError: `lr` not above
    0, `damping` or `tolerance` below 0, `iterations` not from 1 to
    10,000.
    """

    needs_closure = True
    differentiates = True
    element_wise = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2.0,
        damping: float = 10.0,
        iterations: int = 5,
        tolerance: float = 0.1,
    ) -> None:
        check_number("lr", lr, 0, above=True)
        check_number("damping", damping, 0)
        check_whole("iterations", iterations, 1, 10_000)
        check_number("tolerance", tolerance, 0)
        super().__init__(params, {"lr": lr, "damping": damping, "iterations": iterations, "tolerance": tolerance})

    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        params, group = parameters_of(self), self.param_groups[0]
        found = Derivatives(closure, params)
        if not torch.isfinite(found.gradient).all():
            return closure()  # tells the trainer, which sees values alone otherwise
        direction = conjugate_gradients(found, group["damping"], group["iterations"], group["tolerance"])
        move(params, direction, -group["lr"])
        return found.value


def conjugate_gradients(found: Derivatives, damping: float, iterations: int, tolerance: float) -> Tensor:
    """Return d with (H + damping I) d = g, as far as `StochasticNewton` says."""
    solution = torch.zeros_like(found.gradient)
    residual, way = found.gradient.clone(), found.gradient.clone()
    squared = residual @ residual
    enough = tolerance**2 * squared
    for iteration in range(iterations):
        product = found.product(way) + damping * way
        curvature = way @ product
        if curvature <= 0:
            return solution if iteration else found.gradient / max(1.0, damping)
        length = squared / curvature
        solution = solution + length * way
        residual = residual - length * product
        before, squared = squared, residual @ residual
        if squared <= enough:
            break
        way = residual + squared / before * way
    return solution
