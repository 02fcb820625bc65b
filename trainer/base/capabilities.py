"""Capabilities of components that are never wrapped: optimizers and models. Does not import torch.

An optimizer of ours, or of the user's, declares them as attributes of its class:

- `needs_closure`: its `step` evaluates the objective. Otherwise whether the `closure` parameter of `step` has no
  default, as in `torch.optim.LBFGS`.
- `element_wise`: the update of each element depends only on that element's gradients, so that a shard of a weight can
  be stepped alone. Otherwise whether it is one of torch's `ELEMENT_WISE` classes.
- `joins_parameters`: the update of a weight depends on those of other weights, so that each rank must step all of
  them. Otherwise whether it needs a closure and is not element-wise.
- `rate`: `scheduled` (the schedule multiplies `lr`), `fixed` or `own` (the optimizer determines its step size).
- `line_search`: it compares values of the objective along a direction, which clipping would change.
- `differentiates`: it calls `closure.loss(create_graph=True)`.
- `converged`: a property that is True once further steps would change nothing.
- `logged`: names of attributes, numbers, that are logged as `optimizer/NAME`.
- `extra_bytes(num_weights, bytes_each)`: memory of a step besides weights and gradients, if it is too large to ignore.
- `evaluation_weights()`: yields pairs of a parameter and its value to evaluate and keep, if that is another one.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

ELEMENT_WISE = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD")
Rate = Literal["scheduled", "fixed", "own"]
RATES: tuple[Rate, ...] = ("scheduled", "fixed", "own")
# Adafactor's step is relative to the weights, and its `lr` only a limit (Shazeer & Stern 2018)
_RATES_OF_TORCH: dict[str, Rate] = {"LBFGS": "fixed", "Rprop": "own", "Adafactor": "own"}


@dataclass(frozen=True)
class Traits:
    """What an optimizer needs and supports; see the module."""

    needs_closure: bool
    element_wise: bool
    joins_parameters: bool
    rate: Rate
    line_search: bool
    differentiates: bool
    averages: bool


def traits(optimizer: object) -> Traits:
    """Return what an optimizer declares, and otherwise what is known of torch's.

    Raises ValueError if its `rate` is none of `RATES`.
    """
    closure = needs_closure(optimizer)
    element_wise = is_element_wise(optimizer)
    return Traits(
        needs_closure=closure,
        element_wise=element_wise,
        joins_parameters=bool(getattr(optimizer, "joins_parameters", closure and not element_wise)),
        rate=rate_of_class(type(optimizer)),
        line_search=bool(getattr(optimizer, "line_search", _searches_lines(optimizer))),
        differentiates=bool(getattr(optimizer, "differentiates", False)),
        averages=evaluation_weights_of(optimizer) is not None,
    )


def needs_closure(optimizer: object) -> bool:
    """Whether `step` requires a closure."""
    declared: bool | None = getattr(optimizer, "needs_closure", None)
    if declared is not None:
        return bool(declared)
    step = getattr(optimizer, "step", None)
    closure = inspect.signature(step).parameters.get("closure") if callable(step) else None
    return closure is not None and closure.default is closure.empty


def is_element_wise(optimizer: object) -> bool:
    """Whether a shard of a weight can be stepped alone."""
    kind = type(optimizer)
    return bool(getattr(optimizer, "element_wise", _is_torchs(kind) and kind.__name__ in ELEMENT_WISE))


def convergence_of(optimizer: object) -> Callable[[], bool] | None:
    """Return a function that asks the optimizer whether it has converged, or None if it never says."""
    if not isinstance(inspect.getattr_static(optimizer, "converged", None), property):
        return None
    converged = attrgetter("converged")
    return lambda: bool(converged(optimizer))


def logged_by(optimizer: object) -> dict[str, float]:
    """Return the numbers that an optimizer declares for the log."""
    names: Iterable[str] = getattr(optimizer, "logged", ())
    return {f"optimizer/{name}": float(attrgetter(name)(optimizer)) for name in names}


def evaluation_weights_of(optimizer: object) -> "Callable[[], Iterable[tuple[Tensor, Tensor]]] | None":
    """Return the method that yields the weights to evaluate, or None if the optimizer trains those."""
    method: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None = getattr(optimizer, "evaluation_weights", None)
    return method


def extra_bytes_of(optimizer: object, num_weights: int, bytes_each: int) -> int:
    """Return the memory that an optimizer declares for steps over so many weights, 0 if it does not."""
    method: Callable[[int, int], int] | None = getattr(optimizer, "extra_bytes", None)
    return 0 if method is None else method(num_weights, bytes_each)


def rate_of_class(kind: object) -> Rate:
    """Return how the optimizers of a class use the learning rate. Raises ValueError for an unknown word."""
    torchs = [base for base in inspect.getmro(kind) if _is_torchs(base)] if inspect.isclass(kind) else []
    known = next((_RATES_OF_TORCH[base.__name__] for base in torchs if base.__name__ in _RATES_OF_TORCH), "scheduled")
    declared = getattr(kind, "rate", known)
    for rate in RATES:
        if declared == rate:
            return rate
    raise ValueError(f"rate = {declared!r}: must be one of {', '.join(RATES)}")


def rate_of_name(target: str) -> Rate:
    """Like `rate_of_class`, for the dotted name of one of torch's classes; `scheduled` for every other name."""
    package, _, name = target.rpartition(".")
    return _RATES_OF_TORCH.get(name, "scheduled") if f"{package}.".startswith("torch.optim.") else "scheduled"


