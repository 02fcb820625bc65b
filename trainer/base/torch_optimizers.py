"""What the trainer uses of torch's optimizers beyond their documented `step`.

What depends on how torch writes its optimizers stands here and in `without_compiler`; a test compares the bits with the
public way.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as _torch_optimizer

from trainer.base.without_compiler import step_arithmetic


def has_fused_kernel(optimizer: Optimizer) -> bool:
    """Whether this is one of torch's own optimizers whose kernel takes `grad_scale` and `found_inf`.

    The kernels take both in float32 only.
    """
    double = any(p.dtype is torch.float64 for group in optimizer.param_groups for p in group["params"])
    return _is_torchs(optimizer) and bool(getattr(optimizer, "_step_supports_amp_scaling", False)) and not double


def is_unobserved(optimizer: Optimizer) -> bool:
    """Whether nobody would notice that torch's wrapper of `step` is passed by: no step hook on the instance or on
    all optimizers, no `step` of the instance's own, no profiler."""
    kept = vars(optimizer)
    return not (
        kept["_optimizer_step_pre_hooks"]
        or kept["_optimizer_step_post_hooks"]
        or _torch_optimizer._global_optimizer_pre_hooks
        or _torch_optimizer._global_optimizer_post_hooks
        or "step" in kept
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    )


def kernel_step(optimizer: Any, divisor: Tensor | None, found_inf: Tensor) -> None:
    """Step through the fused kernel, which divides the gradients and skips where `found_inf` is 1.

    torch's wrapper of `step` costs 13 microseconds a step for hooks and a profiler label; it is passed by.
    """
    optimizer.grad_scale, optimizer.found_inf = divisor, found_inf
    _step_unobserved(optimizer)


def plain_step(optimizer: Any, found_inf: Tensor | None) -> None:
    """Step with the gradients as they are; a fused kernel skips where `found_inf` is 1."""
    is_torchs = _is_torchs(optimizer)
    if is_torchs:
        optimizer.grad_scale, optimizer.found_inf = None, found_inf
    if is_torchs and is_unobserved(optimizer):
        _step_unobserved(optimizer)
    else:
        optimizer.step()


def _step_unobserved(optimizer: Optimizer) -> None:
    """`optimizer.step()` of one of torch's own that is unobserved."""
    arithmetic = step_arithmetic(type(optimizer))
    if arithmetic is None:
        optimizer.step()
        return
    with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
        arithmetic(optimizer)


def _is_torchs(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torch.optim.")
