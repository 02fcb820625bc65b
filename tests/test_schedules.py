"""Schedules against torch's schedulers and tables by hand."""

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.optim import lr_scheduler

from tests.cut_runs import check_cut_run
from tests.parallelism.harness import advance, difference, make, spawn, state_of
from trainer import assemble, compose, fit
from trainer.assembly.assemble import build_run
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve
from trainer.contracts import Schedule
from trainer.schedules import (
    Constant,
    Cosine,
    Exponential,
    Grown,
    Growth,
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


@pytest.mark.proves("schedule=constant", reference="the number 1", tolerance="exact")
def test_constant() -> None:
    assert [Constant().factor(t) for t in (0, 1, 10**9)] == [1, 1, 1]


@pytest.mark.proves(
    "schedule=cosine", reference="torch.optim.lr_scheduler.CosineAnnealingLR", tolerance="1e-12 over 40 steps"
)
def test_cosine_is_torch_s() -> None:
    schedule = Cosine(final=0.1, total_steps=STEPS)
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.1))
    assert [schedule.factor(t) for t in range(STEPS)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.proves("schedule=step", reference="torch.optim.lr_scheduler.StepLR", tolerance="1e-12 over 40 steps")
def test_step_is_torch_s() -> None:
    schedule = Step(every="3ep", factor=0.5, steps_per_epoch=5, total_steps=STEPS)
    expected = torch_factors(lambda o: lr_scheduler.StepLR(o, step_size=15, gamma=0.5))
    assert [schedule.factor(t) for t in range(STEPS)] == pytest.approx(expected, abs=1e-12)


def warmed(make: Callable[[int], Schedule], warmup: str, total_steps: int, **more: Any) -> Schedule:
    """A schedule with a warm-up, as the configuration builds it; `make` takes the remaining length."""
    rise = Warmup(warmup, **more, steps_per_epoch=4, total_steps=total_steps)
    return Warmed(rise, make(total_steps - rise.steps))


@pytest.mark.proves("schedule=linear_warmup", reference="a table computed by hand", tolerance="1e-6 relative")
def test_linear_warmup_by_hand() -> None:
    schedule = warmed(lambda total: Polynomial(total_steps=total), "1ep", 12)
    table = {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.75, 8: 0.5, 11: 0.125}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)
    assert schedule.warmup == 4


def test_linear_warmup_with_ends_by_hand() -> None:
    schedule = warmed(lambda total: Polynomial(final=0.1, total_steps=total), "50%", 8, warmup_start=0.2)
    table = {0: 0.4, 1: 0.6, 3: 1.0, 4: 1.0, 5: 0.775, 7: 0.325}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


@pytest.mark.proves("schedule=cosine_warmup", reference="a table computed by hand", tolerance="1e-6 relative")
def test_cosine_warmup_by_hand() -> None:
    schedule = warmed(lambda total: Cosine(total_steps=total), "1ep", 12)
    half = math.sqrt(0.5)
    table = {0: 0.25, 3: 1.0, 4: 1.0, 6: (1 + half) / 2, 8: 0.5, 10: (1 - half) / 2}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


@pytest.mark.proves(
    "schedule=linear_warmup",
    "schedule=cosine_warmup",
    "schedule=sgdr_warmup",
    reference="torch.optim.lr_scheduler.SequentialLR of LinearLR or ConstantLR and a schedule, for the warm-up",
    tolerance="1e-12 over 40 steps",
)
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


@pytest.mark.proves(
    "schedule=multistep", reference="torch.optim.lr_scheduler.MultiStepLR", tolerance="1e-12 over 40 steps"
)
@pytest.mark.proves(
    "schedule=multiply", reference="torch.optim.lr_scheduler.ExponentialLR", tolerance="1e-12 over 40 steps"
)
@pytest.mark.proves(
    "schedule=exponential", reference="torch.optim.lr_scheduler.ExponentialLR", tolerance="1e-12 over 40 steps"
)
@pytest.mark.proves("schedule=linear", reference="torch.optim.lr_scheduler.LinearLR", tolerance="1e-12 over 40 steps")
@pytest.mark.proves(
    "schedule=polynomial", reference="torch.optim.lr_scheduler.PolynomialLR", tolerance="1e-12 over 40 steps"
)
@pytest.mark.proves(
    "schedule=sgdr",
    "schedule=sgdr_warmup",
    reference="torch.optim.lr_scheduler.CosineAnnealingWarmRestarts",
    tolerance="1e-12 over 40 steps",
)
@pytest.mark.proves(
    "schedule=one_cycle", reference="torch.optim.lr_scheduler.OneCycleLR", tolerance="1e-12 over 40 steps"
)
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


