"""Parameter groups by the names of parameters: learning rates, weight decay, freezing.

Biases and norm parameters do not decay by default (CUHK ELEG 5491).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.base.config import Config
from trainer.contracts import ParameterGroup

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Entry:
    """An entry of the configuration's `parameter_groups`; `unfreeze_at` is a duration."""

    name: str
    match: tuple[str, ...]
    lr_factor: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False
    unfreeze_at: str | None = None

    def includes(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.match)


def entries_of(config: Config) -> list[Entry]:
    """Return the entries of `parameter_groups`, in the order in which they are matched."""
    groups: Config = config["parameter_groups"]
    return [Entry(str(name), **{**group, "match": _listed(group["match"])}) for name, group in groups.items()]


def entry_of(name: str, entries: Sequence[Entry]) -> Entry | None:
    """Return the first entry that includes a parameter, by its name."""
    return next((entry for entry in entries if entry.includes(name)), None)


def freeze(model: nn.Module, config: Config) -> None:
    """Let the parameters of frozen entries have no gradient."""
    if entries := entries_of(config):
        for name, parameter in model.named_parameters():
            if (entry := entry_of(name, entries)) is not None and entry.frozen:
                parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, config: Config) -> list[ParameterGroup]:
    """Parameter groups for a torch optimizer: `decay` and `no_decay`, then those of `parameter_groups`.

    A parameter belongs to the first entry of `parameter_groups` that includes it. Its weight decay is that of the
    entry; if the entry has none, that of the optimizer, or 0 for the parameters in `no_weight_decay`, which are then a
    group NAME/no_decay. The learning rate is the optimizer's times `lr_factor`. Empty groups and frozen parameters are
    omitted. Parameters shared by several layers appear once, under their first name.
    """
    decay: float | None = config["optimizer"].get("weight_decay")
    entries, without = entries_of(config), excluded_names(model, config["no_weight_decay"])
    defaults = ["all"] if decay is None else ["decay", "no_decay"]
    groups: dict[str, ParameterGroup] = {
        name: {"name": name, "params": []}
        for name in (*defaults, *(f"{entry.name}{part}" for entry in entries for part in ("", "/no_decay")))
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        entry = entry_of(name, entries)
        own = None if entry is None else entry.weight_decay
        # without decay there is one group, because an optimizer's overhead is per group
        is_excluded = bool(decay) and own is None and name in without
        if entry is None:
            group = groups["all" if decay is None else "no_decay" if is_excluded else "decay"]
        else:
            group = groups[f"{entry.name}/no_decay" if is_excluded else entry.name]
            if entry.lr_factor != 1:
                group["lr"] = config["optimizer"]["lr"] * entry.lr_factor
        if decay is not None:
            group["weight_decay"] = 0.0 if is_excluded else decay if own is None else own
        group["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _listed(match: str | Sequence[str]) -> tuple[str, ...]:
    return (match,) if isinstance(match, str) else tuple(match)


def excluded_names(model: nn.Module, exclude: Sequence[str]) -> set[str]:
    """Names of the parameters that `exclude` lists; "bias", "norm" (every parameter of a
    normalization layer) and patterns over names, such as "*.embedding.*"."""
    norms = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }

    def excluded(name: str) -> bool:
        own = name.rpartition(".")[2]
        if "bias" in exclude and (own.endswith("bias") or own.startswith("bias_")):  # bias_ih_l0 of a recurrent layer
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
