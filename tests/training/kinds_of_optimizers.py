"""User-defined optimizers; each takes another path through the step pipeline."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD, Optimizer


class SAM(Optimizer):
    """Sharpness-aware minimization with SGD (Foret et al. 2021): the gradient at w + rho g / |g| updates w."""

    needs_closure = True

    def __init__(self, params: Any, lr: float = 0.1, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure: Any) -> None:  # type: ignore[override]
        with torch.enable_grad():
            closure.gradient()
        weights = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in weights]).norm() + 1e-12
        ascent = [p.grad * (self.param_groups[0]["rho"] / norm) for p in weights]
        torch._foreach_add_(weights, ascent)
        with torch.enable_grad():
            closure.gradient()
        torch._foreach_sub_(weights, ascent)
        for p in weights:
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])


class Lookahead(Optimizer):
    """k steps forward, one step back (Zhang et al. 2019) with SGD and momentum; has its own state dict."""

    def __init__(self, params: Any, lr: float = 0.1, k: int = 3, alpha: float = 0.5) -> None:
        self.fast = SGD(params, lr=lr, momentum=0.9)
        self.k, self.alpha, self.count = k, alpha, 0
        super().__init__(self.fast.param_groups, {"lr": lr})
        self.fast.param_groups = self.param_groups
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        self.fast.step()
        self.count += 1
        if self.count % self.k == 0:
            for slow, p in zip(self.slow, (p for g in self.param_groups for p in g["params"]), strict=True):
                slow.lerp_(p, self.alpha)
                p.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {"fast": self.fast.state_dict(), "slow": [s.clone() for s in self.slow], "count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.fast.load_state_dict(state["fast"])
        self.param_groups = self.fast.param_groups
        for slow, saved in zip(self.slow, state["slow"], strict=True):
            slow.copy_(saved)
        self.count = state["count"]


class Hooked(SGD):
    """One of torch's optimizers with a step hook that applies weight decay."""

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.9, fused: bool | None = None) -> None:
        super().__init__(params, lr=lr, momentum=momentum, fused=fused)
        self.calls = 0
        self.register_step_pre_hook(self._decay)

    def _decay(self, *_: Any) -> None:
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(p.detach(), alpha=1e-3)
