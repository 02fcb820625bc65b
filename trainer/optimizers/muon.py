"""Muon for matrices, and AdamW for all other parameters (Jordan et al. 2024)."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from trainer.base.checks import check_choice, check_number, check_that, check_whole
from trainer.contracts import ParameterGroup
from trainer.optimizers.foreach import buffers, factor_of, with_gradients

Adjustment = Literal["original", "match_rms_adamw"]


class Muon(Optimizer):
    """For a matrix W with the gradient G and the buffer B, 0 at first:

    B <- mu B + (1 - mu) G,  O = orthogonalize(mu B + (1 - mu) G) (B itself without `nesterov`),
    W <- W - lr weight_decay W - lr c O,  c = 0.2 sqrt(max(rows, columns)) (`match_rms_adamw`: the step has AdamW's
    usual size, so that both can share `lr`) or sqrt(max(1, rows / columns)) (`original`).

    `orthogonalize` sets all singular values to about 1 (0.7 to 1.2) by `ns_steps` Newton-Schulz iterations in bfloat16.
    All other parameters, of one dimension or of more than two, are updated as by AdamW with `betas` and `eps`. With
    `convolutions`, the filters of a convolution are matrices, too: (output channels, everything else).

    torch's `Muon` is the same rule, but refuses parameters that are not matrices. Raises ValueError: `lr` not above 0,
    `momentum` or a beta not in [0, 1), `weight_decay` below 0, `ns_steps` not from
    1 to 100, `ns_coefficients` not finite.
    """

    element_wise = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.002,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr: Adjustment = "match_rms_adamw",
        ns_steps: int = 5,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        convolutions: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        check_number("lr", lr, 0, above=True)
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            check_number(name, value, 0, 1, below=True)
        check_choice("adjust_lr", adjust_lr, ("original", "match_rms_adamw"))
        check_whole("ns_steps", ns_steps, 1, 100)
        finite = len(ns_coefficients) == 3 and all(map(math.isfinite, ns_coefficients))
        check_that(finite, "ns_coefficients", ns_coefficients, "three finite numbers")
        check_number("eps", eps, 0)
        check_number("weight_decay", weight_decay, 0)
        super().__init__(
            params,
            {
                "lr": lr, "momentum": momentum, "nesterov": nesterov, "adjust_lr": adjust_lr, "ns_steps": ns_steps,
                "ns_coefficients": tuple(ns_coefficients), "convolutions": convolutions, "betas": tuple(betas),
                "eps": eps, "weight_decay": weight_decay,
            },
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params, gradients = with_gradients(group)
            if not params:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(params, factor_of(params, 1 - group["lr"] * group["weight_decay"]))
            pairs = list(zip(params, gradients, strict=True))
            self._step_matrices(group, [pair for pair in pairs if is_matrix(pair[0], group["convolutions"])])
            self._step_others(group, [pair for pair in pairs if not is_matrix(pair[0], group["convolutions"])])

    def _step_matrices(self, group: ParameterGroup, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not pairs:
            return
        params, gradients = map(list, zip(*pairs, strict=True))
        kept = buffers(self, params, "momentum_buffer")
        torch._foreach_lerp_(kept, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, kept, group["momentum"]) if group["nesterov"] else kept
        for parameter, update in zip(params, updates, strict=True):
            matrix = orthogonalize(update.flatten(1), group["ns_coefficients"], group["ns_steps"])
            rows, columns = matrix.shape
            scale = (max(1, rows / columns)) ** 0.5
            if group["adjust_lr"] == "match_rms_adamw":
                scale = 0.2 * max(rows, columns) ** 0.5
            parameter.add_(matrix.view_as(parameter), alpha=-group["lr"] * scale)

    def _step_others(self, group: ParameterGroup, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not pairs:
            return
        params, gradients = map(list, zip(*pairs, strict=True))
        beta1, beta2 = group["betas"]
        means, squares = buffers(self, params, "exp_avg"), buffers(self, params, "exp_avg_sq")
        steps = [self.state[p].setdefault("step", torch.zeros(())) for p in params]
        torch._foreach_add_(steps, 1.0)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, factor_of(squares, beta2))
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        counts = [float(step) for step in steps]
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta2**count) ** 0.5 for count in counts])
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, means, roots, [-group["lr"] / (1 - beta1**count) for count in counts])


def is_matrix(parameter: Tensor, convolutions: bool) -> bool:
    return parameter.dim() == 2 or (convolutions and parameter.dim() > 2)


def orthogonalize(matrix: Tensor, coefficients: Sequence[float], num_steps: int) -> Tensor:
    """Return a matrix with the same singular vectors and singular values near 1, by X <- a X + (b A + c A A) X with
    A = X X^T, in bfloat16 (Jordan et al. 2024, as in torch's `Muon`)."""
    a, b, c = coefficients
    is_tall = matrix.size(0) > matrix.size(1)
    x = matrix.bfloat16()
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(num_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