@pytest.mark.proves(
    "schedule=halve",
    "schedule=inverse_time",
    "schedule=inverse_sqrt",
    "schedule=sgdr",
    "schedule=warmup_stable_decay",
    reference="tables computed by hand",
    tolerance="1e-6 relative",
)
@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    schedule, table = BY_HAND[name]
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


@pytest.mark.proves(
    "schedule=inverse_sqrt", reference="equation 3 of Vaswani et al. 2017", tolerance="1e-6 relative over 400 steps"
)
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
        (Step("8ep", **LENGTH), "no drop: every 8ep is 80 steps; the schedule has 70"),
        (Step("6ep", **LENGTH), ""),
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


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (lambda length: Sgdr(**length), (10, 30, 70)),
        (lambda length: Sgdr(cycle="1ep", **length), (10, 30, 70)),
        (lambda length: Sgdr(cycle="2ep", multiply=1, **length), (20, 40, 60)),
        (lambda length: Sgdr(cycle="8ep", **length), ()),
        (lambda length: Constant(), ()),
    ],
)
def test_a_cycle_ends_before_the_rate_rises_again(schedule: Any, ends: tuple[int, ...]) -> None:
    found = schedule(LENGTH)
    assert found.cycle_ends(70) == ends
    factors = [found.factor(step) for step in range(70)]
    rises = [step for step in range(1, 70) if factors[step] > factors[step - 1]]
    assert rises == [end for end in ends if end < 70]
    assert warmed(lambda _: schedule(LENGTH), "4step", 74).cycle_ends(74) == tuple(end + 4 for end in ends)


def test_one_step_is_enough_for_every_schedule() -> None:
    short: dict[str, Any] = {"steps_per_epoch": 1, "total_steps": 1}
    for schedule in (Sgdr(**short), OneCycle(**short), WarmupStableDecay(**short), MultiStep(["50%"], **short)):
        assert 0 < schedule.factor(0) <= 1


@pytest.mark.proves(
    "schedule=plateau",
    reference="torch.optim.lr_scheduler.ReduceLROnPlateau",
    tolerance="1e-6 relative over 60 evaluations",
)
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


@pytest.mark.proves(
    "schedule=grow_batch", reference="a table computed by hand", tolerance="1e-6 relative; batch sizes exactly"
)
def test_the_batch_grows_where_the_rate_would_drop_by_hand() -> None:
    """Smith et al. 2018: their ratio stays that of the schedule."""
    step = Step("10step", 0.1, steps_per_epoch=10, total_steps=40)
    grown = Grown(Growth(1000, batch_size=16, num_train=5000), step)
    assert grown.batch_sizes == [(10, 160), (20, 1000)]  # then 16,000 are wanted, so that the rate drops
    table = {0: 1.0, 9: 1.0, 10: 1.0, 19: 1.0, 20: 0.625, 29: 0.625, 30: 0.0625, 39: 0.0625}
    assert {t: grown.factor(t) for t in table} == pytest.approx(table)


@pytest.mark.proves(
    "schedule=grow_batch",
    reference="the ratio of rate and batch size under multistep, step and multiply",
    tolerance="1e-6 relative over 40 steps",
)
@pytest.mark.parametrize(
    "schedule",
    [
        MultiStep(["7step", "50%"], 0.3, steps_per_epoch=5, total_steps=STEPS),
        Step("5step", 0.5, 0.05, steps_per_epoch=5, total_steps=STEPS),
        Step("1step", 0.9, steps_per_epoch=5, total_steps=STEPS),
    ],
)
def test_growth_keeps_the_ratio_of_rate_and_batch_size(schedule: Schedule) -> None:
    grown, sizes = Grown(Growth(300, batch_size=20, num_train=3000), schedule), {}
    for moment in range(STEPS):
        sizes[moment] = dict(grown.batch_sizes).get(moment, sizes.get(moment - 1, 20))
        assert 20 * grown.factor(moment) / sizes[moment] == pytest.approx(schedule.factor(moment))
    assert list(sizes.values()) == sorted(sizes.values())
    assert max(sizes.values()) <= 300


