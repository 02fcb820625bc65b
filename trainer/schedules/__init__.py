"""Learning-rate schedules: pure functions of the step.

`factor(step)` multiplies each learning rate in optimizer step `step` (0, 1, ...): `lr(step) = lr * factor(step)`. A
schedule that depends on validation metrics (`Plateau`) also has `observe`, `state_dict` and `load_state_dict`.
Durations are given as text; converting them needs `steps_per_epoch` and `total_steps`. In formulas, t is the step and
T the length of the schedule. Any schedule can follow a warm-up (`warmup.py`). If the batch grows (`growth.py`), steps
here are those of the first batch size.

`tail` answers the conditions of Robbins & Monro (1951); see `robbins_monro.py`.
"""

from trainer.schedules.cycles import OneCycle, Sgdr
from trainer.schedules.decay import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    InverseTime,
    MultiStep,
    Polynomial,
    Step,
    WarmupStableDecay,
)
from trainer.schedules.growth import Grown, Growth
from trainer.schedules.plateau import Plateau
from trainer.schedules.warmup import Warmed, Warmup

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Grown",
    "Growth",
    "InverseSqrt",
    "InverseTime",
    "MultiStep",
    "OneCycle",
    "Plateau",
    "Polynomial",
    "Sgdr",
    "Step",
    "Warmed",
    "Warmup",
    "WarmupStableDecay",
]
