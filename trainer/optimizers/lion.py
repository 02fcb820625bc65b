"""Lion: the sign of an interpolated momentum (Chen et al. 2023)."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_number
from trainer.optimizers.foreach import buffers, sgd_, with_gradients


class Lion(Optimizer):
    """w <- w - lr (sign(b1 m + (1 - b1) g) + weight_decay w), then m <- b2 m + (1 - b2) g, with m = 0 at first.

    Chen et al. 2023, algorithm 2, with (b1, b2) = `betas`. Every step has the length lr in each weight, so that good
    rates are 3 to 10 times smaller than AdamW's, and decays as much larger. Raises ValueError: `lr` not above 0, a beta
    not in [0, 1), `weight_decay` below 0.
    """

    element_wise = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0002,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
    ) -> None:
        check_number("lr", lr, 0, above=True)
        for beta in betas:
            check_number("betas", beta, 0, 1, below=True)
        check_number("weight_decay", weight_decay, 0)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params, gradients = with_gradients(group)
            if not params:
                continue
            lr, (beta1, beta2), weight_decay = group["lr"], group["betas"], group["weight_decay"]
            means = buffers(self, params, "exp_avg")
            direction = list(torch._foreach_lerp(means, gradients, 1 - beta1))
            torch._foreach_sign_(direction)
            sgd_(params, direction, [], lr, weight_decay=weight_decay)
            torch._foreach_lerp_(means, gradients, 1 - beta2)
