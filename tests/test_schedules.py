"""Schedules against torch's schedulers and tables by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.optim import lr_scheduler

from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.configuration.resolve import resolve
from trainer.contracts import Schedule
from trainer.schedules import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    InverseTime,
    MultiStep,
    OneCycle,
    Plateau,
    Polynomial,
    Sgdr,
    Step,
    Warmed,
    Warmup,
    WarmupStableDecay,
)
from trainer.schedules.robbins_monro import robbins_monro
from trainer.training.loop import train

ROOT = Path(__file__).parents[1]

STEPS = 40


def torch_factors(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_constant() -> None:
    assert [Constant().factor(t) for t in (0, 1, 10**9)] == [1, 1, 1]


def test_cosine_is_torch_s() -> None:
    schedule = Cosine(final=0.1, total_steps=STEPS)
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.1))
    assert [schedule.factor(t) for t in range(STEPS)] == pytest.approx(expected, abs=1e-12)


def test_step_is_torch_s() -> None:
    schedule = Step(every="3ep", factor=0.5, steps_per_epoch=5, total_steps=STEPS)
    expected = torch_factors(lambda o: lr_scheduler.StepLR(o, step_size=15, gamma=0.5))
    assert [schedule.factor(t) for t in range(STEPS)] == pytest.approx(expected, abs=1e-12)


def warmed(make: Callable[[int], Schedule], warmup: str, total_steps: int, **more: Any) -> Schedule:
    """A schedule with a warm-up, as the configuration builds it; `make` takes the remaining length."""
    rise = Warmup(warmup, **more, steps_per_epoch=4, total_steps=total_steps)
    return Warmed(rise, make(total_steps - rise.steps))


def test_linear_warmup_by_hand() -> None:
    schedule = warmed(lambda total: Polynomial(total_steps=total), "1ep", 12)
    table = {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.75, 8: 0.5, 11: 0.125}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)
    assert schedule.warmup == 4


def test_linear_warmup_with_ends_by_hand() -> None:
    schedule = warmed(lambda total: Polynomial(final=0.1, total_steps=total), "50%", 8, warmup_start=0.2)
    table = {0: 0.4, 1: 0.6, 3: 1.0, 4: 1.0, 5: 0.775, 7: 0.325}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


def test_cosine_warmup_by_hand() -> None:
    schedule = warmed(lambda total: Cosine(total_steps=total), "1ep", 12)
    half = math.sqrt(0.5)
    table = {0: 0.25, 3: 1.0, 4: 1.0, 6: (1 + half) / 2, 8: 0.5, 10: (1 - half) / 2}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


@pytest.mark.parametrize("shape", ["linear", "constant"])
def test_a_warmup_is_torch_s_sequence_of_schedulers(shape: Literal["linear", "constant"]) -> None:
    start, lead = 0.25, 8

    def reference(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        # torch's LinearLR has its start factor in step 0, ours reaches 1 in the last step of the warm-up
        first = start + (1 - start) / lead
        rise: dict[str, lr_scheduler.LRScheduler] = {
            "linear": lr_scheduler.LinearLR(optimizer, first, total_iters=lead - 1),
            "constant": lr_scheduler.ConstantLR(optimizer, start, total_iters=lead),
        }
        after = lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
        return lr_scheduler.SequentialLR(optimizer, [rise[shape], after], [lead])

    schedule = warmed(
        lambda total: Step("5step", 0.5, steps_per_epoch=4, total_steps=total), "2ep", STEPS, warmup_start=start,
        warmup_shape=shape,
    )  # fmt: skip
    assert [schedule.factor(t) for t in range(STEPS)] == pytest.approx(torch_factors(reference), abs=1e-12)


LIKE_TORCH: dict[str, tuple[Schedule, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]]] = {
    "multistep": (
        MultiStep(["7step", "50%"], 0.2, steps_per_epoch=5, total_steps=STEPS),
        lambda o: lr_scheduler.MultiStepLR(o, [7, 20], gamma=0.2),
    ),
    "multiply": (
        Step("1step", 0.9, steps_per_epoch=5, total_steps=STEPS),
        lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    ),
    "exponential": (
        Exponential(0.3, "1ep", steps_per_epoch=5, total_steps=STEPS),
        lambda o: lr_scheduler.ExponentialLR(o, gamma=math.exp(-0.3 / 5)),
    ),
    "linear": (
        Polynomial(1.0, 0.2, total_steps=STEPS),
        lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=STEPS),
    ),
    "polynomial": (
        Polynomial(2.5, total_steps=STEPS),
        lambda o: lr_scheduler.PolynomialLR(o, total_iters=STEPS, power=2.5),
    ),
    "sgdr, equal cycles": (
        Sgdr(cycle="2ep", multiply=1, final=0.1, steps_per_epoch=5, total_steps=STEPS),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=1, eta_min=0.1),
    ),
    "sgdr, longer cycles": (
        Sgdr(cycle="1ep", multiply=2, steps_per_epoch=5, total_steps=STEPS),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2),
    ),
    "one_cycle": (
        OneCycle(steps_per_epoch=5, total_steps=STEPS),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=STEPS, pct_start=0.3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_equals_torch_s_scheduler(name: str) -> None:
    schedule, make = LIKE_TORCH[name]
    length = STEPS
    expected = torch_factors(make)[:length]
    assert [schedule.factor(t) for t in range(length)] == pytest.approx(expected, abs=1e-12)


LENGTH: dict[str, Any] = {"steps_per_epoch": 10, "total_steps": 70}
BY_HAND: dict[str, tuple[Schedule, dict[int, float]]] = {
    "halve": (Step("1ep", 0.5, 0.2, **LENGTH), {0: 1, 9: 1, 10: 0.5, 20: 0.25, 30: 0.2, 69: 0.2}),
    "inverse_time": (InverseTime(0.5, "1ep", **LENGTH), {0: 1, 10: 1 / 1.5, 20: 0.5, 60: 0.25}),
    "inverse_sqrt": (InverseSqrt("1ep", **LENGTH), {0: 1, 10: math.sqrt(0.5), 30: 0.5}),
    # 70 steps in cycles of 10, 20 and 40
    "sgdr, whole cycles": (
        Sgdr(3, peak=0.5, **LENGTH),
        {0: 1, 5: 0.5, 10: 0.5, 20: 0.25, 30: 0.25, 50: 0.125, 69: 0.125 * (1 + math.cos(math.pi * 39 / 40))},
    ),
    "sgdr, equal cycles": (Sgdr(7, multiply=1, **LENGTH), {0: 1, 5: 0.5, 10: 1, 65: 0.5}),
    "sgdr, peaks not below the end": (Sgdr(7, None, 1, 0.1, 0.05, **LENGTH), {10: 0.1, 20: 0.05, 25: 0.05}),
    "warmup_stable_decay, linear": (WarmupStableDecay("2ep", "linear", 0.5, **LENGTH), {0: 1, 50: 1, 60: 0.75}),
    "warmup_stable_decay, cosine": (WarmupStableDecay("2ep", "cosine", **LENGTH), {50: 1, 60: 0.5}),
    "warmup_stable_decay, sqrt": (WarmupStableDecay("2ep", "sqrt", **LENGTH), {50: 1, 55: 0.5, 60: 1 - 0.5**0.5}),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    schedule, table = BY_HAND[name]
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


def test_inverse_sqrt_after_its_warmup_is_that_of_the_transformer() -> None:
    """Vaswani et al. 2017, equation 3, relative to its peak: min(1 / sqrt(t), t / W^1.5) * sqrt(W)."""
    lead, total = 40, 400
    schedule = warmed(lambda length: InverseSqrt("10ep", steps_per_epoch=4, total_steps=length), "10ep", total)
    paper = [min(t**-0.5, t * lead**-1.5) * lead**0.5 for t in range(1, total + 1)]
    ours = [schedule.factor(t) for t in range(total)]
    assert ours[:lead] == pytest.approx(paper[:lead])
    assert ours[lead:] == pytest.approx([math.sqrt(lead / t) for t in range(lead, total)])


FOR_EVER: dict[str, Any] = {"steps_per_epoch": 100, "total_steps": 10**4}


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(),
        InverseTime(**FOR_EVER),
        InverseSqrt(**FOR_EVER),
        Sgdr(cycle="1ep", peak=0.7, **FOR_EVER),
        Sgdr(cycle="1ep", multiply=3, peak=0.2, **FOR_EVER),
        Sgdr(cycle="1ep", final=0.1, **FOR_EVER),
        Step("1ep", 0.5, 0.01, **FOR_EVER),
        MultiStep(["1ep"], **FOR_EVER),
    ],
)
def test_the_tail_is_the_measured_exponent(schedule: Schedule) -> None:
    """The highest factors near t and near 100 million t differ by (10^8)^-tail."""

    def highest(low: int) -> float:
        return max(schedule.factor(int(low * 1.01**i)) for i in range(350))  # up to 32 times as late

    assert schedule.tail is not None
    assert -math.log(highest(10**14) / highest(10**6)) / math.log(10**8) == pytest.approx(schedule.tail, abs=0.02)


@pytest.mark.parametrize(
    "schedule",
    [Exponential(**FOR_EVER), Step("1ep", **FOR_EVER), Sgdr(cycle="1ep", multiply=1, peak=0.9, **FOR_EVER)],
)
def test_an_infinite_tail_falls_faster_than_every_power(schedule: Schedule) -> None:
    assert schedule.tail == math.inf
    assert schedule.factor(10**6) < 1e-30


@pytest.mark.parametrize(
    ("tail", "answers"),
    [
        (0.0, [False, True, False]),
        (0.5, [True, True, False]),
        (1.0, [True, True, True]),
        (1.5, [True, False, True]),
        (math.inf, [True, False, True]),
        (None, []),
    ],
)
def test_robbins_monro(tail: float | None, answers: list[bool]) -> None:
    assert list(robbins_monro(tail).values()) == answers


@pytest.mark.parametrize(
    ("schedule", "notice"),
    [
        (MultiStep(["1ep", "9ep"], **LENGTH), "not reached: 9ep (step 90); the schedule has 70 steps"),
        (
            Sgdr(cycle="1ep", **LENGTH | {"total_steps": 50}),
            "ends 50% into cycle 3; lengths with whole cycles: 30 and 70",
        ),
        (Sgdr(cycle="1ep", **LENGTH), None),
        (MultiStep(["1ep", "6ep"], **LENGTH), None),
    ],
)
def test_a_schedule_longer_or_shorter_than_the_run_says_so(schedule: Schedule, notice: str | None) -> None:
    total = 50 if notice and "cycle" in notice else 70
    found = " ".join(warmed(lambda _: schedule, "1ep", total + 4).notices(total + 4))
    assert (notice in found) if notice else not found


def test_one_step_is_enough_for_every_schedule() -> None:
    short: dict[str, Any] = {"steps_per_epoch": 1, "total_steps": 1}
    for schedule in (Sgdr(**short), OneCycle(**short), WarmupStableDecay(**short), MultiStep(["50%"], **short)):
        assert 0 < schedule.factor(0) <= 1


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("patience", [0, 2])
def test_plateau_is_torch_s(mode: str, patience: int) -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.rand(60, generator=generator).cumsum(0).div(torch.arange(1, 61)).tolist()
    schedule = Plateau("val/loss", mode, factor=0.5, patience=patience, min_delta=0.01, floor=0.05)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor=0.5, patience=patience, threshold=0.01, threshold_mode="abs", min_lr=0.05
    )
    for value in values:
        schedule.observe({"val/loss": value})
        reference.step(value)
        assert schedule.factor(0) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert schedule.factor(0) < 0.3


def test_plateau_goes_on_where_it_was() -> None:
    values = [3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    whole, first, second = (Plateau(patience=1) for _ in range(3))
    for value in values:
        whole.observe({"val/loss": value})
    for value in values[:4]:
        first.observe({"val/loss": value})
    second.load_state_dict(first.state_dict())
    for value in values[4:]:
        second.observe({"val/loss": value})
    assert second.state_dict() == whole.state_dict()
    assert whole.drops >= 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(final=1.5, total_steps=5), "final=1.5"),
        (lambda: Step(every="0ep", steps_per_epoch=5, total_steps=5), "every=0ep"),
        (lambda: Step(every="1ep", factor=1.0, steps_per_epoch=5, total_steps=5), "factor=1.0"),
        (lambda: Step(every="3", steps_per_epoch=5, total_steps=5), "every=3: must be a duration"),
        (lambda: Warmup("1ep", steps_per_epoch=5, total_steps=5), "shorter than the run"),
        (lambda: Warmup("10%", -0.1, steps_per_epoch=5, total_steps=50), "warmup_start=-0.1"),
        (
            lambda: Warmup("10%", 0.0, "constant", steps_per_epoch=5, total_steps=50),
            "warmup_start=0.0: must be above 0",
        ),
        (lambda: MultiStep(["2ep", "1ep"], **LENGTH), "milestones="),
        (lambda: MultiStep([], **LENGTH), "milestones="),
        (lambda: InverseTime(0.0, **LENGTH), "k=0.0"),
        (lambda: InverseSqrt("0ep", **LENGTH), "k=0ep"),
        (lambda: Exponential(-1.0, **LENGTH), "k=-1.0"),
        (lambda: Polynomial(0.0, total_steps=5), "power=0.0"),
        (lambda: Sgdr(0, **LENGTH), "cycles=0"),
        (lambda: Sgdr(multiply=0, **LENGTH), "multiply=0"),
        (lambda: Sgdr(peak=1.1, **LENGTH), "peak=1.1"),
        (lambda: OneCycle("8ep", **LENGTH), "rise=8ep: must be shorter"),
        (lambda: WarmupStableDecay("8ep", **LENGTH), "decay=8ep: must be at most"),
        (lambda: Plateau(patience=-1), "patience=-1"),
        (lambda: Plateau(mode="up"), "mode=up"),
    ],
)
def test_refuses_values_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- through the configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", sorted(path.stem for path in (ROOT / "configs" / "schedule").glob("*.yaml")))
def test_every_option_can_have_a_warmup(option: str) -> None:
    overrides = [f"schedule={option}", "schedule.warmup=2ep", "schedule.warmup_start=0.1", "model=mlp", "epochs=8"]
    plan = resolve(compose(overrides))
    first = plan.schedule.factor(plan.schedule.warmup)
    assert plan.schedule.warmup == 2 * plan.steps_per_epoch
    assert plan.factor(0) == pytest.approx(first * (0.1 + 0.9 / plan.schedule.warmup))
    assert plan.factor(plan.schedule.warmup - 1) == pytest.approx(first)


class OwnWarmup(Schedule):
    """Uses a key of the trainer's warm-up for itself."""

    def __init__(self, warmup: float) -> None:
        self.share = warmup

    def factor(self, step: int) -> float:
        return self.share


def test_a_class_with_such_a_key_receives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARSHIFT_TRUST", __name__)
    config = compose(["model=mlp"]) | {"schedule": {"_target_": f"{__name__}.OwnWarmup", "warmup": 0.3}}
    assert resolve(config).factor(0) == 0.3


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_is_scaled_from_a_reference_batch(scaling: str, factor: float) -> None:
    more = [f"lr_scaling={scaling}", "reference_batch=32", "batch_size=128", "optimizer.lr=0.01", "schedule=constant"]
    run = build_run(resolve(compose(["model=mlp", "steps=1", *more])))
    assert train(run) == "completed"
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * factor)
