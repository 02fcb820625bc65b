"""Use of torch's optimizers beyond their documented `step`.

All code that depends on the implementation of torch's optimizers is here and in `without_compiler`; a test verifies
that the results are bit-identical to those of the public interface.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as _torch_optimizer

from trainer.base.without_compiler import step_arithmetic


def has_fused_kernel(optimizer: Optimizer) -> bool:
    """Whether this is a torch optimizer whose kernel supports `grad_scale` and `found_inf` (float32 only)."""
    double = any(p.dtype is torch.float64 for group in optimizer.param_groups for p in group["params"])
    return _is_torchs(optimizer) and bool(getattr(optimizer, "_step_supports_amp_scaling", False)) and not double


def is_unobserved(optimizer: Optimizer) -> bool:
    """Whether bypassing torch's wrapper of `step` has no visible effect: there are no step hooks on the instance or
    on all optimizers, no `step` attribute on the instance, and no profiler."""
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
    """Step with the fused kernel, which divides the gradients and skips the step if `found_inf` is 1.

    Bypasses torch's wrapper of `step`, which costs 13 microseconds for hooks and a profiler label.
    """
    optimizer.grad_scale, optimizer.found_inf = divisor, found_inf
    _step_unobserved(optimizer)


def plain_step(optimizer: Any, found_inf: Tensor | None) -> None:
    """Step with the gradients as they are; a fused kernel skips the step if `found_inf` is 1."""
    is_torchs = _is_torchs(optimizer)
    if is_torchs:
        optimizer.grad_scale, optimizer.found_inf = None, found_inf
    if is_torchs and is_unobserved(optimizer):
        _step_unobserved(optimizer)
    else:
        optimizer.step()


def lay_out_state(optimizer: Optimizer) -> None:
    """Give the state of each parameter the parameter's memory layout, which fused kernels take for granted.

    Loaded state has the layout of the run that saved it: channels-last on a GPU, for example, or whole weights that
    were put together from shards. On the CPU a fused kernel pairs elements by their place in memory, without a check.
    """
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer):
            lay_out_state(inner)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                like = torch.empty_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format)
                state[key] = like.copy_(value)


def _step_unobserved(optimizer: Optimizer) -> None:
    """Equivalent to `optimizer.step()` of an unobserved torch optimizer."""
    arithmetic = step_arithmetic(type(optimizer))
    if arithmetic is None:
        optimizer.step()
        return
    with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
        arithmetic(optimizer)


def _is_torchs(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torch.optim.")
