"""Avoids importing torch's compiler, which takes 1.2 s, in runs that compile nothing.

torch imports `torch._dynamo` when an optimizer is constructed, steps or saves its state, to exclude these functions
from compilation. Only this module depends on these internals of torch. Each function first checks that they are as
expected, and otherwise uses the public interface, which is slower and bit-identical. A test compares both.
"""

import mmap
import sys
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as _torch_optimizer
from torch.utils._python_dispatch import TorchDispatchMode

_COMPILER = "torch._dynamo"
# attribute in which torch's `_disable_dynamo` stores its wrapper on the decorated function
_SLOT = "__dynamo_disable"
_DECORATED = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
# all names that torch's decorator of `step` uses, which disables gradients and ends a compiled graph
_NAMES_OF_STEP = {
    "torch", "torch._dynamo", "_dynamo", "graph_break", "cast", "Optimizer", "is_grad_enabled", "set_grad_enabled",
    "defaults",
}  # fmt: skip
_SMALL_MODEL, _SMALL_SAMPLE = 32_000_000, 16_384  # elements
_SMALL_WORK = 1 << 36  # elements of the model times those of a sample: some 0.1 s of computation


def keep_compiler_out() -> None:
    """Let optimizers be constructed, saved and loaded without importing the compiler, until something imports it.

    torch's `_disable_dynamo` imports the compiler at the first call of the decorated function and stores a wrapper.
    This stores the plain function instead, which is equivalent unless it is being compiled.
    """
    for name in _DECORATED:
        _fill_slot(vars(Optimizer).get(name))


def _fill_slot(decorated: object) -> None:
    if not isinstance(decorated, FunctionType) or _COMPILER in sys.modules:
        return
    plain = vars(decorated).get("__wrapped__")
    if not isinstance(plain, FunctionType) or _SLOT in vars(plain) or _SLOT not in decorated.__code__.co_consts:
        return

    def until_compiler_is_loaded(*args: object, **kwargs: object) -> object:
        if _COMPILER in sys.modules:
            vars(plain).pop(_SLOT, None)
            return decorated(*args, **kwargs)
        return plain(*args, **kwargs)

    setattr(plain, _SLOT, until_compiler_is_loaded)


def step_arithmetic(kind: type[Optimizer]) -> Callable[[Optimizer], object] | None:
    """Return the undecorated `step` of a torch optimizer, without hooks and profiler label.

    Call it with gradients enabled according to `defaults["differentiable"]`. None if torch decorates this `step` in an
    unknown way.
    """
    return _inside_step(kind.step)


@cache
def _inside_step(step: Callable[..., object]) -> Callable[[Optimizer], object] | None:
    for name in ("wrapper", "_use_grad"):
        if not isinstance(step, FunctionType) or step.__code__.co_filename != _torch_optimizer.__file__:
            return None
        if step.__code__.co_name != name:
            return None
        code, step = step.__code__, vars(step).get("__wrapped__", step)
    return step if set(code.co_names) <= _NAMES_OF_STEP and isinstance(step, FunctionType) else None


def backward(loss: Tensor, weight: Tensor) -> None:
    """Equivalent to `loss.backward(weight)` for a scalar loss.

    torch checks the shapes in Python, for which it imports symbolic shapes and sympy; the engine checks them again.
    """
    engine = _engine()
    if engine is None or type(loss) is not Tensor or type(weight) is not Tensor:
        loss.backward(weight)
    else:
        engine((loss,), (weight,), False, False, (), allow_unreachable=True, accumulate_grad=True)


@cache
def _engine() -> Callable[..., object] | None:
    """Return torch's entry point of the autograd engine, or None if it does not accept these arguments."""
    engine = vars(torch.autograd.graph).get("_engine_run_backward")
    if engine is None:
        return None
    leaf = torch.zeros((), requires_grad=True)
    try:
        with torch.enable_grad():
            engine((leaf * 2,), (torch.ones(()),), False, False, (), allow_unreachable=True, accumulate_grad=True)
    except Exception:  # other versions may fail in any way
        return None
    entry: Callable[..., object] = engine
    return entry if leaf.grad is not None and leaf.grad.item() == 2 else None


def set_deterministic(mode: bool, *, warn_only: bool, compiles: bool) -> None:
    """Call `torch.use_deterministic_algorithms`, or its equivalent that does not import the compiler."""
    if compiles or "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    else:
        torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if mode else "default")


def spare_flop_counter() -> None:
    """Let torch's FLOP counter run without importing the compiler, in the same way as `keep_compiler_out`."""
    from torch.utils import flop_counter  # imports triton

    for kind in vars(flop_counter).values():
        if isinstance(kind, type) and issubclass(kind, TorchDispatchMode):
            _fill_slot(vars(kind).get("__torch_dispatch__"))


def zeros_for(model: nn.Module, input_shape: Sequence[int]) -> dict[str, Tensor] | None:
    """Return zeros on the CPU for each parameter and buffer of a small model, to find output shapes by
    `functional_call`; None for a large model and for one with uninitialized (lazy) parameters.

    The meta device computes nothing, but batch norm, dropout and other operations import the compiler there.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors.values()):
        return None
    size, of_sample = sum(tensor.numel() for tensor in tensors.values()), prod(input_shape)
    if size > _SMALL_MODEL or of_sample > _SMALL_SAMPLE or size * of_sample > _SMALL_WORK:
        return None
    return {name: _zeros_like(tensor) for name, tensor in tensors.items()}


def _zeros_like(tensor: Tensor) -> Tensor:
    """Return zeros on the CPU whose pages take memory only when they are written to."""
    if not tensor.numel():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    pages = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    return torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape)
