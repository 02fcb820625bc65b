"""Moments of the training split: exact for uint8 images, two-pass in float64 for features."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.contracts import Images

ELEMENTS_A_CHUNK = 2**19  # 4 MB as float64: fits in cache
IMAGES_A_READ = 256  # for images read from files
# sums of this many products of numbers in -128..127 are at most 2^24: exact in float32, in any order
SAMPLES_A_PRODUCT = 1024


def moments(images: Images, reduced: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (divisor N) over the axes `reduced`, kept with length 1; float64.

    For uint8 images the sums are exact: the result does not depend on chunks or sample order, and constants have
    exactly std 0.
    """
    first = images[0:1]
    count = len(images) * math.prod(first.shape[axis] for axis in reduced if axis)
    if first.is_floating_point():
        mean = _sum(images, reduced, lambda values: values) / count
        variance = _sum(images, reduced, lambda values: values.sub(mean).square_()) / count
        return mean, variance.sqrt_()
    sums, sums_of_squares = _integer_sums(images, reduced)
    means, deviations = [], []
    for total, total_of_squares in zip(sums.flatten().tolist(), sums_of_squares.flatten().tolist(), strict=True):
        means.append(total / count)
        deviations.append(math.sqrt(count * total_of_squares - total**2) / count)
    wide = torch.tensor([means, deviations], dtype=torch.float64)
    return wide[0].view(sums.shape), wide[1].view(sums.shape)


def mean_and_covariance(images: Images) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of a sample's D = C*H*W values, divisor N, float64.

    For uint8 images the sums of products are exact, as in `moments`.
    """
    if images[0:1].is_floating_point():
        mean = moments(images, (0,))[0].flatten()
        products = _products(images, lambda values: values.double().sub_(mean))
        return mean, products.div_(len(images))
    sums = _integer_sums(images, (0,))[0].flatten() - 128 * len(images)  # of x - 128, like the products
    products = _products(images, lambda values: values.float().sub_(128)).to(torch.int64)
    covariance = products.mul_(len(images)).sub_(sums.outer(sums)).double()
    return sums.double() / len(images) + 128, covariance.div_(len(images) ** 2)


def _products(images: Images, prepared: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over the samples of x x^T, float64 (D, D), where `prepared` maps a chunk of samples to rows x."""
    size = images[0:1].numel()
    total = torch.zeros(size, size, dtype=torch.float64)
    for values in _chunks(images, SAMPLES_A_PRODUCT * size):
        rows = prepared(values.flatten(1))
        total.add_(rows.T @ rows)
    return total


def _sum(images: Images, reduced: tuple[int, ...], prepared: Callable[[Tensor], Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for values in _chunks(images, ELEMENTS_A_CHUNK):
        total = total + prepared(values.double()).sum(reduced, keepdim=True)
    return total


def _integer_sums(images: Images, reduced: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Exact int64 sums of x and x^2 over the axes `reduced`, kept with length 1."""
    sums = sums_of_squares = torch.zeros((), dtype=torch.int64)
    for chunk in _chunks(images, ELEMENTS_A_CHUNK):
        values = chunk.double()  # integers far below 2^53: exact, and faster to sum than int64
        sums = sums + values.sum(reduced, keepdim=True).to(torch.int64)
        sums_of_squares = sums_of_squares + values.square_().sum(reduced, keepdim=True).to(torch.int64)
    return sums, sums_of_squares


def _chunks(images: Images, num_elements: int) -> Iterator[Tensor]:
    """Yield all samples in chunks of about `num_elements` values."""
    samples_a_chunk = max(1, num_elements // images[0:1].numel())
    samples_a_read = len(images) if isinstance(images, Tensor) else max(samples_a_chunk, IMAGES_A_READ)
    for start in range(0, len(images), samples_a_read):
        yield from images[start : start + samples_a_read].split(samples_a_chunk)
