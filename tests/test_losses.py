"""Losses against torch's own means, tables by hand and numerical differentiation."""

import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from scipy.special import log_softmax
from sklearn.svm import SVC
from torch import Tensor

from trainer import compose
from trainer.assembly.assemble import build_run
from trainer.configuration.resolve import resolve
from trainer.initializers.kmeans_plus_plus import KMeansPlusPlus
from trainer.losses import MSE, AbsoluteError, CrossEntropy, Hinge, KLDivergence, KMeans
from trainer.models.centroids import Centroids
from trainer.training.loop import train

FOLDER = Path(__file__).parents[1] / "configs" / "loss"
Loss = Callable[[Tensor, Tensor], Tensor]
OURS = [
    CrossEntropy(), CrossEntropy(0.1, 2), MSE(), KLDivergence(0.1), AbsoluteError(), Hinge(), Hinge("weston_watkins"),
    KMeans(),
]  # fmt: skip


def logits(n: int = 12, k: int = 5) -> Tensor:
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(4))


def classes(n: int = 12, k: int = 5) -> Tensor:
    return torch.randint(k, (n,), generator=torch.Generator().manual_seed(5))


@pytest.mark.proves(
    "loss=cross_entropy", reference="values computed by hand, also in bits and smoothed", tolerance="1e-6 relative"
)
def test_cross_entropy_by_hand() -> None:
    # softmax of (ln 1, ln 3) is (1/4, 3/4)
    outputs_NK = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert CrossEntropy()(outputs_NK, torch.tensor([0, 0])).item() == pytest.approx(2 * math.log(4), rel=1e-6)
    assert CrossEntropy(base=2)(outputs_NK, torch.tensor([0, 0])).item() == pytest.approx(4, rel=1e-6)
    # smoothing 0.2 with two classes: 0.9 of the first, 0.1 of the second
    smoothed = CrossEntropy(label_smoothing=0.2)(outputs_NK[:1], torch.tensor([0])).item()
    assert smoothed == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3), rel=1e-6)


@pytest.mark.proves("loss=cross_entropy", reference="scipy's log_softmax in float64", tolerance="1e-5 relative")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_sums_what_scipy_gives(smoothing: float) -> None:
    outputs_NK, targets_N = logits(), classes()
    log_p = log_softmax(outputs_NK.double().numpy(), axis=1)
    expected = 0.0
    for n, target in enumerate(targets_N.tolist()):
        for k in range(5):
            expected -= ((1 - smoothing) * (k == target) + smoothing / 5) * log_p[n, k]
    assert CrossEntropy(smoothing)(outputs_NK, targets_N).item() == pytest.approx(expected, rel=1e-5)
    in_bits = CrossEntropy(smoothing, base=2)(outputs_NK, targets_N).item()
    assert in_bits == pytest.approx(expected * 1.4426950408889634, rel=1e-5)


@pytest.mark.proves("loss=mse", reference="values computed by hand", tolerance="exact")
def test_mse_by_hand() -> None:
    outputs_NK = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    # one-hot (0, 1) and (1, 0): ((1 + 1) + (1 + 1)) / 2
    assert MSE()(outputs_NK, torch.tensor([1, 0])).item() == 2.0
    # values: ((0.25 + 4) + (9 + 1)) / 2
    assert MSE()(outputs_NK, torch.tensor([[0.5, 0.0], [3.0, -2.0]])).item() == 7.125
    # one output and targets without a class axis: (2 - 5)^2 + (1 - 1)^2, without broadcasting
    assert MSE()(torch.tensor([[2.0], [1.0]]), torch.tensor([5.0, 1.0])).item() == 9.0


@pytest.mark.proves("loss=mse", reference="torch.nn.functional.mse_loss", tolerance="1e-6 relative")
def test_mse_over_the_number_of_samples_is_torchs_mean() -> None:
    outputs_NK, targets_N = logits(), classes()
    one_hot_NK = F.one_hot(targets_N, 5).float()
    mean = F.mse_loss(outputs_NK, one_hot_NK).item()
    assert MSE()(outputs_NK, targets_N).item() / 12 == pytest.approx(mean, rel=1e-6)
    assert MSE()(outputs_NK, one_hot_NK).item() / 12 == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("loss", OURS)
