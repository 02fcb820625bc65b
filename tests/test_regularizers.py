"""Regularizers against autograd, torch.distributions, scikit-learn, AdamW and one device."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.linear_model import ElasticNet as SkElasticNet
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from tests.parallelism.harness import advance, make, spawn, state_of
from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve
from trainer.regularizers import L1, L2, ElasticNet, SoftSharing
from trainer.regularizers.regularizer import Regularizer
from trainer.training.loop import train
from trainer.training.step import train_step

MLP = ["model=mlp", "model.hidden=[16]", "device=cpu", "threads=1"]


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)).double()


def attached(regularizer: Any) -> tuple[nn.Sequential, Any]:
    made = model()
    regularizer.attach(dict(made.named_parameters()), ["0.bias", "1.weight", "1.bias", "2.bias"])
    return made, regularizer


FORMULAS: dict[str, tuple[Callable[[], Regularizer], Callable[[Tensor, float], Tensor]]] = {
    "l2": (lambda: L2(0.3, coefficients={"2.*": 0.7}), lambda w, c: c / 2 * w.square().sum()),
    "l2, not halved": (lambda: L2(0.3, False, {"2.*": 0.7}), lambda w, c: c * w.square().sum()),
    "l1": (lambda: L1(0.3, coefficients={"2.*": 0.7}), lambda w, c: c * w.abs().sum()),
    "l1, halved": (lambda: L1(0.3, True, {"2.*": 0.7}), lambda w, c: c / 2 * w.abs().sum()),
    "l1_l2": (
        lambda: ElasticNet(0.3, 0.2, {"2.*": 0.7}),
        lambda w, c: c * (0.2 * w.abs().sum() + 0.4 * w.square().sum()),
    ),
}


@pytest.mark.proves(
    "regularizer=l2",
    "regularizer=l1",
    "regularizer=l1_l2",
    reference="value and autograd gradient of the formula",
    tolerance="1e-12 relative",
)
@pytest.mark.parametrize("scale", [None, 8.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_are_those_of_the_formula(name: str, scale: float | None) -> None:
    """The pattern 2.* reaches the bias, too, which is excluded otherwise."""
    make_it, formula = FORMULAS[name]
    made, regularizer = attached(make_it())
    expected = formula(made[0].weight, 0.3) + formula(made[2].weight, 0.7) + formula(made[2].bias, 0.7)
    gradients = torch.autograd.grad(expected, list(made.parameters()), allow_unused=True)
    for parameter in made.parameters():
        parameter.grad = torch.ones_like(parameter)
    regularizer.add_gradient(None if scale is None else torch.tensor(scale))
    for parameter, gradient in zip(made.parameters(), gradients, strict=True):
        added = 0.0 if gradient is None else gradient * (scale or 1)
        torch.testing.assert_close(parameter.grad, torch.ones_like(parameter) + added, rtol=1e-12, atol=1e-12)
    assert regularizer.value().item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.autograd.grad(regularizer.value(), made[0].weight)[0].shape == (5, 4)


@pytest.mark.proves(
    "regularizer=soft_sharing",
    reference="torch.distributions.MixtureSameFamily",
    tolerance="1e-6 relative, gradients 1e-5",
)
def test_soft_sharing_is_a_mixture_of_gaussians() -> None:
    made, regularizer = attached(SoftSharing(0.5, components=3, floor=0.01))
    with torch.no_grad():
        regularizer.mixture["logits"].copy_(torch.tensor([0.3, -1.0, 0.2]))
        regularizer.mixture["rho"].copy_(torch.tensor([-1.0, -2.0, 0.1]))
    logits, means, rho = (regularizer.mixture[name] for name in ("logits", "means", "rho"))
    mixture: Any = MixtureSameFamily(Categorical(logits=logits), Normal(means, 0.01 + rho.exp()))  # type: ignore[no-untyped-call]
    expected = -0.5 * sum(mixture.log_prob(weight).sum() for weight in (made[0].weight, made[2].weight))
    assert regularizer.value().item() == pytest.approx(expected.item(), rel=1e-6)
    inputs = [made[0].weight, made[2].weight, logits, means, rho]
    gradients = torch.autograd.grad(expected, inputs)
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    regularizer.add_gradient(torch.tensor(2.0))
    for one, gradient in zip(inputs, gradients, strict=True):
        scale = 2 if one.dtype is torch.float64 else 1  # the loss scale is for the weights only
        torch.testing.assert_close(one.grad, scale * gradient, rtol=1e-5, atol=1e-6)


def test_soft_sharing_starts_over_the_range_of_the_weights() -> None:
    made, regularizer = attached(SoftSharing(components=4))
    weights = torch.cat([made[0].weight.flatten(), made[2].weight.flatten()])
    low, high = weights.min().item(), weights.max().item()
    step = (high - low) / 4
    expected = [low + step * (k + 0.5) for k in range(4)]
    assert regularizer.mixture["means"].tolist() == pytest.approx(expected, rel=1e-5)
    assert regularizer.mixture["rho"].exp().tolist() == pytest.approx([step] * 4, rel=1e-5)


def test_a_restored_mixture_goes_on_as_the_stored_one() -> None:
    weight = nn.Parameter(torch.linspace(-1, 1, 7))
    stored, restored = (SoftSharing(0.5, components=2, lr=0.1) for _ in range(2))

    def step(regularizer: SoftSharing) -> list[float]:
        weight.grad = torch.zeros(7)
        regularizer.add_gradient(None)
        regularizer.stepped()
        return [value for parameter in regularizer.mixture.values() for value in parameter.tolist()]

    for regularizer in (stored, restored):
        regularizer.attach({"w": weight}, [])
    first = step(stored)
    step(stored)
    restored.load_state_dict(copy.deepcopy(stored.state_dict()))  # as through a checkpoint
    assert step(restored) == step(stored) != first
    nothing = SoftSharing()
    nothing.attach({"w": weight}, ["w"])
    nothing.load_state_dict(nothing.state_dict())
    assert nothing.state_dict() == {}


def test_soft_sharing_gathers_weights_around_its_means() -> None:
    """Without a data loss, the mixture and the weights become clusters, so that R falls far below its start."""
    made, regularizer = attached(SoftSharing(1.0, components=2, lr=0.05, floor=0.02))
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-3)
    start = regularizer.value().item()
    for _ in range(400):
        for parameter in made.parameters():
            parameter.grad = torch.zeros_like(parameter)
        regularizer.add_gradient(None)
        optimizer.step()
        regularizer.stepped()
    distance = (made[0].weight.flatten()[:, None] - regularizer.mixture["means"]).abs().amin(1)
    assert regularizer.value().item() < start - 20
    assert distance.quantile(0.9).item() < 0.05


@pytest.mark.proves("regularizer=l1", reference="soft thresholding by hand", tolerance="1e-6 relative, decoupled")
def test_l1_thresholds_softly_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([0.5, -0.2, 0.05, -0.01, 0.0]))
    weight.grad = torch.zeros(5)
    regularizer = L1(1.0, decoupled=True)
    regularizer.attach({"weight": weight}, [])
    regularizer.shrink(lambda _: 0.1, None)
    assert weight.tolist() == pytest.approx([0.4, -0.1, 0.0, 0.0, 0.0])
    regularizer.shrink(lambda _: 0.1, torch.tensor(0.0))  # a step that is skipped
    assert weight.tolist() == pytest.approx([0.4, -0.1, 0.0, 0.0, 0.0])
    weight.grad = None  # a weight that the step does not change
    regularizer.shrink(lambda _: 0.1, None)
    assert weight.tolist() == pytest.approx([0.4, -0.1, 0.0, 0.0, 0.0])


@pytest.mark.proves(
    "regularizer=l1_l2",
    reference="the solution of sklearn.linear_model.ElasticNet",
    tolerance="2e-3; the same weights are 0",
)
def test_the_elastic_net_is_that_of_scikit_learn() -> None:
    """Gradient steps of 1/(2n) |y - Xw|^2, each followed by the decoupled step: proximal gradient descent."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    targets = features @ torch.tensor([2.0, 0, 0, -1, 0, 0, 0.5, 0], dtype=torch.float64)
    targets += 0.1 * torch.randn(60, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(8, dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    regularizer = ElasticNet(0.2, 0.9, decoupled=True)
    regularizer.attach({"weight": weight}, [])
    lr = 0.05
    for _ in range(2000):
        with torch.no_grad():
            weight -= lr * features.T @ (features @ weight - targets) / 60
        regularizer.shrink(lambda _: lr, None)
    fitted = SkElasticNet(alpha=0.2, l1_ratio=0.9, fit_intercept=False, tol=1e-12, max_iter=10**5)
    expected = fitted.fit(features.numpy(), targets.numpy()).coef_
    # explicit shrinking by 1 - lr lambda instead of dividing by 1 + lr lambda: equal up to lr lambda
    assert weight.tolist() == pytest.approx(expected.tolist(), abs=2e-3)
    assert [bool(w == 0) for w in weight] == [bool(w == 0) for w in expected]


# --- in a run -------------------------------------------------------------------------------------------------


def weights_after(*overrides: str, steps: int = 20) -> dict[str, Tensor]:
    run = build_run(resolve(compose([*MLP, f"steps={steps}", *overrides])))
    assert train(run) == "completed"
    return dict(run.model.state_dict())


@pytest.mark.proves(
    "regularizer=l2",
    reference="torch.optim.SGD, Adam and AdamW with weight_decay",
    tolerance="2e-5 relative after 20 steps",
)
@pytest.mark.parametrize(
    ("regularized", "decayed"),
    [
        (["optimizer=momentum", "regularizer=l2", "regularizer.coefficient=0.3"],
         ["optimizer=momentum", "optimizer.weight_decay=0.3"]),
        (["optimizer=adam", "regularizer=l2", "regularizer.coefficient=0.3"],
         ["optimizer=adam", "optimizer.weight_decay=0.3"]),
        (["optimizer=adam", "regularizer=l2", "regularizer.coefficient=0.3", "regularizer.decoupled=true"],
         ["optimizer=adamw", "optimizer.weight_decay=0.3", "optimizer.lr=0.001"]),
    ],
    ids=["coupled, momentum", "coupled, adam", "decoupled"],
)  # fmt: skip
def test_l2_equals_the_weight_decay_of_torch(regularized: list[str], decayed: list[str]) -> None:
    ours, torchs, without = (weights_after(*o) for o in (regularized, decayed, regularized[:1]))
    for name, value in ours.items():
        torch.testing.assert_close(value, torchs[name], rtol=2e-5, atol=2e-6)
    assert not torch.allclose(ours["linear1.weight"], without["linear1.weight"], atol=1e-4)


def test_the_penalty_is_reported_beside_the_data_loss() -> None:
    run = build_run(resolve(compose([*MLP, "steps=3", "every.log=1step", "regularizer=l2"])))
    records: list[dict[str, float]] = []
    run.report = Recorder(records)  # type: ignore[assignment]
    assert train(run) == "completed"
    last = records[-1]
    weights = [p for name, p in run.model.named_parameters() if name.endswith("weight")]
    assert last["train/penalty"] == pytest.approx(
        0.5e-4 * sum(float(w.detach().square().sum()) for w in weights), rel=1e-5
    )
    assert last["train/loss"] > last["train/penalty"]


class Recorder:
    """Keeps the metrics of each step."""

    def __init__(self, records: list[dict[str, float]]) -> None:
        self.records = records

    def record(self, step: int, epoch: float, metrics: dict[str, float], histograms: object) -> None:
        self.records.append(metrics)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def test_a_skipped_step_does_not_shrink() -> None:
    overrides = [*MLP, "regularizer=l2", "regularizer.decoupled=true", "on_nonfinite=skip", "steps=1"]
    run = build_run(resolve(compose(overrides)))
    with torch.no_grad():
        next(iter(run.model.parameters())).fill_(math.inf)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.model.train()
    train_step(run, next(run.batches.epoch(0)))
    assert run.guard.is_nonfinite()
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["regularizer=l2", "optimizer.weight_decay=0.01"],
         "optimizer.weight_decay=0.01: regularizer=l2 penalizes the same weights .linear1.weight"),
        (["regularizer=l1_l2", "optimizer.weight_decay=0.01"], "penalizes the same"),
        (["regularizer=l2", "parameter_groups.h.match=output.weight", "parameter_groups.h.weight_decay=0.1"],
         "parameter_groups.h.weight_decay=0.1: regularizer=l2 penalizes the same weights .output.weight.; set param"),
        (["regularizer=l2", "regularizer.coefficient=0", "regularizer.coefficients={output.weight:1}",
          "optimizer.weight_decay=0.1", "parameter_groups.h.match=linear*", "parameter_groups.h.weight_decay=0"],
         "optimizer.weight_decay=0.1: regularizer=l2 penalizes the same weights .output.weight.; set opt"),
        (["regularizer=l1", "regularizer.coefficients={linar*:1}"],
         "coefficients.linar.: matches no parameter, such as linear1"),
        (["regularizer=l1", "regularizer.coefficients={output*:-1}"], "coefficients.output.=-1: must be at least 0"),
        (["regularizer=l1", "regularizer.coefficient=-1"], "regularizer.coefficient=-1: must be at least 0"),
        (["regularizer=l1_l2", "regularizer.l1_ratio=2"], "regularizer.l1_ratio=2: must be from 0 to 1"),
        (["regularizer=soft_sharing", "regularizer.components=0"], "regularizer.components=0: must be from 1 to 1000"),
        (["regularizer=soft_sharing", "regularizer.floor=0"], "regularizer.floor=0: must be above 0"),
        (["regularizer=soft_sharing", "parallelism=fsdp"], "needs all weights on every rank"),
        (["regularizer=l2", "regularizer.decoupled=true", "parallelism=downpour"], "are stepped by its server"),
    ],
)  # fmt: skip
def test_what_would_mean_something_else_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(compose([*MLP, *overrides]))


