"""Whitening: decorrelates inputs and equalizes their variances."""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.base.checks import check_number, check_whole
from trainer.contracts import Images
from trainer.preprocessing.modules import Preprocessing
from trainer.preprocessing.statistics import mean_and_covariance

MOST_FEATURES = 12_288  # 64x64x3: a covariance of 1.2 GB and a few minutes; time grows with the cube
_BITS = 24  # per matrix entry, relative to the row's largest: what a float32 holds


class Whitening(Preprocessing):
    """z_k = u_k^T (x - mean) / sqrt(lambda_k + epsilon), k = 1..K, of a sample's D = C*H*W values.

    lambda_1 >= lambda_2 >= ... and u_k are eigenvalues and eigenvectors of the training split's covariance (divisor
    N); the sign of u_k makes its entry of largest magnitude positive. `components` K, 1 to D (None: D), is the number
    of largest eigenvalues that are kept; `epsilon` >= 0 is in squared input units, with pixels in 0..255. z_k is 0 for
    directions in which the training split has no variance (constant inputs, or fewer samples than inputs). Raises
    ValueError for other values.

    Products are accumulated in float64. For images, each matrix row is rounded to 24 bits, so that sums with integers
    0..255 are exact and a sample's bits do not depend on its batch, the device or the library. Sums of features are
    rounded from float64 to float32: about one value in 10^8 may differ in its last bit. (MPS has no float64: there the
    last few bits of both may differ.)
    """

    centre: Tensor  # (D,), the mean rounded to integers, so that x - centre is exact
    matrix: Tensor  # (K, D) for `PCAWhitening`, (D, D) for `ZCA`
    offset: Tensor  # matrix @ (mean - centre)

    def __init__(self, components: int | None = None, epsilon: float = 1.0) -> None:
        if components is not None:
            check_whole("components", components, 1, must="at least 1, or null for all")
        check_number("epsilon", epsilon, 0, must="at least 0, and finite")
        super().__init__()
        self.components, self.epsilon = components, epsilon
        for name in ("centre", "matrix", "offset"):
            self.register_buffer(name, torch.empty(0))
        self._wide = self.matrix, self.matrix  # the matrix, and a float64 copy of it

    def check(self, input_shape: tuple[int, int, int]) -> None:
        size = math.prod(input_shape)
        if size > MOST_FEATURES:
            raise ValueError(f"whitening supports at most {MOST_FEATURES:,} values per sample, not {size:,}")
        if self.components is not None:
            check_whole("components", self.components, 1, size, must=f"at most {size}, the values of a sample")

    def fit(self, images: Images) -> None:
        mean_D, covariance_DD = mean_and_covariance(images)
        values_K, vectors_KD = principal_axes(covariance_DD)
        values_K, vectors_KD = values_K[: self.components], vectors_KD[: self.components]
        nothing = values_K <= values_K[0] * len(mean_D) * torch.finfo(torch.float64).eps
        scales_K = (values_K + self.epsilon).rsqrt().where(~nothing, 0)
        matrix = self._turned(scales_K[:, None] * vectors_KD, vectors_KD)
        if not images[0:1].is_floating_point():
            matrix = _on_a_grid(matrix)
        centre_D = mean_D.round()
        self.offset = (matrix @ (mean_D - centre_D)).to(self.offset)
        self.centre, self.matrix = centre_D.to(self.centre), matrix.to(self.matrix)

    def fit_roughly(self, images: Images) -> None:
        size = images[0:1].numel()
        axes_KD = torch.eye(size, dtype=torch.float64)[: self.components]
        matrix = self._turned(axes_KD / 64, axes_KD)  # -128..127 becomes -2..2
        self.centre, self.matrix = torch.full((size,), 128.0).to(self.centre), matrix.to(self.matrix)
        self.offset = torch.zeros(len(matrix)).to(self.offset)

    @abstractmethod
    def _turned(self, whitening_KD: Tensor, vectors_KD: Tensor) -> Tensor:
        """The matrix of the transform, given the whitening matrix and the principal axes."""

    def transform_(self, images_NCHW: Tensor) -> Tensor:
        if self._wide[0] is not self.matrix:
            is_narrow = self.matrix.device.type == "mps"
            self._wide = self.matrix, self.matrix if is_narrow else self.matrix.double()
        matrix = self._wide[1]
        inputs_ND = images_NCHW.flatten(1).sub(self.centre).to(matrix)
        outputs_NK = (inputs_ND @ matrix.T).sub_(self.offset)
        outputs_ND = F.pad(outputs_NK, (0, len(self.centre) - len(self.matrix)))
        return images_NCHW.copy_(outputs_ND.view(images_NCHW.shape))


class PCAWhitening(Whitening):
    """PCA whitening: the z_k of `Whitening`, uncorrelated and of variance lambda_k / (lambda_k + epsilon).

    The output keeps the shape (C, H, W), filled with z_1, z_2, ... in order and with zeros after the K components.
    Every model accepts it, but it has no spatial structure that a convolution could use. (ZCA gives the same variances
    and keeps the spatial structure.)

    Source: CUHK ELEG 5491, "Normalizing input" (PCA removes linear correlations), Optimization (Part 2), "Better
    Conditioning".
    """

    def _turned(self, whitening_KD: Tensor, vectors_KD: Tensor) -> Tensor:
        return whitening_KD


class ZCA(Whitening):
    """ZCA whitening: y = sum_k u_k z_k, the whitened image closest to x.

    Source: Optimization (Part 2), "Better Conditioning"; Bell and Sejnowski 1997; Krizhevsky 2009.
    """

    def _turned(self, whitening_KD: Tensor, vectors_KD: Tensor) -> Tensor:
        return vectors_KD.T @ whitening_KD


def principal_axes(covariance_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in descending order, and eigenvectors as rows whose entry of largest magnitude is positive."""
    values_D, columns_DD = torch.linalg.eigh(covariance_DD)
    rows_DD = columns_DD.T.flip(0)
    peaks_D1 = rows_DD.gather(1, rows_DD.abs().argmax(1, keepdim=True))
    return values_D.flip(0), rows_DD * torch.where(peaks_D1 < 0, -1.0, 1.0)


def _on_a_grid(matrix: Tensor) -> Tensor:
    """Round each row to multiples of a power of two, with magnitudes of at most 2^24 units."""
    _, exponents = torch.frexp(matrix.abs().amax(1, keepdim=True))
    unit = torch.ldexp(torch.ones_like(matrix[:, :1]), exponents - _BITS)
    return (matrix / unit).round_().mul_(unit)
