"""Moments of the training part: exact for uint8 images, in float64 and two passes for features."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

ELEMENTS_A_CHUNK = 2**19  # 4 MB as float64: stays in the cache
IMAGES_A_READ = 256  # of what is no tensor and has to be read from files
# sums of so many products of numbers in -128..127 are below 2^24: exact in float32, in any order
SAMPLES_A_PRODUCT = 1024


class Images(Protocol):
    """A tensor (N, C, H, W), or what gives one, uint8 or float32, for every slice of itself."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Tensor: ...


def moments(images: Images, reduced: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (divisor N) over the axes `reduced`, kept with length 1; float64.

    Of uint8 images from exact sums: no chunk and no order of the samples shows, and a constant has exactly 0.
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
    """Mean (D,) and covariance (D, D) of the D = C*H*W values of a sample, divisor N, float64.

    Of uint8 images from exact sums of products, as `moments`.
    """
    if images[0:1].is_floating_point():
        mean = moments(images, (0,))[0].flatten()
        products = _products(images, lambda values: values.double().sub_(mean))
        return mean, products.div_(len(images))
    sums = _integer_sums(images, (0,))[0].flatten() - 128 * len(images)  # of x - 128, as the products
    products = _products(images, lambda values: values.float().sub_(128)).to(torch.int64)
    covariance = products.mul_(len(images)).sub_(sums.outer(sums)).double()
    return sums.double() / len(images) + 128, covariance.div_(len(images) ** 2)


def _products(images: Images, prepared: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over the samples of x x^T, float64 (D, D), where x is what `prepared` makes of some samples."""
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
    """Exact int64 sums of x and of x^2 over the axes `reduced`, which are kept with length 1."""
    sums = sums_of_squares = torch.zeros((), dtype=torch.int64)
    for chunk in _chunks(images, ELEMENTS_A_CHUNK):
        values = chunk.double()  # integers far below 2^53: exact, and faster to sum than int64
        sums = sums + values.sum(reduced, keepdim=True).to(torch.int64)
        sums_of_squares = sums_of_squares + values.square_().sum(reduced, keepdim=True).to(torch.int64)
    return sums, sums_of_squares


def _chunks(images: Images, num_elements: int) -> Iterator[Tensor]:
    """All samples, about so many numbers at a time."""
    samples_a_chunk = max(1, num_elements // images[0:1].numel())
    samples_a_read = len(images) if isinstance(images, Tensor) else max(samples_a_chunk, IMAGES_A_READ)
    for start in range(0, len(images), samples_a_read):
        yield from images[start : start + samples_a_read].split(samples_a_chunk)
