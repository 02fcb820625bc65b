"""The runner's own settings and their allowed values, without torch."""

import math
from collections.abc import Callable, Mapping
from typing import TypeGuard

from trainer.base.duration import parse_duration
from trainer.base.errors import nearest

# None if a value is allowed, else what it must be
Rule = Callable[[object], str | None]


def keys_named(name: str, content: Mapping[str, object]) -> list[str]:
    """Return the keys of this name inside the groups and sections of a configuration, such as optimizer.lr for lr."""
    return sorted(f"{key}.{name}" for key, node in content.items() if isinstance(node, Mapping) and name in node)


def is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(minimum: int, *words: str | None, maximum: int = 2**63 - 1) -> Rule:
    """A whole number from `minimum` to `maximum`, or one of the words (None is shown as null)."""
    at_most = f" and at most {maximum}" if maximum < 2**63 - 1 else ""
    also = "".join(f" or {'null' if word is None else word}" for word in words)

    def rule(value: object) -> str | None:
        if (is_int(value) and minimum <= value <= maximum) or value in words:
            return None
        too_large = " and below 2^63" if is_int(value) and value > maximum and not at_most else ""
        suggestion = nearest(value, [word for word in words if word]) if isinstance(value, str) else None
        hint = f". Did you mean {suggestion}?" if suggestion else ""
        return f"must be a whole number of at least {minimum}{at_most}{too_large}{also}{hint}"

    return rule


def positive_or_null(value: object) -> str | None:
    fine = value is None or (is_number(value) and 0 < value < math.inf)
    return None if fine else "must be a number above 0 or null"


def not_negative(value: object) -> str | None:
    fine = is_number(value) and 0 <= value < math.inf
    return None if fine else "must be a number of at least 0"


def one_of(*words: object) -> Rule:
    """One of these values."""
    shown = ["null" if word is None else str(word).lower() if isinstance(word, bool) else str(word) for word in words]

    def rule(value: object) -> str | None:
        if any(value == word and type(value) is type(word) for word in words):
            return None
        suggestion = nearest(str(value), shown)
        hint = f". Did you mean {suggestion}?" if suggestion else ""
        return f"must be one of {', '.join(shown)}{hint}"

    return rule


def duration(value: object) -> str | None:
    try:
        fine = math.isfinite(parse_duration(value).amount * 2**63)
    except ValueError as error:
        return str(error)
    return None if fine else "is too long"


def period(value: object) -> str | None:
    problem = duration(value)
    if problem is None and parse_duration(value).amount == 0:
        return "must be at least one step"
    return problem


def period_or_auto(value: object) -> str | None:
    problem = None if value == "auto" else period(value)
    return problem and problem.replace("must be ", "must be auto or ")


def period_or_null(value: object) -> str | None:
    return None if value is None else period(value)


def device(value: object) -> str | None:
    text = str(value)
    numbered = text.startswith("cuda:") and text[5:].isdigit()
    if numbered or text in ("auto", "cpu", "cuda", "mps"):
        return None
    return "must be auto, cpu, cuda, cuda:N or mps"


def text_or_null(value: object) -> str | None:
    return None if value is None or isinstance(value, str) else "must be text or null"


def folder_name(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        plain = value.isprintable() and value == value.strip() and not set(value) & set("/\\")
        if plain and value not in ("", ".", "..") and len(value.encode()) <= 100:
            return None
    return "must be a plain name for a folder (no slashes, at most 100 bytes) or null"


def words(value: object) -> str | None:
    fine = isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)
    return None if fine else "must be a list, e.g. [a,b]"


def patterns(value: object) -> str | None:
    fine = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return None if fine else "must be a list of bias, norm and patterns of names, e.g. [bias,norm,*.embed*]"


def mode(value: object) -> str | None:
    return None if value in ("min", "max", "auto") else "must be min, max or auto"


SETTINGS: dict[str, Rule] = {
    "name": folder_name,
    "tags": words,
    "epochs": whole(1, None),
    "steps": whole(1, None),
    "schedule_length": period_or_null,
    "batch_size": whole(1, "full"),
    "lr_scaling": one_of("none", "linear", "sqrt"),
    "reference_batch": whole(1),
    "limit_batches": whole(1, None),
    "accumulate": whole(1),
    "micro_batch": whole(1, None, "auto"),
    "seed": whole(0),
    "deterministic": one_of(True, False),
    "device": device,
    "threads": whole(1, None, maximum=1024),
    "precision": one_of("fp32", "bf16", "fp16", "auto"),
    "compile": one_of(True, False),
    "checkpoint_activations": one_of(True, False),
    "channels_last": one_of("auto", True, False),
    "clip_norm": positive_or_null,
    "clip_value": positive_or_null,
    "no_weight_decay": patterns,
    "on_nonfinite": one_of("stop", "skip", "rollback"),
    "init_from": text_or_null,
    "init_strict": one_of(True, False),
    "profile": whole(1, None),
}
EARLY_STOPPING: dict[str, Rule] = {
    "monitor": lambda value: None if isinstance(value, str) else "must be the name of a metric",
    "mode": mode,
    "patience": whole(1),
    "min_delta": not_negative,
    "after": duration,
}


