"""Soft weight sharing."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.base.checks import check_number, check_whole
from trainer.base.stateful import State
from trainer.regularizers.regularizer import Weighted


class SoftSharing(Weighted):
    """R = lambda sum_i -log sum_j pi_j N(w_i; mu_j, sigma_j^2): soft weight sharing (Nowlan & Hinton 1992).

    Weights gather around the means of a learned mixture of `components` K in [1, 1000] Gaussians, with pi by softmax
    and sigma = `floor` + exp(rho). The mixture is stepped by Adam at the rate `lr` > 0, after each step of the
    weights, without decay; checkpoints contain it, the exported model does not. It starts with means spread evenly
    over the range of the initial weights and sigma equal to their distance. Source: UIUC ECE 598. Coefficients >= 0,
    floor > 0. Raises ValueError for other values.
    """

    element_wise = False

    def __init__(
        self,
        coefficient: float = 1e-5,
        components: int = 5,
        lr: float = 1e-3,
        floor: float = 1e-3,
        coefficients: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(coefficient, coefficients or {})
        self.components = check_whole("components", components, 1, 1000)
        self.lr = check_number("lr", lr, 0, above=True)
        self.floor = check_number("floor", floor, 0, above=True)
        self.mixture: dict[str, Tensor] = {}

    def attach(self, weights: Mapping[str, Tensor], excluded: Collection[str]) -> None:
        super().attach(weights, excluded)
        chosen = [weight.detach() for some in self.weights.values() for weight in some]
        if not chosen:
            return
        low, high = (float(f(torch.stack([f(w.float()) for w in chosen]))) for f in (torch.min, torch.max))
        distance = max((high - low) / self.components, self.floor)
        like: dict[str, Any] = {"dtype": torch.float32, "device": chosen[0].device}
        means_K = low + distance * (torch.arange(self.components, **like) + 0.5)
        rho_K = torch.full((self.components,), math.log(distance), **like)
        self.mixture = {"logits": torch.zeros(self.components, **like), "means": means_K, "rho": rho_K}
        self.optimizer = torch.optim.Adam([p.requires_grad_() for p in self.mixture.values()], lr=self.lr)

    def terms(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (weight, coefficient * self.negative_log_density(weight).sum())
            for coefficient, weights in self.weights.items()
            for weight in weights
        ]

    def negative_log_density(self, weight: Tensor) -> Tensor:
        """-log p(w) of each element."""
        sigma_K = self.floor + self.mixture["rho"].exp()
        log_pi_K = self.mixture["logits"].log_softmax(0)
        # one component at a time needs no tensor of K times the weights for the squares
        scaled = [(weight - mean) / sigma for mean, sigma in zip(self.mixture["means"], sigma_K, strict=True)]
        constants_K = log_pi_K - sigma_K.log() - math.log(2 * math.pi) / 2
        logs = [constant - z.square() / 2 for constant, z in zip(constants_K, scaled, strict=True)]
        return -torch.stack(logs).logsumexp(0)

    def add_gradient(self, scale: Tensor | None) -> None:
        weights = [weight for some in self.weights.values() for weight in some if weight.grad is not None]
        if not weights:
            return
        learned = list(self.mixture.values())
        with torch.enable_grad():
            gradients = list(torch.autograd.grad(self.value(), weights + learned))
        for parameter, gradient in zip(learned, gradients[len(weights) :], strict=True):
            parameter.grad = gradient
        added = gradients[: len(weights)]
        if scale is not None:
            torch._foreach_mul_(added, scale)
        torch._foreach_add_([w.grad for w in weights if w.grad is not None], added)

    def stepped(self) -> None:
        if not self.mixture:
            return
        learned = list(self.mixture.values())
        if any(parameter.grad is None for parameter in learned):  # the optimizer has differentiated `value` itself
            with torch.enable_grad():
                gradients = torch.autograd.grad(self.value(), learned)
            for parameter, gradient in zip(learned, gradients, strict=True):
                parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> State:
        if not self.mixture:
            return {}
        values = {name: value.detach() for name, value in self.mixture.items()}
        return {"mixture": values, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        if not self.mixture:
            return
        for name, value in self.mixture.items():
            value.copy_(state["mixture"][name])
        self.optimizer.load_state_dict(dict(state["optimizer"]))
