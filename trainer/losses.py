"""Losses. A loss returns the sum over samples; the caller divides by the global number of samples.

Adding such sums over devices or micro-batches is exact; averaging means is not. A loss declares the `tasks` that it
supports and, for each task, the names of its `metrics`. `soft_targets` says whether a classification target may be a
probability per class, (N, K), as mixed samples have it. `each` returns the loss per sample, (N,), for samplers that
need it. Outputs in half precision are converted to float32 first.
"""

from math import log
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.base.checks import check_number, check_one_of
from trainer.contracts import Loss

_HALF = (torch.bfloat16, torch.float16)


class CrossEntropy(Loss):
    """J = sum_n -log softmax(outputs_n)[target_n] (UIUC ECE 598, "Cross-entropy (Loss)").

    `label_smoothing` s in [0, 1): the target distribution is (1 - s) one-hot + s/K uniform (Szegedy et al. 2016).
    `base` of the logarithm: "e" for nats, 2 for bits as in UIUC ECE 598. Raises ValueError for other values.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    metrics: ClassVar[dict[str, tuple[str, ...]]] = {"classification": ("accuracy", "accuracy_top5")}
    soft_targets = True

    def __init__(self, label_smoothing: float = 0.0, base: Literal["e", 2] = "e") -> None:
        check_number("label_smoothing", label_smoothing, 0, 1, below=True)
        check_one_of("base", base, ("e", 2), must="e (nats) or 2 (bits)")
        self._label_smoothing = label_smoothing
        self._unit = 1.0 if base == "e" else log(2)

    def __call__(self, outputs_NK: Tensor, targets_N: Tensor) -> Tensor:
        """The sum over samples, a scalar; targets are class indices, int64, or probabilities, (N, K)."""
        return self._reduced(outputs_NK, targets_N, "sum")

    def each(self, outputs_NK: Tensor, targets_N: Tensor) -> Tensor:
        """The loss of each sample, (N,)."""
        return self._reduced(outputs_NK, targets_N, "none")

    def _reduced(self, outputs_NK: Tensor, targets: Tensor, reduction: str) -> Tensor:
        if outputs_NK.dtype in _HALF:
            outputs_NK = outputs_NK.float()
        value = F.cross_entropy(outputs_NK, targets, reduction=reduction, label_smoothing=self._label_smoothing)
        return value if self._unit == 1.0 else value / self._unit

    def of_probabilities(self, log_probabilities_NK: Tensor, targets_N: Tensor) -> Tensor | None:
        """-log p[target], with base and smoothing: log probabilities are invariant under log-softmax."""
        return self(log_probabilities_NK, targets_N)

    def initial_value(self, num_outputs: int) -> float | None:
        """ln K (log2 K in bits): the mean loss of uniform predictions."""
        return log(num_outputs) / self._unit


class MSE(Loss):
    """J = sum_n mean_k (outputs_nk - targets_nk)^2 (UIUC ECE 598, "Loss Function Example - MSE").

    J / N equals `F.mse_loss` with reduction="mean". Integer targets are class indices and are one-hot encoded;
    floating-point targets are values, (N, K), or (N,) if K = 1.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})
    metrics: ClassVar[dict[str, tuple[str, ...]]] = {
        "classification": ("accuracy", "accuracy_top5"),
        "regression": ("mae",),
    }
    soft_targets = True

    def __call__(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """The sum over samples, a scalar. Raises ValueError if values do not have the shape of the outputs."""
        return self._squares(outputs_NK, targets, "sum") / outputs_NK.shape[1]

    def each(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, (N,)."""
        return self._squares(outputs_NK, targets, "none").mean(1)

    def _squares(self, outputs_NK: Tensor, targets: Tensor, reduction: str) -> Tensor:
        if outputs_NK.dtype in _HALF:
            outputs_NK = outputs_NK.float()
        return F.mse_loss(outputs_NK, _encode(targets, outputs_NK), reduction=reduction)


def _encode(targets: Tensor, outputs_NK: Tensor) -> Tensor:
    """Class indices as one-hot vectors; values in the shape and dtype of the outputs."""
    if not targets.is_floating_point():
        return torch.zeros_like(outputs_NK).scatter_(1, targets.unsqueeze(1), 1.0)
    targets_NK = targets.unsqueeze(1) if targets.ndim == 1 else targets
    if targets_NK.shape != outputs_NK.shape:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not match outputs of shape {tuple(outputs_NK.shape)}"
        )
    return targets_NK.to(outputs_NK.dtype)
