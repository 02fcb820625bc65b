"""Operations that displace every pixel individually."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from trainer.augmentation.counted import uniform
from trainer.augmentation.operation import (
    Operation,
    RangedOperation,
    Rows,
    check_probability,
    draw_applied,
    draw_uniform,
    where,
)
from trainer.augmentation.warp import Fill, centred, check_fill, sample
from trainer.base.checks import check_number, check_range
from trainer.base.chunks import chunks

_ONE = 2.0**12


class Elastic(RangedOperation):
    """Displaces pixels by a smooth random field with a root mean square of `alpha` pixels per axis.

    The field is uniform noise smoothed by a Gaussian with a standard deviation of `sigma` pixels; each output pixel
    samples the input at its own position plus the field. torchvision's `alpha` is a different quantity: it multiplies
    the smoothed noise, whose mean square depends on `sigma`.

    Source: UVic PHYS 555, "Data augmentation" (elastic transformation); Simard et al., "Best practices for
    convolutional neural networks" (2003). Raises ValueError: `alpha` below 0, `sigma` not in 0.1..1000, `probability`
    not in 0..1, unknown `fill`.
    """

    draws_seeds = True
    fill: Fill

    def __init__(self, alpha: float = 1.0, sigma: float = 4.0, probability: float = 1.0, fill: Fill = "black") -> None:
        super().__init__(probability)
        self.alpha, self.sigma = check_number("alpha", alpha, 0), check_number("sigma", sigma, 0.1, 1000)
        self.fill = check_fill(fill)

    def displacement(self, seeds_N: Tensor, height: int, width: int, device: torch.device) -> Tensor:
        """float64_N2HW: displacement in pixels, to the right (0) and down (1)."""
        down_HJ, across_WK = _smoothing(height, self.sigma), _smoothing(width, self.sigma)
        noise_N2JK = uniform(seeds_N, (2, down_HJ.shape[1], across_WK.shape[1]), device).double() - 0.5
        smooth_N2HW = down_HJ.to(device, non_blocking=True) @ noise_N2JK @ across_WK.T.to(device, non_blocking=True)
        return smooth_N2HW.mul_(self.alpha * math.sqrt(12))  # uniform noise has variance 1/12

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        if self.alpha == 0:
            return images_KCHW
        height, width = images_KCHW.shape[2:]
        y_HW, x_HW = _coordinates(height, width, images_KCHW.device)
        for chunk in chunks(images_KCHW):
            by_K2HW = self.displacement(rows["seed"][chunk], height, width, images_KCHW.device)
            _take(images_KCHW[chunk], y_HW + by_K2HW[:, 1], x_HW + by_K2HW[:, 0], self.fill)
        return images_KCHW


@lru_cache(maxsize=16)
def _smoothing(size: int, sigma: float) -> Tensor:
    """float64 (size, K): the weight of each of K noise values for each pixel; the squares of a row sum to 1.

    The noise values are about `sigma` pixels apart; a denser grid gives the same field to within 1e-4 of its mean
    square.
    """
    margin = math.ceil(3 * sigma)
    coordinates_K = torch.arange(-margin, size + margin, max(1, int(sigma)), dtype=torch.float64)
    distance = torch.arange(size, dtype=torch.float64).unsqueeze(1) - coordinates_K
    weights = (-((distance / sigma) ** 2) / 2).exp()
    weights /= weights.square().sum(1, keepdim=True).sqrt()
    # noise and weights are multiples of powers of two, so that sums are exact in any order
    return (weights * _ONE).round() / _ONE


class LensDistortion(Operation):
    """Radial lens distortion: the output pixel at p, relative to the centre, samples p (1 + k1 |p|^2), with |p| = 1 in
    the corners.

    k1 is uniform in its range. Straight lines bulge outwards (barrel) if it is positive, and inwards (pincushion) if
    it is negative.

    Source: CUHK ELEG 5491, "Data augmentation" (lens distortions); Brown, "Decentering distortion of lenses" (1966),
    the first radial term. Raises ValueError: `k1` not above -1/3 (at which the image would fold), `probability` not in
    0..1, unknown `fill`.
    """

    fill: Fill

    def __init__(self, k1: tuple[float, float] = (-0.2, 0.2), probability: float = 1.0, fill: Fill = "black") -> None:
        check_probability(probability)
        self.k1 = check_range("k1", k1, -1 / 3, above=True)
        self.probability, self.fill = probability, check_fill(fill)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        return {"k1": torch.where(applied_N, draw_uniform(num_samples, *self.k1, generator), 0)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        return where(images_NCHW, rows["k1"] != 0, lambda chosen, at_K: self._change(chosen, rows["k1"][at_K]))

    def _change(self, images_NCHW: Tensor, k1_N: Tensor) -> Tensor:
        height, width = images_NCHW.shape[2:]
        y_HW, x_HW = _coordinates(height, width, images_NCHW.device)
        square_HW = (x_HW**2 + y_HW**2) / ((height / 2) ** 2 + (width / 2) ** 2)
        k1_N11 = k1_N.to(images_NCHW.device, non_blocking=True).view(-1, 1, 1)
        for chunk in chunks(images_NCHW):
            factor_NHW = 1 + k1_N11[chunk] * square_HW
            _take(images_NCHW[chunk], y_HW * factor_NHW, x_HW * factor_NHW, self.fill)
        return images_NCHW


def _coordinates(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """y and x of each pixel relative to the centre, each float64_HW."""
    y_HW, x_HW = torch.meshgrid(centred(height), centred(width), indexing="ij")
    return y_HW.to(device, non_blocking=True), x_HW.to(device, non_blocking=True)


def _take(images_NCHW: Tensor, y_NHW: Tensor, x_NHW: Tensor, fill: Fill) -> None:
    """Resample the images in place at these positions, given relative to the image centre."""
    height, width = images_NCHW.shape[2:]
    pairs_NHW = torch.complex((x_NHW / (width / 2)).float(), (y_NHW / (height / 2)).float())
    sample(images_NCHW, torch.view_as_real(pairs_NHW), fill)