def test_the_largest_batch_is_a_tenth_of_the_training_set() -> None:
    assert Growth("auto", batch_size=16, num_train=1437).max_batch == 143
    assert Growth("auto", batch_size=200, num_train=1437).max_batch == 200


def test_growth_that_does_not_happen_is_said() -> None:
    for growth, schedule, silent in (
        (Growth(64, batch_size=64, num_train=1437), Step("3ep", **LENGTH), False),
        (Growth(80, batch_size=64, num_train=1437), Step("3ep", **LENGTH), True),
        (Growth(80, batch_size=64, num_train=1437), MultiStep(["9ep"], **LENGTH), False),
    ):
        grown = Grown(growth, schedule)
        assert list(schedule.notices(70)) == [line for line in grown.notices(70) if "max_batch" not in line]
        assert any("the batch does not grow" in line for line in grown.notices(70)) != silent


def test_a_warmup_comes_before_the_growth() -> None:
    plan = resolve(compose(["schedule=grow_batch", "schedule.every=10ep", "schedule.warmup=2ep", "epochs=20"]))
    (phase,) = plan.timeline.phases[1:]
    assert phase.start == (12, 0)
    assert phase.batch_size == 143


GROWING = [
    "model=mlp", "model.hidden=[16]", "device=cpu", "threads=1", "early_stopping=null", "optimizer=momentum",
    "epochs=5", "schedule=grow_batch", "schedule.every=40%", "schedule.factor=0.4", "schedule.max_batch=200",
]  # fmt: skip


def test_a_growing_batch_trains_the_planned_steps_and_evaluates_at_every_epoch(tmp_path: Path) -> None:
    run = assemble(compose([*GROWING, "every.log=1step"]), tmp_path / "run")
    sizes, plan = [], run.blueprint
    advance = run.advance
    run.advance = lambda count: sizes.append(count) or advance(count)  # type: ignore[method-assign, func-returns-value]
    result = fit(run)
    assert sum(sizes) == 5 * 1437
    assert result.steps == len(sizes) == plan.total_steps < plan.timeline.moments == 5 * 23
    assert set(sizes[:46]) == {64, 1437 % 64}
    assert sizes[46:] == [*[160] * 8, 157] * 2 + [*[200] * 7, 37]
    evaluated = [record for record in result.history if "val/loss" in record]
    assert [record["epoch"] for record in evaluated] == [1, 2, 3, 4, 5]
    rates = [record["lr"] for record in result.history if "lr" in record]
    base = run.base_lrs[0]
    assert rates[0] == rates[50] == pytest.approx(base)
    assert rates[-1] == pytest.approx(base * 0.4**2 * 200 / 64)


@pytest.mark.parametrize("step", [50, 66, 67])
@pytest.mark.parametrize("more", [[], ["accumulate=3", "averaging=swa", "augmentation=mixup"]])
def test_a_growing_batch_is_resumed_to_the_same_bits(step: int, more: list[str], tmp_path: Path) -> None:
    check_cut_run([*GROWING, "every.checkpoint=5step", *more], step, tmp_path)


def test_a_run_that_grew_is_longer_only_with_the_length_of_its_schedule(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", [word for word in GROWING if word != "epochs=5"]
    fit(assemble(compose(GROWING), folder))
    (folder / "result.json").unlink()
    with pytest.raises(ConfigurationError, match="schedule_length"):
        assemble(compose([*other, "epochs=9"]), folder, resume=True)
    result = fit(assemble(compose([*other, "epochs=6", "schedule_length=5ep"]), folder, resume=True))
    assert result.history[-1]["epoch"] == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.max_batch=63"], r"schedule.max_batch=63: must be null, auto or a whole number from 64 .* to 1437"),
        (["schedule.max_batch=1438"], "schedule.max_batch=1438: must be"),
        (["schedule.max_batch=100.5"], "schedule.max_batch=100.5: must be"),
        (["schedule.max_batch=most"], "schedule.max_batch=most: must be"),
        (["sampler=fresh_batch"], "schedule.max_batch: sampler=fresh_batch draws batches of one size"),
        (["optimizer=adagrad", "parallelism=downpour", "parallelism.devices=2"], "parallelism=downpour take steps of"),
        (["schedule.warmup=0ep", "schedule._target_=trainer.schedules.Cosine", "~schedule.every", "~schedule.factor",
          "~schedule.floor"], "schedule.max_batch=143: must be null for a schedule whose rate .* step, multistep"),
    ],
)  # fmt: skip
def test_growth_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(compose(["schedule=grow_batch", *overrides]))


