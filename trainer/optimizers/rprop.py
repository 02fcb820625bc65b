"""Resilient propagation, which uses only the signs of gradients (Riedmiller & Braun 1993)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch.optim import Optimizer
from torch.optim import Rprop as TorchRprop
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_choice, check_number, check_range, check_that
from trainer.optimizers.foreach import buffers, factor_of, with_gradients


def rprop(
    params: ParamsT,
    lr: float = 0.001,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    on_sign_change: Literal["step", "skip"] = "step",
) -> Optimizer:
    """Return `Rprop`, or torch's, which does not change a weight in the step after its gradient's sign has changed."""
    check_choice("on_sign_change", on_sign_change, ("step", "skip"))
    ours = Rprop(params, lr, etas, step_sizes)
    return ours if on_sign_change == "step" else TorchRprop(ours.param_groups, lr, etas, step_sizes)


class Rprop(Optimizer):
    """Each weight has a step size s, `lr` at first:

    s <- min(a s, s_max) if g and the gradient of the step before have the same sign, max(b s, s_min) if not, s if one
    of them is 0; then w <- w - s sign(g), with (b, a) = `etas` and (s_min, s_max) = `step_sizes`.

    CUHK ELEG 5491. Raises ValueError: `lr` not above 0, `etas` not in (0, 1) and above 1, `step_sizes` not above 0 or
    in the wrong order.
    """

    rate = "own"
    element_wise = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
    ) -> None:
        check_number("lr", lr, 0, above=True)
        fine = len(etas) == 2 and 0 < etas[0] < 1 < etas[1] < math.inf
        check_that(fine, "etas", etas, "two finite numbers, in (0, 1) and above 1")
        check_range("step_sizes", step_sizes, 0, above=True)
        super().__init__(params, {"lr": lr, "etas": tuple(etas), "step_sizes": tuple(step_sizes)})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (smaller, larger), (least, most) = group["etas"], group["step_sizes"]
            params, gradients = with_gradients(group)
            if not params:
                continue
            for parameter in params:
                state = self.state[parameter]
                if "step_size" not in state:
                    state["step_size"] = torch.full_like(parameter, group["lr"])
            before, sizes = buffers(self, params, "sign"), buffers(self, params, "step_size")
            signs = torch._foreach_sign(gradients)
            # 1, 0 or -1 becomes `larger`, 1 or `smaller`
            factors = torch._foreach_mul(before, signs)
            torch._foreach_mul_(factors, factor_of(factors, 2 * larger))
            torch._foreach_add_(factors, 1.0)
            torch._foreach_clamp_min_(factors, smaller)
            torch._foreach_clamp_max_(factors, larger)
            torch._foreach_mul_(sizes, factors)
            torch._foreach_clamp_min_(sizes, least)
            torch._foreach_clamp_max_(sizes, most)
            torch._foreach_addcmul_(params, sizes, signs, value=-1.0)
            torch._foreach_copy_(before, signs)