def tensor_plan(model: "nn.Module") -> Mapping[str, str]:
    """Module name -> how to split the module over ranks (see `parallelism/tensor.py`); empty if not declared."""
    plan: Mapping[str, str] | None = getattr(model, "tensor_plan", None)
    return plan or {}


def pipeline_plan(model: "nn.Module") -> Sequence[str] | None:
    """Names of the children at which a pipeline stage may begin; None if not declared."""
    plan: Sequence[str] | None = getattr(model, "pipeline_plan", None)
    return None if plan is None else tuple(plan)


def auxiliary_weights(model: "nn.Module") -> tuple[float, ...]:
    """Weights of the losses of auxiliary classifiers; empty if not declared.

    In training, a model with A of them returns (N, 1 + A, num_outputs), its own outputs first; in evaluation, only its
    own, (N, num_outputs).
    """
    return tuple(getattr(model, "auxiliary_weights", ()))


def taken_weights(model: "nn.Module") -> str | None:
    """What the model declares to have taken from pretrained weights, and left out; None if it took all, or has none."""
    told = getattr(model, "taken_weights", None)
    return told if isinstance(told, str) else None


def residual_ends(model: "nn.Module") -> "list[nn.Module]":
    """The last layers of the model's residual branches; a block names its own as `residual_end`."""
    ends = []
    for block in model.modules():
        name = getattr(block, "residual_end", None) or _TORCHVISION_ENDS.get(type(block).__name__)
        if name is not None:
            ends.append(block.get_submodule(name))
    return ends


def num_heads_of(module: "nn.Module") -> int | None:
    """The heads of an attention, whose linear layers are only split between heads; None for other modules."""
    heads: int | None = getattr(module, "num_heads", None)
    return heads


def num_blocks_of(module: "nn.Module") -> int:
    """The matrices that a block-diagonal layer declares as `num_blocks`, below one another in its weight; else 1."""
    blocks: int = getattr(module, "num_blocks", 1)
    return blocks


def centroids_of(model: "nn.Module") -> "list[nn.Parameter]":
    """The parameters (K, D) that modules declare as `centroids`."""
    return [value for name, value in model.named_parameters() if name.rpartition(".")[2] == "centroids"]


_TORCHVISION_ENDS = {"BasicBlock": "bn2", "Bottleneck": "bn3"}


def _is_torchs(kind: type) -> bool:
    return f"{kind.__module__}.".startswith("torch.optim.")


def _searches_lines(optimizer: object) -> bool:
    """Whether it is torch's L-BFGS with a line search."""
    groups = getattr(optimizer, "param_groups", None) or [{}]
    return groups[0].get("line_search_fn") is not None
