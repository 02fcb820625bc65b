"""Losses against torch's own means, tables by hand and numerical differentiation."""

import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from scipy.special import log_softmax
from torch import Tensor

from trainer.losses import MSE, CrossEntropy

FOLDER = Path(__file__).parents[1] / "configs" / "loss"
Loss = Callable[[Tensor, Tensor], Tensor]


def logits(n: int = 12, k: int = 5) -> Tensor:
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(4))


def classes(n: int = 12, k: int = 5) -> Tensor:
    return torch.randint(k, (n,), generator=torch.Generator().manual_seed(5))


def test_cross_entropy_by_hand() -> None:
    # softmax of (ln 1, ln 3) is (1/4, 3/4)
    outputs_NK = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert CrossEntropy()(outputs_NK, torch.tensor([0, 0])).item() == pytest.approx(2 * math.log(4), rel=1e-6)
    assert CrossEntropy(base=2)(outputs_NK, torch.tensor([0, 0])).item() == pytest.approx(4, rel=1e-6)
    # smoothing 0.2 with two classes: 0.9 of the first, 0.1 of the second
    smoothed = CrossEntropy(label_smoothing=0.2)(outputs_NK[:1], torch.tensor([0])).item()
    assert smoothed == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3), rel=1e-6)


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


def test_mse_by_hand() -> None:
    outputs_NK = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    # one-hot (0, 1) and (1, 0): ((1 + 1) + (1 + 1)) / 2
    assert MSE()(outputs_NK, torch.tensor([1, 0])).item() == 2.0
    # values: ((0.25 + 4) + (9 + 1)) / 2
    assert MSE()(outputs_NK, torch.tensor([[0.5, 0.0], [3.0, -2.0]])).item() == 7.125
    # one output and targets without a class axis: (2 - 5)^2 + (1 - 1)^2, without broadcasting
    assert MSE()(torch.tensor([[2.0], [1.0]]), torch.tensor([5.0, 1.0])).item() == 9.0


def test_mse_over_the_number_of_samples_is_torchs_mean() -> None:
    outputs_NK, targets_N = logits(), classes()
    one_hot_NK = F.one_hot(targets_N, 5).float()
    mean = F.mse_loss(outputs_NK, one_hot_NK).item()
    assert MSE()(outputs_NK, targets_N).item() / 12 == pytest.approx(mean, rel=1e-6)
    assert MSE()(outputs_NK, one_hot_NK).item() / 12 == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.1, 2), MSE()])
def test_parts_add_up_and_the_gradient_is_right(loss: Loss) -> None:
    outputs_NK, targets_N = logits().double().requires_grad_(), classes()
    whole = loss(outputs_NK, targets_N)
    assert whole.shape == ()
    parts = sum(loss(outputs_NK[part], targets_N[part]).item() for part in (slice(0, 5), slice(5, 12)))
    assert whole.item() == pytest.approx(parts, rel=1e-12)
    assert torch.autograd.gradcheck(lambda out: loss(out, targets_N), outputs_NK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.1, 2), MSE()])
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


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.3), CrossEntropy(base=2), CrossEntropy(0.3, 2)])
def test_initial_value_is_the_loss_of_equal_outputs(loss: CrossEntropy) -> None:
    for num_outputs in (2, 10, 1000):
        mean = loss(torch.zeros(4, num_outputs), torch.arange(4) % num_outputs).item() / 4
        assert loss.initial_value(num_outputs) == pytest.approx(mean, rel=1e-6)
    assert MSE().initial_value(10) is None


def test_initial_value_of_bits_is_a_power_of_two() -> None:
    assert CrossEntropy(base=2).initial_value(1024) == pytest.approx(10)
    assert CrossEntropy().initial_value(10) == pytest.approx(2.302585093)


@pytest.mark.parametrize("loss", [CrossEntropy(0.1, 2), MSE()])
def test_runs_on_the_meta_device(loss: Loss) -> None:
    with torch.device("meta"):
        assert loss(torch.empty(6, 3), torch.empty(6, dtype=torch.int64)).shape == ()


def test_what_the_losses_declare() -> None:
    assert CrossEntropy.tasks == {"classification"}
    assert MSE.tasks == {"classification", "regression"}
    for loss in (CrossEntropy, MSE):
        assert loss.metrics.keys() == loss.tasks
    assert CrossEntropy.metrics["classification"] == ("accuracy", "accuracy_top5")
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


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_yaml_lists_every_key_with_its_default(path: Path) -> None:
    assert path.read_text().startswith("# ")
    keys: Any = OmegaConf.to_container(OmegaConf.load(path))
    module, _, name = keys.pop("_target_").rpartition(".")
    loss = getattr(importlib.import_module(module), name)
    assert keys == {key: p.default for key, p in inspect.signature(loss).parameters.items()}
    assert name.lower() == path.stem.replace("_", "")