def test_weight_decay_is_left_to_a_regularizer_that_decays() -> None:
    assert compose([*MLP, "regularizer=l2"])["optimizer"]["weight_decay"] == 0
    assert compose([*MLP, "regularizer=l1"])["optimizer"]["weight_decay"] == 0.01
    assert compose([*MLP, "regularizer=l1", "optimizer.weight_decay=0.2"])["optimizer"]["weight_decay"] == 0.2
    resolve(compose([*MLP, "regularizer=l1", "optimizer.weight_decay=0.2"]))  # stands beside it
    resolve(compose([  # on other weights
        *MLP, "optimizer.weight_decay=0.1", "parameter_groups.h.match=output.weight",
        "parameter_groups.h.weight_decay=0", "regularizer=l2", "regularizer.coefficient=0",
        "regularizer.coefficients={output.weight:0.01}",
    ]))  # fmt: skip


@pytest.mark.parametrize("optimizer", ["newton", "stochastic_newton", "bfgs", "sgd", "sam"])
def test_the_mixture_is_learned_whatever_the_optimizer_asks_of_the_objective(optimizer: str) -> None:
    run = make(["model=linear", f"optimizer={optimizer}", "regularizer=soft_sharing", "regularizer.lr=0.01",
                "device=cpu", "threads=1"])  # fmt: skip
    assert isinstance(run.regularizer, SoftSharing)
    before = {name: value.detach().clone() for name, value in run.regularizer.mixture.items()}
    advance(run, 1)
    # the first step of Adam is one of length lr against the gradient
    for name, value in run.regularizer.mixture.items():
        assert (value - before[name]).abs().max().item() == pytest.approx(0.01, rel=1e-3), name