def test_parts_add_up_and_the_gradient_is_right(loss: Any) -> None:
    outputs_NK, targets_N = logits().double().requires_grad_(), classes()
    whole = loss(outputs_NK, targets_N)
    assert whole.shape == ()
    parts = sum(loss(outputs_NK[part], targets_N[part]).item() for part in (slice(0, 5), slice(5, 12)))
    assert whole.item() == pytest.approx(parts, rel=1e-12)
    each_N = loss.each(outputs_NK, targets_N)
    assert each_N.shape == (12,)
    assert [loss(outputs_NK[n : n + 1], targets_N[n : n + 1]).item() for n in range(12)] == pytest.approx(
        each_N.tolist()
    )
    assert torch.autograd.gradcheck(lambda out: loss(out, targets_N), outputs_NK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", OURS)
def test_half_precision_is_summed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    """With 4000 samples, a sum in half precision would be wrong by percents, or overflow."""
    outputs_NK, targets_N = (30 * logits(4000)).to(dtype).requires_grad_(), classes(4000)
    total = loss(outputs_NK, targets_N)
    exact = loss(outputs_NK.double(), targets_N)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=1e-5)
    total.backward()
    assert outputs_NK.grad is not None
    assert outputs_NK.grad.dtype == dtype


def test_regression_targets_are_taken_to_the_kind_of_the_outputs() -> None:
    total = MSE()(torch.tensor([[2.0]]), torch.tensor([5.0], dtype=torch.float64))
    assert (total.item(), total.dtype) == (9.0, torch.float32)


@pytest.mark.parametrize("targets", [torch.zeros(12), torch.zeros(5, 12), torch.zeros(12, 1), torch.zeros(1)])
def test_values_of_another_shape_are_refused(targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"targets of shape \(.*\) do not match outputs of shape \(12, 5\)"):
        MSE()(logits(), targets)