def steps_of_ranks(overrides: list[str], steps: int) -> dict[str, object]:
    run = make(overrides, double=True)
    return {"losses": advance(run, steps), **state_of(run)}


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp", "pipeline"])
def test_ranks_whose_batch_grows_have_the_weights_of_one_device(parallelism: str) -> None:
    overrides = [*GROWING, "accumulate=3"]
    alone = steps_of_ranks(overrides, 60)
    spread = [f"parallelism={parallelism}", "parallelism.devices=2"]
    for answer in spawn(2, steps_of_ranks, [*overrides, *spread], 60):
        assert difference(alone, answer) == {key: pytest.approx(0, abs=1e-10) for key in difference(alone, answer)}


BEYOND = 1 + 1e-9
SHARE = ([0.0, 1.0], [-1e-9, BEYOND])
INSIDE = ([1e-9, 1 - 1e-9], [0.0, 1.0])
DURATION = (["1step", "1ep"], ["0step", "0ep", "3"])
POSITIVE = ([1e-9, 7.0], [0.0, -1.0])
# schedule -> argument -> allowed values, refused values; the schedule has 70 steps, 10 in an epoch
ARGUMENTS: dict[Callable[..., Any], dict[str, tuple[list[Any], list[Any]]]] = {
    Step: {"every": DURATION, "factor": INSIDE, "floor": SHARE},
    MultiStep: {
        "milestones": ([["1step"], ["1step", "2step"]], [[], ["0step"], ["2step", "2step"], ["3step", "2step"]]),
        "factor": INSIDE,
    },
    InverseTime: {"k": POSITIVE, "unit": DURATION},
    InverseSqrt: {"k": DURATION},
    Exponential: {"k": POSITIVE, "unit": DURATION},
    Polynomial: {"power": POSITIVE, "final": SHARE},
    Cosine: {"final": SHARE},
    WarmupStableDecay: {
        "decay": (["1step", "100%", "7ep"], ["0step", "71step"]),
        "shape": (["linear", "cosine", "sqrt"], ["square"]),
        "final": SHARE,
    },
    Sgdr: {
        "cycles": ([1, 5, 1000], [0, 1.5, 1001]),
        "cycle": ([None, "1step", "9ep"], ["0step"]),
        "multiply": ([1, 3, 1000], [0, 1.5, 1001]),
        "peak": ([1e-9, 1.0], [0.0, BEYOND]),
        "final": SHARE,
    },
    OneCycle: {"rise": (["1step", "69step", "99.9%"], ["0step", "70step", "100%"]), "start": SHARE, "final": SHARE},
    Plateau: {"factor": INSIDE, "patience": ([0, 1], [-1, 0.5]), "floor": SHARE},
    Warmup: {
        "warmup": (["0step", "69step", "6.9ep"], ["70step", "7ep", "100%"]),
        "warmup_start": SHARE,
        "warmup_shape": (["linear"], ["square"]),
    },
}
NEEDED: dict[Callable[..., Any], dict[str, Any]] = {
    Step: {"every": "1ep"}, MultiStep: {"milestones": ["1ep"]}, Warmup: {"warmup": "1ep"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "name"),
    [(make, name) for make, arguments in ARGUMENTS.items() for name in arguments],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_an_argument_of_a_schedule_has_this_range(make: Callable[..., Any], name: str) -> None:
    allowed, refused = ARGUMENTS[make][name]
    length = {key: value for key, value in LENGTH.items() if key in inspect.signature(make).parameters}
    for value in allowed:
        make(**NEEDED.get(make, {}) | length | {name: value})
    for value in refused:
        with pytest.raises(ValueError, match=f"^{name}="):
            make(**NEEDED.get(make, {}) | length | {name: value})


def test_a_constant_warmup_starts_above_0() -> None:
    Warmup("1ep", 0.1, "constant", **LENGTH)
    with pytest.raises(ValueError, match=r"^warmup_start=0\.0"):
        Warmup("1ep", 0.0, "constant", **LENGTH)


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ({"cycles": 3, "multiply": 1}, [0, 23, 47, 70]),
        ({"cycles": 3, "multiply": 2}, [0, 10, 30, 70]),
        ({"cycles": 2, "multiply": 3}, [0, 18, 70]),
    ],
)
def test_cycles_that_fill_the_schedule_begin_at_these_steps(settings: dict[str, int], starts: list[int]) -> None:
    schedule = Sgdr(**settings, **LENGTH)
    assert [step for step in range(70) if schedule.place(step)[1] == 0] == starts[:-1]
    lengths = [b - a for a, b in pairwise(starts)]
    assert [schedule.place(start) for start in starts[:-1]] == [(n, 0, length) for n, length in enumerate(lengths)]


