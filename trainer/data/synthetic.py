"""Drawn shapes: images of any size, number and difficulty, without a download."""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.base.checks import check_number, check_whole
from trainer.base.randomness import generator_for
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.split import check_split_seed

# whether a point is inside the shape of radius 1 around 0; u points right, v down, a = |u|, b = |v|
_SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "circle": lambda u, v, a, b: u**2 + v**2 <= 1,
    "square": lambda u, v, a, b: (a <= 0.8) & (b <= 0.8),
    "triangle": lambda u, v, a, b: (v <= 0.75) & (a <= 0.55 * (v + 1)),
    "cross": lambda u, v, a, b: (torch.minimum(a, b) <= 0.3) & (torch.maximum(a, b) <= 1),
    "ring": lambda u, v, a, b: (u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.6**2),
    "diamond": lambda u, v, a, b: a + b <= 1,
    "bar": lambda u, v, a, b: (a <= 1) & (b <= 0.35),
    "saltire": lambda u, v, a, b: ((a - b).abs() <= 0.4) & (torch.maximum(a, b) <= 0.85),
}
NAMES = tuple(_SHAPES)
_LEAST_SIZE, _MOST_SIZE, _LEAST_CONTRAST = 16, 512, 64
_SMALLEST, _LARGEST = 0.25, 0.45  # radius, as a fraction of the image size
_IMAGES_A_CHUNK = 1000
_MOST_SAMPLES = 10_000_000


class Shapes(DataSet):
    """Images of one shape each, with random position, size, colours and noise; the class is the shape.

    Images are (channels, size, size). The shapes are the first `num_classes` of circle, square, triangle, cross, ring,
    diamond, bar, saltire, equally many of each (plus or minus one) in every split. The radius is uniform in 0.25 to
    0.45 of the size, the position uniform within the image. The background is uniform in 0..255 for each channel, the
    shape differs from it by 64 to 192, modulo 256. `noise` is the standard deviation of Gaussian noise on every pixel,
    in levels of 255. A split depends only on `split_seed` and its own number of images.

    Raises ValueError for a size other than 16 to 512, channels other than 1 to 4, classes other than 2 to 8, splits
    other than of 1 to 10^7 images, negative noise.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        num_classes: int = 6,
        num_train: int = 5000,
        num_val: int = 1000,
        num_test: int = 1000,
        noise: float = 20.0,
        split_seed: int = 0,
    ) -> None:
        check_whole("size", size, _LEAST_SIZE, _MOST_SIZE)
        check_whole("channels", channels, 1, 4, must="between 1 and 4")
        check_whole("num_classes", num_classes, 2, len(NAMES), must=f"between 2 and {len(NAMES)}")
        check_counts(num_train=num_train, num_val=num_val, num_test=num_test)
        check_number("noise", noise, 0, must="at least 0, and finite")
        check_split_seed(split_seed)
        self.size, self.channels, self.num_classes = size, channels, num_classes
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        self.noise, self.split_seed = noise, split_seed

    def facts(self) -> DataFacts:
        return DataFacts(
            "classification", (self.channels, self.size, self.size), self.num_classes,
            self.counts["train"], self.counts["val"], self.counts["test"], NAMES[: self.num_classes],
        )  # fmt: skip

    def load(self) -> Splits:
        return Splits(*(self._part(name, count) for name, count in self.counts.items()))

    def _part(self, name: str, count: int) -> Part:
        generator = generator_for(self.split_seed, f"shapes/{name}")
        targets_N = shuffled_classes(count, self.num_classes, generator)
        drawn = [self._draw(targets, generator) for targets in targets_N.split(_IMAGES_A_CHUNK)]
        return Part(torch.cat(drawn), targets_N)

    def _draw(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        count = len(targets_N)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator)

        radius = self.size * (_SMALLEST + (_LARGEST - _SMALLEST) * uniform(1, 1))
        x, y = (radius + (self.size - 2 * radius) * uniform(1, 1) for _ in range(2))
        coordinates = torch.arange(self.size) + 0.5
        inside_N1HW = _inside(targets_N, (coordinates - x) / radius, (coordinates[:, None] - y) / radius).unsqueeze(1)
        background = 256 * uniform(self.channels, 1, 1)
        contrast = _LEAST_CONTRAST + (256 - 2 * _LEAST_CONTRAST) * uniform(self.channels, 1, 1)
        images = torch.where(inside_N1HW, (background + contrast) % 256, background)
        images = images + self.noise * torch.randn(images.shape, generator=generator)
        return images.clamp_(0, 255).to(torch.uint8)


def _inside(targets_N: Tensor, u_N1W: Tensor, v_NH1: Tensor) -> Tensor:
    """bool (N, H, W): whether a pixel is inside the shape, whose radius is 1; u points right, v down."""
    inside_NHW = torch.empty(len(targets_N), v_NH1.shape[1], u_N1W.shape[2], dtype=torch.bool)
    for label in targets_N.unique().tolist():
        chosen = targets_N == label
        u, v = u_N1W[chosen], v_NH1[chosen]
        inside_NHW[chosen] = _SHAPES[NAMES[label]](u, v, u.abs(), v.abs())
    return inside_NHW


def shuffled_classes(count: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """int64_N: every class equally often, plus or minus one, in random order."""
    return (torch.arange(count) % num_classes)[torch.randperm(count, generator=generator)]


def check_counts(**counts: int) -> None:
    """Raises ValueError for a split without samples, or with more than the supported number."""
    for name, count in counts.items():
        check_whole(name, count, 1, _MOST_SAMPLES)