@pytest.mark.parametrize("base", ["e", 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("make", [CrossEntropy, KLDivergence])
def test_initial_value_is_the_loss_of_equal_outputs(make: type[CrossEntropy], smoothing: float, base: Any) -> None:
    loss = make(smoothing, base)
    for num_outputs in (2, 10, 1000):
        mean = loss(torch.zeros(4, num_outputs), torch.arange(4) % num_outputs).item() / 4
        assert loss.initial_value(num_outputs) == pytest.approx(mean, rel=1e-5)
    assert MSE().initial_value(10) is None


def test_initial_value_of_bits_is_a_power_of_two() -> None:
    assert CrossEntropy(base=2).initial_value(1024) == pytest.approx(10)
    assert CrossEntropy().initial_value(10) == pytest.approx(2.302585093)


@pytest.mark.parametrize("loss", OURS)
def test_runs_on_the_meta_device(loss: Loss) -> None:
    with torch.device("meta"):
        assert loss(torch.empty(6, 3), torch.empty(6, dtype=torch.int64)).shape == ()


def test_what_the_losses_declare() -> None:
    assert CrossEntropy.tasks == {"classification"}
    assert MSE.tasks == {"classification", "regression"}
    for loss in (CrossEntropy, MSE):
        assert loss.metrics.keys() == loss.tasks
    assert CrossEntropy.metrics["classification"] == ("accuracy", "accuracy_top5", "cross_entropy")
    assert MSE.metrics["regression"] == ("mae",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_smoothing": 1.0}, r"^label_smoothing=1.0: must be in \[0, 1\)$"),
        ({"label_smoothing": -0.1}, "^label_smoothing=-0.1: must be"),
        ({"label_smoothing": float("nan")}, "^label_smoothing=nan: must be"),
        ({"base": 10}, r"^base=10: must be e \(nats\) or 2 \(bits\)$"),
        ({"base": "2"}, "^base=2: must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossEntropy(**arguments)


@pytest.mark.parametrize("clusters", [0, -1, 1.5])
def test_the_number_of_clusters_is_whole_and_above_zero(clusters: Any) -> None:
    assert KMeans(1).num_outputs(10) == 1
    with pytest.raises(ValueError, match=r"^clusters="):
        KMeans(clusters)


# --- divergence, margins, centroids ---------------------------------------------------------------------------


@pytest.mark.proves("loss=kl", reference="torch.nn.functional.kl_div", tolerance="1e-5 relative")
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("base", ["e", 2])
def test_kl_is_torchs(smoothing: float, base: Any) -> None:
    outputs_NK, targets_N = logits(), classes()
    loss = KLDivergence(smoothing, base)
    p_NK = F.one_hot(targets_N, 5) * (1 - smoothing) + smoothing / 5
    expected = F.kl_div(outputs_NK.log_softmax(1), p_NK, reduction="sum").item() / (math.log(2) if base == 2 else 1)
    assert loss(outputs_NK, targets_N).item() == pytest.approx(expected, rel=1e-5)
    assert loss.each(outputs_NK, targets_N).sum().item() == pytest.approx(expected, rel=1e-5)
    perfect = p_NK.log().clamp(min=-1e4)
    assert loss(perfect, targets_N).item() == pytest.approx(0, abs=1e-4)
    one, other = (outputs_NK.clone().requires_grad_() for _ in range(2))
    (gradient,) = torch.autograd.grad(loss(one, targets_N), one)
    (of_cross_entropy,) = torch.autograd.grad(CrossEntropy(smoothing, base)(other, targets_N), other)
    torch.testing.assert_close(gradient, of_cross_entropy)


def test_kl_of_probabilities() -> None:
    """Mixed samples: the targets are distributions."""
    outputs_NK = logits()
    p_NK = logits().flip(0).softmax(1)
    expected = F.kl_div(outputs_NK.log_softmax(1), p_NK, reduction="sum").item()
    assert KLDivergence()(outputs_NK, p_NK).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.proves("loss=absolute", reference="torch.nn.functional.l1_loss", tolerance="1e-6 relative")
def test_absolute_error_is_torchs() -> None:
    outputs_NK, targets_NK = logits(), logits().flip(1)
    expected = F.l1_loss(outputs_NK, targets_NK).item()
    assert AbsoluteError()(outputs_NK, targets_NK).item() / 12 == pytest.approx(expected, rel=1e-6)
    one_hot = F.one_hot(classes(), 5).float()
    assert AbsoluteError()(outputs_NK, classes()).item() / 12 == pytest.approx(F.l1_loss(outputs_NK, one_hot).item())


@pytest.mark.proves(
    "loss=hinge", reference="sklearn.metrics.hinge_loss", tolerance="1e-6 relative, crammer_singer and binary"
)
@pytest.mark.proves(
    "loss=hinge", reference="torch.nn.functional.multi_margin_loss, K times", tolerance="1e-6 relative, weston_watkins"
)
def test_hinge_losses_are_those_of_scikit_learn_and_torch() -> None:
    outputs_NK, targets_N = logits(), classes()
    expected = sklearn.metrics.hinge_loss(targets_N.numpy(), outputs_NK.numpy(), labels=list(range(5)))
    assert Hinge()(outputs_NK, targets_N).item() / 12 == pytest.approx(expected, rel=1e-6)
    expected = 5 * F.multi_margin_loss(outputs_NK, targets_N, reduction="sum").item()
    assert Hinge("weston_watkins")(outputs_NK, targets_N).item() == pytest.approx(expected, rel=1e-6)
    two_N, scores_N1 = classes(k=2), logits(k=1)
    expected = sklearn.metrics.hinge_loss(two_N.numpy() * 2 - 1, scores_N1[:, 0].numpy())
    assert Hinge("binary")(scores_N1, two_N).item() / 12 == pytest.approx(expected, rel=1e-6)


def test_hinge_outputs_and_initial_values() -> None:
    assert [Hinge().num_outputs(5), Hinge("binary").num_outputs(2), KMeans(7).num_outputs(3)] == [5, 1, 7]
    with pytest.raises(ValueError, match="form=binary: needs data with 2 classes, not 5"):
        Hinge("binary").num_outputs(5)
    equal, targets = torch.zeros(12, 5), classes()
    for loss in (Hinge(), Hinge("weston_watkins"), KLDivergence(0.2)):
        assert loss(equal, targets).item() / 12 == pytest.approx(loss.initial_value(5), rel=1e-6)
    assert Hinge("binary")(torch.zeros(12, 1), classes(k=2)).item() / 12 == Hinge("binary").initial_value(2)


@pytest.mark.proves("loss=kmeans", "model=centroids", reference="a step computed by hand", tolerance="1e-6 relative")
def test_the_gradient_of_kmeans_moves_the_nearest_centroid() -> None:
    """UIUC ECE 598: w_k <- w_k + rate (x - w_k) for the nearest centroid, and no change of the others."""
    model = Centroids(input_shape=(2, 1, 1), num_outputs=3)
    with torch.no_grad():
        model.centroids.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]]))
    x_ND = torch.tensor([[3.0, 1.0]]).view(1, 2, 1, 1)
    value = KMeans()(model(x_ND), torch.zeros(1))
    (gradient,) = torch.autograd.grad(value, model.centroids)
    assert value.item() == pytest.approx(1.0)
    torch.testing.assert_close(-gradient, torch.tensor([[0.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]))


@pytest.mark.proves(
    "initializer=kmeans_plus_plus",
    reference="three clusters far apart, each of which gets one centroid",
    tolerance="exact, 5 seeds",
)
def test_kmeans_plus_plus_draws_different_samples() -> None:
    samples = torch.cat([torch.full((50, 2), 0.0), torch.full((2, 2), 10.0), torch.full((2, 2), -10.0)])
    for seed in range(5):
        torch.manual_seed(seed)
        model = Centroids(input_shape=(2, 1, 1), num_outputs=3)
        initializer = KMeansPlusPlus(54)
        initializer.see(samples)
        initializer(model)
        assert sorted(model.centroids[:, 0].tolist()) == [-10.0, 0.0, 10.0]
    with pytest.raises(ValueError, match="no centroids"):
        KMeansPlusPlus().check(torch.nn.Linear(2, 2))


# --- classical learners, whose answers are known (UIUC ECE 598) -----------------------------------------------


def learned(experiment: str, *overrides: str) -> tuple[Any, Any, Any]:
    """The model, and the training samples in float64."""
    run = build_run(resolve(compose([f"experiment={experiment}", "threads=1", "device=cpu", *overrides])))
    assert train(run) == "completed"
    part = run.splits.train
    assert isinstance(part.images_NCHW, Tensor)
    return run.model, part.images_NCHW.flatten(1).double().numpy(), part.targets_N.double().numpy()


@pytest.mark.proves("loss=hinge", reference="the objective of sklearn.svm.SVC", tolerance="1 %")
@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
def test_svm_reaches_the_objective_of_scikit_learn(rate: float) -> None:
    model, x_ND, y_N = learned("svm", f"regularizer.coefficient={rate}", f"optimizer.lr={1 / rate}")
    sign_N = 2 * y_N - 1

    def objective(w_D: Any, bias: float) -> float:
        return float(rate / 2 * w_D @ w_D + np.maximum(0, 1 - sign_N * (x_ND @ w_D + bias)).mean())

    fitted = SVC(kernel="linear", C=1 / (rate * len(x_ND)), tol=1e-8).fit(x_ND, sign_N)
    best = objective(fitted.coef_[0], fitted.intercept_[0])
    ours = objective(model.output.weight.detach().double().numpy()[0], model.output.bias.item())
    assert best <= ours * (1 + 1e-9)
    assert ours < 1.01 * best


@pytest.mark.proves("loss=mse", "loss=absolute", reference="numpy's least-squares solution", tolerance="0.02")
@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["lms", "sign_lms"])
def test_lms_finds_the_least_squares_solution(experiment: str) -> None:
    model, x_ND, y_N = learned(experiment)
    solution = np.linalg.lstsq(np.c_[x_ND, np.ones(len(x_ND))], y_N.ravel(), rcond=None)[0]
    found = np.r_[model.output.weight.detach().double().numpy()[0], model.output.bias.item()]
    assert np.abs(solution).max() > 0.3
    assert np.abs(found - solution).max() < 0.02


