"""Schedules against torch's schedulers and tables by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from trainer.schedules import Constant, Cosine, CosineWarmup, LinearWarmup, Plateau, Step

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


def test_linear_warmup_by_hand() -> None:
    schedule = LinearWarmup(warmup="4step", start=0.0, final=0.0, steps_per_epoch=5, total_steps=12)
    table = {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.75, 8: 0.5, 11: 0.125}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


def test_linear_warmup_with_ends_by_hand() -> None:
    schedule = LinearWarmup(warmup="50%", start=0.2, final=0.1, steps_per_epoch=5, total_steps=8)
    table = {0: 0.4, 1: 0.6, 3: 1.0, 4: 1.0, 5: 0.775, 7: 0.325}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


def test_cosine_warmup_by_hand() -> None:
    schedule = CosineWarmup(warmup="1ep", start=0.0, final=0.0, steps_per_epoch=4, total_steps=12)
    half = math.sqrt(0.5)
    table = {0: 0.25, 3: 1.0, 4: 1.0, 6: (1 + half) / 2, 8: 0.5, 10: (1 - half) / 2}
    assert {t: schedule.factor(t) for t in table} == pytest.approx(table)


def test_cosine_warmup_after_its_warmup_is_torch_s_cosine() -> None:
    schedule = CosineWarmup(warmup="8step", start=0.0, final=0.3, steps_per_epoch=4, total_steps=8 + STEPS)
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.3))
    assert [schedule.factor(8 + t) for t in range(STEPS)] == pytest.approx(expected, abs=1e-12)


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
        (lambda: LinearWarmup("1ep", 0.0, 0.0, steps_per_epoch=5, total_steps=5), "shorter than the run"),
        (lambda: CosineWarmup("10%", -0.1, 0.0, steps_per_epoch=5, total_steps=50), "start=-0.1"),
        (lambda: Plateau(patience=-1), "patience=-1"),
        (lambda: Plateau(mode="up"), "mode=up"),
    ],
)
def test_refuses_values_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
