"""Processing between gradient and optimizer: clipping, loss scaling, and steps that are not finite."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.base.precision import LossScale
from trainer.base.torch_optimizers import has_fused_kernel, is_unobserved, kernel_step, plain_step
from trainer.parallelism.strategy import Strategy


class GradientGuard:
    """Clips gradients, divides them by the loss scale and skips steps that are not finite.

    By global norm (Pascanu et al. 2013): g <- g * c / |g| if |g| >= c. By value: clamps each element to [-c, c],
    before the norm is computed. A step is not finite if the loss or the gradient norm of any of its evaluations is
    not finite.

    Fused optimizers skip such a step on the device (`found_inf`). For other optimizers the flag is read before the
    step only if `needs_flag`: under `on_nonfinite=skip`, with a loss scale, or if other workers would receive the
    gradient. Otherwise the flags stay on the device until `read`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        strategy: Strategy,
        clip_norm: float | None,
        clip_value: float | None,
        loss_scale: LossScale | None,
        *,
        needs_flag: bool = True,
    ) -> None:
        self._optimizer, self._strategy = optimizer, strategy
        self._clip_norm, self._clip_value = clip_norm, clip_value
        self._loss_scale = loss_scale
        self._needs_flag = needs_flag or loss_scale is not None
        self._fused = has_fused_kernel(optimizer)
        self._started = False
        self.reset()

    def reset(self) -> None:
        """Discard the norm and flags of all steps since the last `read`."""
        self._norm: Tensor | None = None
        self._flags: list[Tensor] = []
        self.begin()

    def restart(self) -> None:
        """Let the next step be like the first one, because the optimizer will begin to step further parameters."""
        self._started = False

    def begin(self) -> None:
        """Start or restart a step: discard the flag of its evaluations so far."""
        self._flag: Tensor | None = None
        self._divisor: Tensor | None = None

    @property
    def leaves_to_kernel(self) -> bool:
        """Whether the optimizer's kernel divides by the loss scale and the clipping factor in this step.

        True for torch's fused optimizers without step hooks: hooks expect the clipped gradient in `.grad`.
        """
        # fused SGD leaves its momentum uninitialized if its very first step is skipped inside the kernel
        return self._fused and self._started and is_unobserved(self._optimizer)

    def check(self, gradients: list[Tensor], loss_sum: Tensor, *, leave_to_kernel: bool = False) -> Tensor:
        """Check and clip the gradients of one evaluation, in place; returns the sum of the loss over all ranks.

        With `leave_to_kernel` the division by loss scale and clipping factor is left to `step`.
        """
        divisor = None if self._loss_scale is None else self._loss_scale.scale
        norm = self._strategy.grad_norm(gradients)
        if divisor is not None:
            norm = norm / divisor
        loss_total = self._strategy.sum(loss_sum)
        self._add_flag(norm + loss_total)
        self._norm = norm
        if self._clip_value is not None:
            _divide(gradients, divisor)
            divisor = None
            torch._foreach_clamp_min_(gradients, -self._clip_value)
            torch._foreach_clamp_max_(gradients, self._clip_value)
            norm = self._strategy.grad_norm(gradients) if self._clip_norm is not None else norm
        if self._clip_norm is not None:
            shrink = (norm / self._clip_norm).clamp_(min=1.0)
            divisor = shrink if divisor is None else divisor * shrink
        if leave_to_kernel:
            self._divisor = divisor
        else:
            _divide(gradients, divisor)
        return loss_total

    def check_loss(self, loss_sum: Tensor) -> Tensor:
        """Check an evaluation without a gradient; returns the sum of the loss over all ranks."""
        loss_total = self._strategy.sum(loss_sum)
        self._add_flag(loss_total.detach())
        return loss_total

    def _add_flag(self, total: Tensor) -> None:
        flag = total.sub(total).ne_(0.0).float()  # inf - inf and nan - nan are nan; fused kernels take a float
        self._flag = flag if self._flag is None else torch.maximum(self._flag, flag)

    def step(self) -> None:
        """Step a plain optimizer with the checked gradients, or skip the step."""
        flag = self._flag
        assert flag is not None
        if self._fused and self._started:
            if is_unobserved(self._optimizer):
                kernel_step(self._optimizer, self._divisor, flag)
            else:
                plain_step(self._optimizer, flag)
        elif not (self._fused or self._needs_flag) or not flag.item():
            plain_step(self._optimizer, None)
            self._started = True
        if self._loss_scale is not None:
            self._loss_scale.update(flag)
        self.end()

    def end(self) -> None:
        """End a step and keep its flag until `read`."""
        if self._flag is not None:
            self._flags.append(self._flag)

    @property
    def applied(self) -> Tensor:
        """1 if this step is finite so far, 0 if it is going to be skipped; on the device."""
        assert self._flag is not None
        return 1 - self._flag

    def is_nonfinite(self) -> bool:
        """Whether an evaluation of this step was not finite. Synchronizes with the device."""
        return self._flag is not None and bool(self._flag.item())

    def read(self) -> tuple[float | None, list[bool]]:
        """Return the last step's gradient norm before clipping and, for each step since the last `read`, whether it
        was not finite. Synchronizes with the device, then resets."""
        if not self._flags:
            return None, []
        norm = self._flags[-1] if self._norm is None else self._norm
        last, *flags = torch.stack([norm, *self._flags]).tolist()
        found = None if self._norm is None else last
        self.reset()
        return found, [bool(flag) for flag in flags]


def _divide(gradients: Iterable[Tensor], divisor: Tensor | None) -> None:
    if divisor is not None:
        torch._foreach_div_(list(gradients), divisor)
