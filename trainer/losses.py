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

from trainer.base.checks import check_choice, check_number, check_one_of, check_whole
from trainer.contracts import Loss

_HALF = (torch.bfloat16, torch.float16)


class CrossEntropy(Loss):
    """J = sum_n -log softmax(outputs_n)[target_n] (UIUC ECE 598, "Cross-entropy (Loss)").

    `label_smoothing` s in [0, 1): the target distribution is (1 - s) one-hot + s/K uniform (Szegedy et al. 2016).
    The metric `cross_entropy` is without it and in nats, so that runs with other values can be compared.
    `base` of the logarithm: "e" for nats, 2 for bits as in UIUC ECE 598. Raises ValueError for other values.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    metrics: ClassVar[dict[str, tuple[str, ...]]] = {"classification": ("accuracy", "accuracy_top5", "cross_entropy")}
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


class KLDivergence(CrossEntropy):
    """J = sum_n D(p_n || softmax(outputs_n)), D(p || q) = sum_k p_k log(p_k / q_k) (UIUC ECE 598).

    p is the target distribution: one-hot or probabilities, smoothed as in `CrossEntropy`. J is the cross-entropy minus
    the entropy of p, which does not depend on the weights: the gradient is the same, and J is 0 for a perfect model.
    Arguments as for `CrossEntropy`.
    """

    def _reduced(self, outputs_NK: Tensor, targets: Tensor, reduction: str) -> Tensor:
        value = super()._reduced(outputs_NK, targets, reduction)
        entropies_N = self._entropies(outputs_NK, targets)
        return value - (entropies_N.sum() if reduction == "sum" else entropies_N)

    def _entropies(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        p_NK = F.one_hot(targets, outputs_NK.shape[1]).float() if not targets.is_floating_point() else targets
        p_NK = p_NK * (1 - self._label_smoothing) + self._label_smoothing / outputs_NK.shape[1]
        entropies_N: Tensor = torch.special.entr(p_NK).sum(1) / self._unit
        return entropies_N

    def initial_value(self, num_outputs: int) -> float | None:
        """That of one-hot targets: ln K minus the entropy that smoothing gives them."""
        share = self._label_smoothing / num_outputs
        p_K = torch.full((num_outputs,), share, dtype=torch.float64)
        p_K[0] += 1 - self._label_smoothing
        return (log(num_outputs) - float(torch.special.entr(p_K).sum())) / self._unit


class AbsoluteError(MSE):
    """J = sum_n mean_k |outputs_nk - targets_nk|; with a linear model and single samples, sign-LMS (UIUC ECE 598).

    The gradient is the sign of the error, 0 where it is 0. Targets as for `MSE`.
    """

    def __call__(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """The sum over samples, a scalar. Raises ValueError if values do not have the shape of the outputs."""
        return self._errors(outputs_NK, targets, "sum") / outputs_NK.shape[1]

    def each(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, (N,)."""
        return self._errors(outputs_NK, targets, "none").mean(1)

    def _errors(self, outputs_NK: Tensor, targets: Tensor, reduction: str) -> Tensor:
        if outputs_NK.dtype in _HALF:
            outputs_NK = outputs_NK.float()
        return F.l1_loss(outputs_NK, _encode(targets, outputs_NK), reduction=reduction)


class Hinge(Loss):
    """Margin losses of support vector machines, for class indices y_n and scores s_n.

    `form`: binary, J = sum_n max(0, 1 - t_n f_n) for two classes and one output f, t = -1 for class 0 and 1 for class
    1 (UIUC ECE 598, "Example - SVM"); crammer_singer, J = sum_n max(0, 1 + max_{k != y} s_nk - s_ny) (Crammer & Singer
    2001); weston_watkins, J = sum_n sum_{k != y} max(0, 1 + s_nk - s_ny) (Weston & Watkins 1999), K times torch's
    `multi_margin_loss`. Raises ValueError for other forms.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    metrics: ClassVar[dict[str, tuple[str, ...]]] = {"classification": ("accuracy", "accuracy_top5")}

    def __init__(self, form: Literal["crammer_singer", "weston_watkins", "binary"] = "crammer_singer") -> None:
        self.form = check_choice("form", form, ("crammer_singer", "weston_watkins", "binary"))

    def num_outputs(self, num_outputs: int) -> int:
        if self.form == "binary" and num_outputs != 2:
            raise ValueError(f"form=binary: needs data with 2 classes, not {num_outputs}")
        return 1 if self.form == "binary" else num_outputs

    def __call__(self, outputs_NK: Tensor, targets_N: Tensor) -> Tensor:
        return self.each(outputs_NK, targets_N).sum()

    def each(self, outputs_NK: Tensor, targets_N: Tensor) -> Tensor:
        """The loss of each sample, (N,)."""
        if outputs_NK.dtype in _HALF:
            outputs_NK = outputs_NK.float()
        if self.form == "binary":
            return (1 - (2 * targets_N - 1) * outputs_NK[:, 0]).clamp(min=0)
        right_N1 = outputs_NK.gather(1, targets_N.unsqueeze(1))
        margins_NK = (1 + outputs_NK - right_N1).scatter(1, targets_N.unsqueeze(1), 0.0)
        if self.form == "crammer_singer":
            return margins_NK.amax(1).clamp(min=0)
        return margins_NK.clamp(min=0).sum(1)

    def initial_value(self, num_outputs: int) -> float | None:
        """That of equal scores: 1, or K - 1 for weston_watkins."""
        return num_outputs - 1.0 if self.form == "weston_watkins" else 1.0


class KMeans(Loss):
    """J = sum_n min_k d_nk, d_nk = |x_n - w_k|^2 / 2, for a model with outputs -d_nk (`centroids`): quantization.

    `clusters`: number of centroids >= 1, or None for as many as classes. Targets are not used. Source: UIUC ECE 598,
    "Example - K-means". Raises ValueError for other values.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})
    metrics: ClassVar[dict[str, tuple[str, ...]]] = {}
    needs_centroids = True

    def __init__(self, clusters: int | None = None) -> None:
        self.clusters = None if clusters is None else check_whole("clusters", clusters, 1)

    def num_outputs(self, num_outputs: int) -> int:
        return self.clusters or num_outputs

    def __call__(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        return self.each(outputs_NK, targets).sum()

    def each(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, (N,)."""
        return -(outputs_NK.float() if outputs_NK.dtype in _HALF else outputs_NK).amax(1)
