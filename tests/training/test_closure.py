"""The closure contract: same batch, same randomness, as often as an optimizer likes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.base.randomness import StepRandomness
from trainer.configuration.resolve import draw
from trainer.losses import CrossEntropy
from trainer.metrics import Meter, available
from trainer.parallelism.single import Single
from trainer.training.batches import Batch
from trainer.training.gradients import GradientGuard
from trainer.training.objective import Closure

CPU = torch.device("cpu")


def batch(size: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 6, generator=generator)
    return Batch(images, torch.randint(0, 3, (size,), generator=generator), size, torch.arange(size))


def make(model: nn.Module, micro_batch: int = 100, clip_norm: float | None = None) -> tuple[Closure, Meter]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(optimizer, Single(), clip_norm, None, None)
    meter = Meter(available(("accuracy",), 3))
    closure = Closure(
        model, model, CrossEntropy(), Single(), meter, guard, StepRandomness(0, CPU), None, None, micro_batch
    )
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


def test_an_optimizer_that_wants_a_closure_must_be_made_for_ours() -> None:
    config = compose(["model=linear", "optimizer=sgd"])
    config["optimizer"] = {"_target_": "torch.optim.LBFGS", "lr": 1.0}
    with pytest.raises(ConfigurationError, match="LBFGS evaluates the loss itself"):
        draw(config)
