"""The range of every argument of our optimizers: the values at its ends, and the first ones beyond."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optimizers.broyden import Broyden
from trainer.optimizers.gradient_descent import GradientDescent
from trainer.optimizers.lion import Lion
from trainer.optimizers.momentum import SGDW, Lookahead, Momentum, momentum, nesterov
from trainer.optimizers.muon import Muon
from trainer.optimizers.newton import Newton, StochasticNewton
from trainer.optimizers.rprop import Rprop, rprop
from trainer.optimizers.sam import SAM
from trainer.optimizers.schedule_free import ScheduleFreeAdamW

NEXT = 1 - 1e-9  # the largest value below 1 that counts here
RATE = ([1e-9, 5.0], [0.0, -1e-9])
SHARE = ([0.0, NEXT], [-1e-9, 1.0])
NOT_NEGATIVE = ([0.0, 2.0], [-1e-9])
COUNT = ([1, 2], [0, 1.5])
# class -> argument -> allowed values, refused values
RANGES: dict[Callable[..., Any], dict[str, tuple[list[Any], list[Any]]]] = {
    GradientDescent: {"lr": RATE, "tolerance": NOT_NEGATIVE, "patience": COUNT, "weight_decay": NOT_NEGATIVE},
    Momentum: {"lr": RATE, "momentum": SHARE, "weight_decay": NOT_NEGATIVE, "form": (["ema"], ["nesterov"])},
    momentum: {"form": (["ema", "velocity", "heavy_ball"], ["nesterov"])},
    nesterov: {"momentum": ([1e-9, NEXT], [0.0, 1.0])},
    SGDW: {"lr": RATE, "momentum": SHARE, "weight_decay": NOT_NEGATIVE, "form": (["ema", "velocity"], ["nesterov"])},
    Lookahead: {"lr": RATE, "momentum": SHARE, "weight_decay": NOT_NEGATIVE},
    Lion: {"lr": RATE, "betas": ([(0.0, 0.0), (NEXT, NEXT)], [(-1e-9, 0.5), (0.5, 1.0)]), "weight_decay": NOT_NEGATIVE},
    Muon: {
        "lr": RATE, "momentum": SHARE, "eps": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE,
        "ns_steps": ([1, 2, 100], [0, 1.5, 101]),
        "betas": ([(0.0, 0.0), (NEXT, NEXT)], [(-1e-9, 0.5), (0.5, 1.0)]),
        "ns_coefficients": ([(1.0, 2.0, 3.0)], [(1.0, 2.0), (math.nan, 1.0, 2.0), (1.0, math.inf, 2.0)]),
        "adjust_lr": (["original", "match_rms_adamw"], ["match"]),
    },
    Rprop: {
        "lr": RATE, "etas": ([(0.1, 1.1)], [(0.0, 1.2), (1.0, 1.2), (0.5, 1.0), (0.5,), (0.5, math.inf)]),
        "step_sizes": ([(1e-9, 1.0)], [(0.0, 1.0), (2.0, 1.0)]),
    },
    rprop: {"on_sign_change": (["step", "skip"], ["stop"])},
    SAM: {"lr": RATE, "rho": NOT_NEGATIVE, "momentum": SHARE, "weight_decay": NOT_NEGATIVE},
    ScheduleFreeAdamW: {
        "lr": RATE, "betas": ([(1e-9, 0.0), (NEXT, NEXT)], [(0.0, 0.5), (1.0, 0.5), (0.5, -1e-9), (0.5, 1.0)]),
        "warmup_steps": ([0, 1], [-1, 0.5]), "eps": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE, "r": NOT_NEGATIVE,
        "weight_lr_power": NOT_NEGATIVE,
    },
    Newton: {
        "step_size": ([1e-9, 1.0], [0.0, 1 + 1e-9]), "damping": NOT_NEGATIVE,
        "line_search": (["none", "backtracking"], ["wolfe"]),
    },
    StochasticNewton: {
        "lr": RATE, "damping": NOT_NEGATIVE, "iterations": ([1, 10_000], [0, 1.5, 10_001]), "tolerance": NOT_NEGATIVE,
    },
    Broyden: {"xi": ([0.0, 1.0], [-1e-9, 1 + 1e-9]), "initial_scale": (["auto", 1e-9], ["large", 0.0])},
}  # fmt: skip
CASES = [(make, name) for make, arguments in RANGES.items() for name in arguments]


@pytest.mark.parametrize(("make", "name"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_an_argument_has_this_range(make: Callable[..., Any], name: str) -> None:
    allowed, refused = RANGES[make][name]
    for value in allowed:
        make([nn.Parameter(torch.zeros(1))], **{name: value})
    for value in refused:
        with pytest.raises(ValueError, match=f"^{name}="):
            make([nn.Parameter(torch.zeros(1))], **{name: value})


def test_an_unknown_form_is_named_before_what_it_would_not_have() -> None:
    with pytest.raises(ValueError, match=r"^form="):
        momentum([nn.Parameter(torch.zeros(1))], form="nesterov", dampening=0.1)  # type: ignore[arg-type]
