"""Sharpness-aware minimization (Foret et al. 2021)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_number
from trainer.optimizers.foreach import all_with_gradients, buffers, sgd_, with_gradients


class SAM(Optimizer):
    """SGD with momentum that takes the gradient at w + rho g / |g|, uphill, for the step from w; |g| is the L2 norm
    over all weights. Each step needs two gradients.

    `adaptive`: at w + rho w^2 g / |w g| instead, which scaling a layer does not change (Kwon et al. 2021).
    `weight_decay` is coupled. Raises ValueError: `lr` not above 0, `momentum` not in [0, 1), `rho` or `weight_decay`
    below 0.
    """

    needs_closure = True
    element_wise = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.02,
        rho: float = 0.05,
        adaptive: bool = False,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        check_number("lr", lr, 0, above=True)
        check_number("rho", rho, 0)
        check_number("momentum", momentum, 0, 1, below=True)
        check_number("weight_decay", weight_decay, 0)
        defaults = {"lr": lr, "rho": rho, "adaptive": adaptive, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        loss = closure()
        params, gradients = all_with_gradients(self)
        before = [p.clone() for p in params]
        torch._foreach_add_(params, self._ascent(params, gradients))
        closure()
        torch._foreach_copy_(params, before)
        for group in self.param_groups:
            params, gradients = with_gradients(group)
            if params:
                kept = buffers(self, params, "momentum_buffer")
                sgd_(params, gradients, kept, group["lr"], group["momentum"], weight_decay=group["weight_decay"])
        return loss

    def _ascent(self, params: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Return the way to the point uphill."""
        first = self.param_groups[0]
        scaled = torch._foreach_mul(gradients, params) if first["adaptive"] else gradients
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(scaled)))
        if first["adaptive"]:
            scaled = torch._foreach_mul(scaled, params)
        return list(torch._foreach_mul(scaled, first["rho"] / (norm + 1e-12)))
