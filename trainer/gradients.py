"""Between the gradient and the optimizer: clipping, loss scale, and steps that are not finite."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.parallelism.strategy import Strategy
from trainer.precision import LossScale


class GradientGuard:
    """Clips gradients and leaves out a step whose loss or gradient is not finite, without waiting.

    Global norm (Pascanu et al. 2013): g <- g * c / |g| where |g| >= c; by value: each element into [-c, c], before that
    norm is taken. Fused optimizers divide by `grad_scale` and skip on `found_inf` inside their own kernel, so that
    nothing is read from the device; other optimizers need the flag on the host at each step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        strategy: Strategy,
        clip_norm: float | None,
        clip_value: float | None,
        loss_scale: LossScale | None,
    ) -> None:
        self._optimizer: Any = optimizer
        self._strategy = strategy
        self._clip_norm, self._clip_value = clip_norm, clip_value
        self._loss_scale = loss_scale
        # a step's record_function and hooks cost 13 microseconds; nothing here registers hooks
        self._step = partial(getattr(type(optimizer).step, "__wrapped__", type(optimizer).step), optimizer)
        # the fused kernels take scale and flag in float32 only
        double = any(p.dtype is torch.float64 for group in optimizer.param_groups for p in group["params"])
        self._fused = bool(getattr(optimizer, "_step_supports_amp_scaling", False)) and not double
        self._started = False
        self.reset()

    def reset(self) -> None:
        """Forget the norms and flags of the steps since the last reading."""
        self._norm: Tensor | None = None
        self._flags: list[Tensor] = []

    def step(self, gradients: list[Tensor], loss_sum: Tensor) -> None:
        """Let the optimizer step with these gradients (changed in place), or leave the step out."""
        divisor, flag = self._look(gradients, loss_sum)
        self._apply(gradients, divisor, flag)
        if self._loss_scale is not None:
            self._loss_scale.update(flag)

    def clip(self, gradients: list[Tensor], loss_sum: Tensor) -> None:
        """Clip in place, for optimizers that evaluate a closure and step by themselves."""
        divisor, _ = self._look(gradients, loss_sum)
        _divide(gradients, divisor)

    def _look(self, gradients: list[Tensor], loss_sum: Tensor) -> tuple[Tensor | None, Tensor]:
        """What the gradients are to be divided by (None: nothing), and 1.0 where something is not finite."""
        divisor = None if self._loss_scale is None else self._loss_scale.scale
        norm = self._strategy.grad_norm(gradients)
        if divisor is not None:
            norm = norm / divisor
        total = norm + self._strategy.sum(loss_sum)
        flag = total.sub(total).ne_(0.0).float()  # inf - inf and nan - nan are nan; stays a float for the fused kernels
        self._norm = norm
        self._flags.append(flag)
        if self._clip_value is not None:
            _divide(gradients, divisor)
            divisor = None
            torch._foreach_clamp_min_(gradients, -self._clip_value)
            torch._foreach_clamp_max_(gradients, self._clip_value)
            norm = self._strategy.grad_norm(gradients) if self._clip_norm is not None else norm
        if self._clip_norm is not None:
            shrink = (norm / self._clip_norm).clamp_(min=1.0)
            divisor = shrink if divisor is None else divisor * shrink
        return divisor, flag

    def _apply(self, gradients: list[Tensor], divisor: Tensor | None, flag: Tensor) -> None:
        # fused SGD leaves its momentum uninitialised when the very first step is skipped inside the kernel
        if self._fused and self._started:
            self._optimizer.grad_scale, self._optimizer.found_inf = divisor, flag
            self._step()
            return
        _divide(gradients, divisor)
        if not flag.item():
            self._optimizer.grad_scale = self._optimizer.found_inf = None
            self._step()
            self._started = True

    def read(self) -> tuple[float | None, list[bool]]:
        """The last step's gradient norm before clipping, and for each step since the last reading whether it
        was left out; waits for the device and starts anew."""
        if self._norm is None:
            return None, []
        norm, *flags = torch.stack([self._norm, *self._flags]).tolist()
        self.reset()
        return norm, [bool(flag) for flag in flags]


def _divide(gradients: Iterable[Tensor], divisor: Tensor | None) -> None:
    if divisor is not None:
        torch._foreach_div_(list(gradients), divisor)
