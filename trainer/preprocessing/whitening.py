"""Whitening: inputs without correlations and of equal variance."""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.base.checks import check_number, check_whole
from trainer.preprocessing.modules import Preprocessing
from trainer.preprocessing.statistics import Images, mean_and_covariance

MOST_FEATURES = 12_288  # 64x64x3: a covariance of 1.2 GB, a few minutes; four times the features take 64 times as long
_BITS = 24  # of an entry of a row of the matrix: a float32 holds them all


class Whitening(Preprocessing):
    """z_k = u_k^T (x - mean) / sqrt(lambda_k + epsilon), k = 1..K, of the D = C*H*W values of a sample.

    lambda_1 >= lambda_2 >= ... and u_k are eigenvalues and eigenvectors of the training part's covariance
    (divisor N). The entry of u_k that is largest in size is positive. `components` K, 1 to D (None: D), of the
    largest eigenvalues are kept; `epsilon` >= 0 is in squared units of the inputs, pixels being 0..255. Where the
    training part has no variance at all (constant inputs, or fewer samples than inputs) z_k is 0. Raises
    ValueError for other values.

    Products are added up in float64, for images with a matrix whose rows have 24 bits each: the sums of whole
    numbers 0..255 are exact, and not a bit of a sample depends on its batch, the device or the library. Sums of
    features are rounded to float32 from float64: one in some 10^8 values may differ in its last bit. (MPS has no
    float64: there the last few bits of both may differ.)
    """

    centre: Tensor  # (D,), the mean rounded to whole numbers, so that x - centre is exact
    matrix: Tensor  # (K, D) for `PCAWhitening`, (D, D) for `ZCA`
    offset: Tensor  # what matrix makes of mean - centre

    def __init__(self, components: int | None = None, epsilon: float = 1.0) -> None:
        if components is not None:
            check_whole("components", components, 1, must="at least 1, or null for all")
        check_number("epsilon", epsilon, 0, must="at least 0, and finite")
        super().__init__()
        self.components, self.epsilon = components, epsilon
        for name in ("centre", "matrix", "offset"):
            self.register_buffer(name, torch.empty(0))
        self._wide = self.matrix, self.matrix  # the matrix, and the same in float64

    def check(self, input_shape: tuple[int, int, int]) -> None:
        size = math.prod(input_shape)
        if size > MOST_FEATURES:
            raise ValueError(f"whitening takes at most {MOST_FEATURES:,} values a sample, not {size:,}")
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
        """The matrix, from the one that whitens and the principal axes."""

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
    """The z_k of `Whitening` themselves: uncorrelated, of variance lambda_k / (lambda_k + epsilon).

    The shape (C, H, W) is kept and filled in its order with z_1, z_2, ...; after the K components stand zeros. So
    every model takes them, but they make no image: there is nothing in them that a convolution looks for. (ZCA
    has the same variances and keeps the image.)

    Source: CUHK ELEG 5491, "Normalizing input" (PCA removes linear correlations), Optimization (Part 2), "Better
    Conditioning".
    """

    def _turned(self, whitening_KD: Tensor, vectors_KD: Tensor) -> Tensor:
        return whitening_KD


class ZCA(Whitening):
    """y = sum_k u_k z_k: whitened, then turned back, so that y is the whitened image next to x and looks like it.

    Source: Optimization (Part 2), "Better Conditioning"; Bell and Sejnowski 1997; Krizhevsky 2009.
    """

    def _turned(self, whitening_KD: Tensor, vectors_KD: Tensor) -> Tensor:
        return vectors_KD.T @ whitening_KD


def principal_axes(covariance_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and the eigenvectors as rows, each with a positive entry of largest size."""
    values_D, columns_DD = torch.linalg.eigh(covariance_DD)
    rows_DD = columns_DD.T.flip(0)
    peaks_D1 = rows_DD.gather(1, rows_DD.abs().argmax(1, keepdim=True))
    return values_D.flip(0), rows_DD * torch.where(peaks_D1 < 0, -1.0, 1.0)


def _on_a_grid(matrix: Tensor) -> Tensor:
    """Each row rounded to multiples of a power of two, at most 2^24 of them."""
    _, exponents = torch.frexp(matrix.abs().amax(1, keepdim=True))
    unit = torch.ldexp(torch.ones_like(matrix[:, :1]), exponents - _BITS)
    return (matrix / unit).round_().mul_(unit)