@pytest.mark.proves(
    "loss=kmeans",
    "model=centroids",
    "initializer=kmeans_plus_plus",
    reference="the inertia of sklearn.cluster.KMeans",
    tolerance="1 %",
)
@pytest.mark.slow
def test_kmeans_reaches_the_quantization_error_of_scikit_learn() -> None:
    model, x_ND, _ = learned("kmeans")
    w_KD = model.centroids.detach().double().numpy()
    error = ((x_ND[:, None] - w_KD) ** 2).sum(2).min(1).sum()
    best = sklearn.cluster.KMeans(3, n_init=10, random_state=0).fit(x_ND).inertia_
    assert best <= error * (1 + 1e-9)
    assert error < 1.01 * best


@pytest.mark.proves(
    "loss=mse", reference="w <- w + 2 mu e x, sample after sample", tolerance="1e-5 relative over 5 steps"
)
def test_lms_takes_the_steps_of_the_slide() -> None:
    """w <- w + 2 mu e x, sample after sample."""
    overrides = ["experiment=lms", "steps=5", "epochs=null", "threads=1", "device=cpu", "sampler=sequential"]
    run = build_run(resolve(compose(overrides)))
    w_D, bias = run.model.output.weight.detach().clone()[0], run.model.output.bias.detach().clone()  # type: ignore
    assert train(run) == "completed"
    for x_D, d in zip(
        run.splits.train.images_NCHW[:5].flatten(1), run.splits.train.targets_N[:5].flatten(), strict=True
    ):
        error = d - x_D @ w_D - bias
        w_D, bias = w_D + 2 * 0.002 * error * x_D, bias + 2 * 0.002 * error
    torch.testing.assert_close(run.model.output.weight.detach()[0], w_D, rtol=1e-5, atol=1e-7)  # type: ignore


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_yaml_lists_every_key_with_its_default(path: Path) -> None:
    assert path.read_text().startswith("# ")
    keys: Any = OmegaConf.to_container(OmegaConf.load(path))
    module, _, name = keys.pop("_target_").rpartition(".")
    loss = getattr(importlib.import_module(module), name)
    assert keys == {key: p.default for key, p in inspect.signature(loss).parameters.items()}
    assert name.lower().startswith(path.stem.replace("_", ""))