def _within(low: float, high: float, open_low: bool = False, open_high: bool = False) -> Rule:
    shown = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"

    def inside(value: object) -> bool:
        if not is_number(value):
            return False
        above, below = value > low or (value == low and not open_low), value < high or (value == high and not open_high)
        return above and below

    def rule(value: object) -> str | None:
        # an item may be null for "as the optimizer decides"
        fine = all(item is None or inside(item) for item in value) if isinstance(value, list) else inside(value)
        return None if fine else f"must be in {shown}"

    return rule


# arguments with the same meaning in all optimizers; torch itself accepts a momentum of 1.5
OPTIMIZER: dict[str, Rule] = {
    "lr": _within(0, math.inf, open_low=True, open_high=True),
    "momentum": _within(0, 1, open_high=True),
    "dampening": _within(0, 1),
    "betas": _within(0, 1, open_high=True),
    "eps": _within(0, math.inf, open_high=True),
    "weight_decay": _within(0, math.inf, open_high=True),
    "rate": one_of("scheduled", "fixed", "own"),
    "batch_size": whole(1, "full"),
    "epochs": whole(1),
}
# arguments of torch's optimizers that torch itself does not check well enough
_POSITIVE = _within(0, math.inf, open_low=True, open_high=True)
_NOT_NEGATIVE = _within(0, math.inf, open_high=True)
_SHARE = _within(0, 1, open_high=True)
OPTIMIZER_OF: dict[str, dict[str, Rule]] = {
    **{f"torch.optim.{name}": {"eps": _POSITIVE} for name in ("Adam", "AdamW", "Adamax", "RAdam")},
    "torch.optim.RMSprop": {"alpha": _SHARE, "eps": _POSITIVE},
    "torch.optim.Adadelta": {"rho": _SHARE, "eps": _POSITIVE},
    "torch.optim.Adagrad": {"eps": _POSITIVE, "lr_decay": _NOT_NEGATIVE, "initial_accumulator_value": _NOT_NEGATIVE},
    "torch.optim.NAdam": {"eps": _POSITIVE, "momentum_decay": _NOT_NEGATIVE},
    "torch.optim.ASGD": dict.fromkeys(("lambd", "alpha", "t0"), _NOT_NEGATIVE),
    "torch.optim.Adafactor": {
        "beta2_decay": _within(-math.inf, 0, open_low=True, open_high=True),
        "d": _within(1, math.inf, open_high=True),
    },
    "torch.optim.LBFGS": {
        "max_iter": whole(1),
        "max_eval": whole(1, None),
        "history_size": whole(1),
        "tolerance_grad": _NOT_NEGATIVE,
        "tolerance_change": _NOT_NEGATIVE,
        "line_search_fn": one_of("strong_wolfe", None),
    },
}


def _match(value: object) -> str | None:
    fine = isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value))
    return None if fine else "must be a pattern of parameter names, such as 'head.*', or a list of them"


def _decay_or_null(value: object) -> str | None:
    return None if value is None else OPTIMIZER["weight_decay"](value)


PARAMETER_GROUP: dict[str, Rule] = {
    "match": _match,
    "lr_factor": _within(0, math.inf, open_low=True, open_high=True),
    "weight_decay": _decay_or_null,
    "frozen": one_of(True, False),
    "unfreeze_at": period_or_null,
}
PRUNE: dict[str, Rule] = {
    "source": text_or_null,
    "share": _within(0, 1, open_low=True, open_high=True),
    "scope": one_of("layer", "global"),
    "mask": one_of("magnitude", "random"),
    "redraw": one_of(True, False),
}
PRUNE_DEFAULTS = {"source": None, "share": 0.2, "scope": "layer", "mask": "magnitude", "redraw": False}
FOLDS: dict[str, Rule] = {"fold": whole(0, None), "folds": whole(2, None), "pool": one_of(True, False)}
EVERY: dict[str, Rule] = {"log": period_or_auto, "evaluate": period, "checkpoint": period}
