"""The closure contract: every evaluation uses the same batch and the same random numbers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.base.precision import LossScale
from trainer.base.randomness import StepRandomness
from trainer.losses import CrossEntropy
from trainer.metrics import Meter, available
from trainer.parallelism.single import Single
from trainer.training.batches import Batch
from trainer.training.gradients import GradientGuard
from trainer.training.objective import Objective, Penalty

CPU = torch.device("cpu")


def batch(size: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 6, generator=generator)
    return Batch(images, torch.randint(0, 3, (size,), generator=generator), size, torch.arange(size))


def make(
    model: nn.Module, micro_batch: int = 100, clip_norm: float | None = None, penalty: Penalty | None = None
) -> tuple[Objective, Meter]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(optimizer, Single(), clip_norm, None, None)
    meter = Meter(available(("accuracy",), 3))
    closure = Objective(
        model, model, CrossEntropy(), strategy=Single(), meter=meter, guard=guard, randomness=StepRandomness(0, CPU),
        micro_batch=micro_batch, penalty=penalty,
    )  # fmt: skip
    closure.begin(3, batch())
    return closure, meter


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("micro_batch", [100, 5, 3, 1])
def test_gradient_is_autograd_s_of_the_mean_loss_however_the_batch_is_split(micro_batch: int) -> None:
    model, reference = linear().double(), linear().double()
    closure, _ = make(model, micro_batch)
    images, targets, *_ = batch()
    closure.begin(0, Batch(images.double(), targets, 10, torch.arange(10)))
    loss = closure.gradient()
    expected = F.cross_entropy(reference(images.double()), targets)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-12)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)


def test_gradient_is_clipped() -> None:
    closure, _ = make(linear(), clip_norm=0.01)
    closure.gradient()
    assert float(torch.cat([g.flatten() for g in closure.gradients()]).norm()) == pytest.approx(0.01, rel=1e-5)


def test_every_evaluation_has_the_same_randomness_and_another_step_has_another() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    closure, _ = make(model)
    first = float(closure.gradient())
    torch.rand(100)
    assert float(closure.gradient()) == first
    assert float(closure.loss()) == pytest.approx(first, rel=1e-6)
    closure.begin(4, batch())
    assert float(closure.gradient()) != first


def test_only_the_first_evaluation_moves_batch_norm_and_metrics() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    closure, meter = make(model)
    closure.gradient()
    after_first = [b.clone() for b in model.buffers()]
    closure.gradient()
    closure.loss()
    assert all(torch.equal(a, b) for a, b in zip(after_first, model.buffers(), strict=True))
    assert int(model[1].num_batches_tracked) == 1
    logged = meter.read()["loss"]
    closure.begin(4, batch())
    assert logged == pytest.approx(float(closure.gradient()), rel=1e-6)


def test_loss_can_be_differentiated_twice() -> None:
    model = nn.Linear(6, 3)
    closure, _ = make(model)
    images, targets, *_ = batch()
    vector = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad(closure.loss(create_graph=True), model.weight, create_graph=True)
    (product,) = torch.autograd.grad((gradient * vector).sum(), model.weight)
    hessian = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(F.linear(images, w, model.bias.detach()), targets), model.weight.detach()
    )
    torch.testing.assert_close(product, torch.einsum("abcd,cd->ab", hessian, vector), rtol=1e-4, atol=1e-6)


def test_a_loss_without_graph_leaves_none() -> None:
    closure, _ = make(linear())
    assert not closure.loss().requires_grad


class Ridge:
    """lambda / 2 |w|^2 of all parameters."""

    def __init__(self, model: nn.Module, strength: float) -> None:
        self.parameters, self.strength = list(model.parameters()), strength

    def value(self) -> Tensor:
        return self.strength / 2 * torch.stack([p.square().sum() for p in self.parameters]).sum()

    def add_gradient(self, scale: Tensor | None) -> None:
        for p in self.parameters:
            assert p.grad is not None
            p.grad += self.strength * p.detach() * (1.0 if scale is None else scale)


@pytest.mark.parametrize("micro_batch", [100, 3])
def test_a_penalty_counts_once_in_gradient_and_value_and_never_in_the_data_loss(micro_batch: int) -> None:
    model, reference = linear().double(), linear().double()
    closure, meter = make(model, micro_batch, penalty=Ridge(model, 0.3))
    images, targets, *_ = batch()
    closure.begin(0, Batch(images.double(), targets, 10, torch.arange(10)))
    data_loss = F.cross_entropy(reference(images.double()), targets)
    value = data_loss + 0.15 * sum(p.square().sum() for p in reference.parameters())
    value.backward()
    assert float(closure.gradient()) == pytest.approx(float(data_loss.detach()), rel=1e-12)
    assert float(closure.objective()) == pytest.approx(float(value.detach()), rel=1e-12)
    assert float(closure.loss(create_graph=True).detach()) == pytest.approx(float(value.detach()), rel=1e-12)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)
    assert meter.read()["loss"] == pytest.approx(float(data_loss.detach()), rel=1e-12)


def test_a_penalty_is_not_touched_by_the_loss_scale() -> None:
    gradients = []
    for scale in (None, LossScale(CPU, initial=1024.0)):
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        closure = Objective(
            model, model, CrossEntropy(), strategy=Single(), meter=Meter({}), randomness=StepRandomness(0, CPU),
            guard=GradientGuard(optimizer, Single(), 0.5, None, scale), loss_scale=scale, micro_batch=100,
            penalty=Ridge(model, 0.3),
        )  # fmt: skip
        closure.begin(0, batch())
        closure.gradient()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_a_step_is_flagged_if_any_of_its_evaluations_is_not_finite() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(optimizer, Single(), None, None, None)
    closure = Objective(
        model, model, CrossEntropy(), strategy=Single(), meter=Meter({}), guard=guard,
        randomness=StepRandomness(0, CPU), micro_batch=100,
    )  # fmt: skip
    for step, bad in enumerate((None, 1, None, 0)):
        closure.begin(step, batch())
        for evaluation in range(3):
            bias = model[2].bias
            kept = bias.detach().clone()
            with torch.no_grad():
                if evaluation == bad:
                    bias.fill_(torch.nan)
                _ = closure.loss() if evaluation == 1 else closure.gradient()
                bias.copy_(kept)
        guard.end()
    assert guard.read()[1] == [False, True, False, True]


def test_a_value_that_a_line_search_rejects_is_no_failure_of_the_step() -> None:
    model = linear()
    guard = GradientGuard(torch.optim.SGD(model.parameters(), lr=0.1), Single(), None, None, None)
    closure = Objective(
        model, model, CrossEntropy(), strategy=Single(), meter=Meter({}), guard=guard,
        randomness=StepRandomness(0, CPU), micro_batch=100,
    )  # fmt: skip
    closure.begin(0, batch())
    closure.gradient()
    kept = model[2].bias.detach().clone()
    with torch.no_grad():
        model[2].bias.fill_(torch.inf)
        assert not torch.isfinite(closure.objective())
        model[2].bias.copy_(kept)
    guard.end()
    assert guard.read()[1] == [False]
