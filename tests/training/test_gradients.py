"""The gradient guard against torch's own clipping and scaler."""

import math

import pytest
import torch
from torch import Tensor, nn

from trainer.base.precision import LossScale
from trainer.parallelism.single import Single
from trainer.training.gradients import GradientGuard


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 4), (5,), (3, 5))]


def give_gradients(params: list[nn.Parameter], scale: float, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * scale
    return [p.grad for p in params if p.grad is not None]


LOSS = torch.tensor(1.0)


def take(guard: GradientGuard, gradients: list[Tensor], loss: Tensor = LOSS) -> None:
    """One step of a plain optimizer, as in training."""
    guard.begin()
    guard.check(gradients, loss, leave_to_kernel=guard.leaves_to_kernel)
    guard.step()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scale", [0.01, 10.0])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_clips_by_norm_as_torch_does(fused: bool, scale: float, kind: type[torch.optim.Optimizer]) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, reference = kind(ours, lr=0.1, fused=fused), kind(theirs, lr=0.1)  # type: ignore[call-arg]
    guard = GradientGuard(optimizer, Single(), clip_norm=1.0, clip_value=None, loss_scale=None)
    for step in range(4):
        gradients = give_gradients(ours, scale, seed=step)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        take(guard, gradients, LOSS)
        give_gradients(theirs, scale, seed=step)
        nn.utils.clip_grad_norm_(theirs, 1.0)
        reference.step()
        assert guard.read() == (pytest.approx(norm, rel=1e-5), [False])
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=1e-6)


def test_the_clipped_norm_is_exactly_the_limit() -> None:
    params = parameters()
    guard = GradientGuard(torch.optim.SGD(params, lr=1.0), Single(), 0.5, None, None)
    gradients = give_gradients(params, 10.0)
    guard.check(gradients, LOSS)
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(0.5, rel=1e-5)


def test_clips_by_value_as_torch_does() -> None:
    ours, theirs = parameters(), parameters()
    guard = GradientGuard(torch.optim.SGD(ours, lr=0.1, fused=True), Single(), None, 0.3, None)
    take(guard, give_gradients(ours, 1.0), LOSS)
    give_gradients(theirs, 1.0)
    nn.utils.clip_grad_value_(theirs, 0.3)
    torch.optim.SGD(theirs, lr=0.1).step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("bad", ["gradient", "loss"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda p, fused: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=fused),
        lambda p, fused: torch.optim.AdamW(p, lr=0.1, fused=fused),
    ],
    ids=["momentum", "adamw"],
)
def test_a_step_that_is_not_finite_is_as_if_it_never_was(bad: str, fused: bool, first: bool, make) -> None:
    ours, theirs = parameters(), parameters()
    guard = GradientGuard(make(ours, fused), Single(), 1.0, None, None)
    reference_guard = GradientGuard(make(theirs, fused), Single(), 1.0, None, None)
    for step in range(4):
        if step == (0 if first else 2):
            gradients = give_gradients(ours, 1.0)
            loss = torch.tensor(math.inf)
            if bad == "gradient":
                gradients[1][2], loss = math.nan, LOSS
            take(guard, gradients, loss)
        take(guard, give_gradients(ours, 1.0, seed=step), LOSS)
        take(reference_guard, give_gradients(theirs, 1.0, seed=step), LOSS)
    flags = guard.read()[1]
    assert flags == [i == (0 if first else 2) for i in range(5)]
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_loss_scale_moves_as_torch_s_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    ours = LossScale(torch.device("cpu"), initial=1024.0, growth_interval=3)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for bad in (0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0):
        parameter.grad = torch.full((1,), math.inf if bad else 1.0)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
        ours.update(torch.tensor(float(bad)))
        assert float(ours.scale) == scaler.get_scale()


def test_scaled_gradients_give_the_step_of_plain_ones() -> None:
    ours, theirs = parameters(), parameters()
    scale = LossScale(torch.device("cpu"), initial=4096.0)
    guard = GradientGuard(torch.optim.AdamW(ours, lr=0.1, fused=True), Single(), 1.0, None, scale)
    plain = GradientGuard(torch.optim.AdamW(theirs, lr=0.1, fused=True), Single(), 1.0, None, None)
    for step in range(3):
        scaled = give_gradients(ours, 1.0, seed=step)
        torch._foreach_mul_(scaled, 4096.0)
        take(guard, scaled, LOSS)
        take(plain, give_gradients(theirs, 1.0, seed=step), LOSS)
    assert guard.read()[0] == pytest.approx(plain.read()[0])
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_clipping_by_value_does_not_hide_a_gradient_that_is_not_finite() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    guard = GradientGuard(torch.optim.SGD(params, lr=0.1, fused=True), Single(), 1.0, 0.3, None)
    gradients = give_gradients(params, 1.0)
    gradients[0][0, 0] = math.inf
    take(guard, gradients, LOSS)
    assert guard.read()[1] == [True]
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_double_precision_trains_under_a_fused_optimizer() -> None:
    ours, theirs = ([nn.Parameter(p.detach().double()) for p in parameters()] for _ in range(2))
    guard = GradientGuard(torch.optim.AdamW(ours, lr=0.1, fused=True), Single(), 1.0, None, None)
    reference = torch.optim.AdamW(theirs, lr=0.1)
    generator = torch.Generator().manual_seed(3)
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        q.grad = p.grad.clone()
    take(guard, [p.grad for p in ours if p.grad is not None], LOSS.double())
    norm = torch.cat([q.grad.flatten() for q in theirs if q.grad is not None]).norm()
    for q in theirs:
        q.grad = q.grad / norm.clamp(min=1.0) if q.grad is not None else None
    reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
