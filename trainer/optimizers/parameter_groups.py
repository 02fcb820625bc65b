"""Parameter groups for weight decay: biases and norm parameters do not decay by default (CUHK ELEG 5491)."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.contracts import ParameterGroup

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def parameter_groups(model: nn.Module, weight_decay: float | None, exclude: Sequence[str]) -> list[ParameterGroup]:
    """Parameter groups `decay` and `no_decay` for a torch optimizer; an empty group is omitted.

    `exclude` lists "bias", "norm" (every parameter of a normalization layer) and patterns over parameter names, such
    as "*.embedding.*". Parameters shared by several layers appear once, under their first name.
    """
    without = excluded_names(model, exclude)

    if weight_decay is None:  # the optimizer's configuration has no such key
        return [{"name": "all", "params": [p for p in model.parameters() if p.requires_grad]}]
    if weight_decay == 0:
        without = set()  # one group: an optimizer's overhead is per group
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"name": "decay", "weight_decay": weight_decay, "params": [p for n, p in named if n not in without]},
        {"name": "no_decay", "weight_decay": 0.0, "params": [p for n, p in named if n in without]},
    ]
    return [group for group in groups if group["params"]]


def excluded_names(model: nn.Module, exclude: Sequence[str]) -> set[str]:
    """Names of the parameters that `exclude` lists; see `parameter_groups`."""
    norms = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }

    def excluded(name: str) -> bool:
        if "bias" in exclude and name.endswith("bias"):
            return True
        if "norm" in exclude and name in norms:
            return True
        return any(fnmatchcase(name, pattern) for pattern in exclude)

    return {name for name, _ in model.named_parameters() if excluded(name)}


def unmatched(model: nn.Module, exclude: Sequence[str]) -> list[str]:
    """The patterns of `exclude` that match no parameter, most likely misspelt."""
    names = [name for name, _ in model.named_parameters()]
    return [
        pattern
        for pattern in map(str, exclude)
        if pattern not in ("bias", "norm") and not any(fnmatchcase(name, pattern) for name in names)
    ]
