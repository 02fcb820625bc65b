"""Lists of tensors for torch's `_foreach_` and `_fused_` functions, which update all parameters of a group at once."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.contracts import ParameterGroup

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_COMPUTED_IN = (torch.float32, torch.float64)  # products of lower types are computed in float32 if a number is given


def with_gradients(group: ParameterGroup) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of a group that have a gradient, and their gradients."""
    params = [p for p in group["params"] if p.grad is not None]
    return params, [p.grad for p in params]


def all_with_gradients(optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of all groups that have a gradient, and their gradients."""
    pairs = [with_gradients(group) for group in optimizer.param_groups]
    return [p for params, _ in pairs for p in params], [g for _, gradients in pairs for g in gradients]


def buffers(optimizer: Optimizer, params: Iterable[Tensor], name: str) -> list[Tensor]:
    """Return a tensor of each parameter's state, zeros at first."""
    found = []
    for parameter in params:
        state = optimizer.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        found.append(state[name])
    return found


def with_decay(gradients: list[Tensor], params: list[Tensor], weight_decay: float) -> list[Tensor]:
    """Return g + weight_decay * w, the gradient with the penalty weight_decay / 2 |w|^2."""
    return gradients if weight_decay == 0 else list(torch._foreach_add(gradients, params, alpha=weight_decay))


def sgd_(
    params: list[Tensor],
    gradients: list[Tensor],
    kept: list[Tensor],
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
) -> None:
    """g <- g + weight_decay w, b <- momentum b + (1 - dampening) g, w <- w - lr b, by the kernel of torch's fused SGD.

    `kept` is b, which is not used with momentum 0. The tensors of a parameter must have the same memory layout; those
    of autograd, `buffers` and `lay_out_state` have it.
    """
    if momentum == 0:  # the kernel takes no b then
        kept, lr = [], lr * (1 - dampening)
    torch._fused_sgd_(
        params, gradients, kept, weight_decay=weight_decay, momentum=momentum, lr=lr, dampening=dampening,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


def factor_of(tensors: Sequence[Tensor], value: float) -> Tensor | float:
    """Return a factor or divisor for all tensors in its fastest form; the bits of the results are the same.

    On the CPU, torch makes a tensor of a number for each tensor of the list, which takes longer than the product.
    """
    dtype, on_cpu = tensors[0].dtype, tensors[0].device.type == "cpu"
    if on_cpu and dtype in _COMPUTED_IN and all(type(t) in _PLAIN and t.dtype is dtype for t in tensors):
        return torch.tensor(value, dtype=dtype, device="cpu")
    return value