def test_cycles_of_one_length_repeat() -> None:
    schedule = Sgdr(cycle="2ep", multiply=1, **LENGTH)
    assert [schedule.place(step) for step in (0, 19, 20, 45)] == [(0, 0, 20), (0, 19, 20), (1, 0, 20), (2, 5, 20)]


@pytest.mark.parametrize(
    ("settings", "tail"),
    [
        ({"peak": 0.5}, 1.0), ({"peak": 0.5, "multiply": 4}, 0.5), ({"peak": 0.5, "multiply": 1}, math.inf),
        ({"peak": 1.0}, 0.0), ({"peak": 1.0, "multiply": 1}, 0.0), ({"peak": 0.5, "final": 0.1}, 0.0),
        ({"peak": 0.5, "cycle": None}, None),
    ],
)  # fmt: skip
def test_the_tail_of_cycles_is_that_of_their_peaks(settings: dict[str, Any], tail: float | None) -> None:
    assert Sgdr(**{"cycle": "1ep", **settings}, **LENGTH).tail == tail


def test_one_cycle_can_rise_in_a_single_step() -> None:
    assert OneCycle("1step", **LENGTH).factor(0) == 1


@pytest.mark.parametrize(("floor", "tail"), [(0.0, math.inf), (1e-9, 0.0), (0.5, 0.0), (1.0, 0.0)])
def test_the_tail_of_steps_is_flat_above_a_floor(floor: float, tail: float) -> None:
    assert Step("1ep", floor=floor, **LENGTH).tail == tail


def test_a_drop_at_the_end_of_the_schedule_is_none() -> None:
    for every, moments, is_told in (("69step", [69], False), ("70step", [], True)):
        step = Step(every, **LENGTH)
        assert list(step.drop_moments or ()) == moments and bool(list(step.notices(70))) == is_told
    milestones = MultiStep(["69step", "70step"], **LENGTH)
    assert milestones.drop_moments == [69]
    assert list(milestones.notices(70)) == ["not reached: 70step (step 70); the schedule has 70 steps"]


def test_the_decay_takes_the_last_steps() -> None:
    schedule = WarmupStableDecay("20step", "linear", 0.2, **LENGTH)
    assert [schedule.factor(step) for step in (0, 50, 55, 60)] == [1, 1, pytest.approx(0.8), pytest.approx(0.6)]


def test_cycles_shorter_than_a_step_end_where_the_next_begins() -> None:
    schedule = Sgdr(5, multiply=1, steps_per_epoch=1, total_steps=2)
    assert schedule.cycle_ends(2) == (1, 2) and schedule.cycle_ends(1) == (1,)
    assert Sgdr(3, multiply=1, **LENGTH).starts == [0, 23, 47, 70]
    assert Sgdr(3, multiply=2, **LENGTH).starts == [0, 10, 30, 70]


def test_a_share_of_a_short_schedule_leaves_a_step_to_fall() -> None:
    assert OneCycle("90%", steps_per_epoch=3, total_steps=3).rise == 2
    assert [OneCycle(rise, **LENGTH).rise for rise in ("50%", "99.9%", "30step")] == [35, 69, 30]


class Halved(Step):
    """Half of the rate from the beginning."""

    def factor(self, step: int) -> float:
        return super().factor(step) / 2


def test_a_batch_grows_by_the_drops_since_the_first_step() -> None:
    growth = Growth(1000, batch_size=16, num_train=5000)
    whole, half = (Grown(growth, made("1ep", factor=0.5, **LENGTH)) for made in (Step, Halved))
    assert half.batch_sizes == whole.batch_sizes != []