def penalized(overrides: list[str], steps: int) -> dict[str, Any]:
    """Weights and the penalty after some steps."""
    run = make([*overrides, f"steps={steps}"])
    advance(run, steps)
    assert run.regularizer is not None
    with torch.no_grad():
        penalty = run.strategy.sum_over_weights(run.regularizer.terms())
    return {"penalty": penalty, "model": state_of(run)["model"]}


IN_RANKS = [(r, p) for r in ("l1", "l2") for p in ("ddp", "fsdp", "tensor", "pipeline", "weird_trick")]


@pytest.mark.slow
@pytest.mark.parametrize(("regularizer", "parallelism"), [*IN_RANKS, ("soft_sharing", "ddp")])
def test_ranks_have_the_penalty_of_one_device(regularizer: str, parallelism: str) -> None:
    lenet = ["model=lenet", "model.channels=[4,8]", "model.hidden=[16]", "model.norm=none", "model.activation=tanh"]
    more = ["device=cpu", "threads=1", "optimizer=momentum", "regularizer.coefficient=0.01", "batch_size=60"]
    overrides = [*lenet, *more, f"regularizer={regularizer}", "schedule=constant"]
    (alone,) = spawn(1, penalized, [*overrides, "parallelism=single"], 10)
    for found in spawn(2, penalized, [*overrides, f"parallelism={parallelism}", "parallelism.devices=2"], 10):
        assert found["penalty"] == pytest.approx(alone["penalty"], rel=1e-5)
        for name, value in alone["model"].items():
            torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5)
