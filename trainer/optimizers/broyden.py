"""Broyden's family of quasi-Newton methods: the inverse Hessian from differences of gradients."""

from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_number, check_that
from trainer.optimizers.second_order import Closure, backtrack, flat, parameters_of

_LEAST_CURVATURE = 1e-10  # p q / (|p| |q|) of a step that is used


class Broyden(Optimizer):
    """w <- w - t B g with the first t of 1, 1/2, 1/4, ... that meets Armijo's condition; then B gets the correction
    that makes it map the difference q of gradients to the step p (the secant condition, B q = p):

    B <- B + p p' / (p'q) - B q q' B / (q'B q) + xi (q'B q) v v',  v = p / (p'q) - B q / (q'B q).

    `xi` is 0 for DFP and 1 for BFGS. B is the identity at first; with `initial_scale=auto`, the first step is followed
    by a multiple of it, p'q / (q'q), before the correction. An update with p'q <= 1e-10 |p| |q| would make B
    indefinite, which Armijo's condition alone does not prevent: it is left out, counted (`num_skipped`) and logged.
    Both gradients are of one step's batch. CUHK ELEG 5491; Nocedal & Wright 2006, section 6.3 and equation 6.20. B
    needs n^2 numbers.

    Slide: in the form of BFGS, CUHK ELEG 5491 prints B q q' for B q p', which does not meet the secant condition.

    Raises ValueError: `xi` not in [0, 1], `initial_scale` neither auto nor above 0.
    """

    needs_closure = True
    element_wise = False
    rate = "fixed"
    line_search = True
    logged = ("num_skipped",)

    def __init__(self, params: ParamsT, xi: float = 1.0, initial_scale: float | Literal["auto"] = "auto") -> None:
        check_number("xi", xi, 0, 1)
        if isinstance(initial_scale, str):
            check_that(initial_scale == "auto", "initial_scale", initial_scale, "auto or a number above 0")
        else:
            check_number("initial_scale", initial_scale, 0, above=True)
        # the counts are in a group because checkpoints contain groups
        counts = {"updates": 0, "skipped": 0}
        super().__init__(params, {"lr": 1.0, "xi": xi, "initial_scale": initial_scale, **counts})

    @property
    def num_skipped(self) -> int:
        """Number of steps so far after which B was not updated."""
        return int(self.param_groups[0]["skipped"])

    def extra_bytes(self, num_weights: int, bytes_each: int) -> int:
        """Return the memory of B and of its correction."""
        return 3 * num_weights**2 * bytes_each

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        params, group = parameters_of(self), self.param_groups[0]
        loss = closure()
        gradient = _gradient(params)
        value = closure.objective()
        kept = self.state[params[0]]
        if "inverse_hessian" not in kept:
            scale = 1.0 if group["initial_scale"] == "auto" else group["initial_scale"]
            kept["inverse_hessian"] = scale * torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
        inverse = kept["inverse_hessian"]
        direction = -(inverse @ gradient)
        slope = gradient @ direction
        if slope >= 0:  # B has lost its definiteness to rounding
            inverse.copy_(torch.eye(len(gradient)))
            direction, slope = -gradient, -(gradient @ gradient)
        before = flat([p.detach() for p in params])
        length = backtrack(params, direction, value=value, slope=slope, objective=closure.objective, length=group["lr"])
        if length == 0:
            return loss
        closure()
        p, q = flat([p.detach() for p in params]) - before, _gradient(params) - gradient
        if not p @ q > _LEAST_CURVATURE * p.norm() * q.norm():
            group["skipped"] += 1
            return loss
        if group["initial_scale"] == "auto" and group["updates"] == 0:
            inverse.mul_(p @ q / (q @ q))
        inverse.copy_(corrected(inverse, p, q, group["xi"]))
        group["updates"] += 1
        return loss


class BFGS(Broyden):
    """Broyden's method with xi = 1 (Broyden, Fletcher, Goldfarb and Shanno 1970)."""

    def __init__(self, params: ParamsT, initial_scale: float | Literal["auto"] = "auto") -> None:
        super().__init__(params, 1.0, initial_scale)


def corrected(inverse: Tensor, p: Tensor, q: Tensor, xi: float) -> Tensor:
    """Return the symmetric matrix B with the correction C(xi) of `Broyden`, for which B q = p."""
    pq, bq = p @ q, inverse @ q
    qbq = q @ bq
    v = p / pq - bq / qbq
    result = inverse + torch.outer(p, p / pq) - torch.outer(bq, bq / qbq) + torch.outer(xi * qbq * v, v)
    return (result + result.T) / 2


def _gradient(params: list[torch.nn.Parameter]) -> Tensor:
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
