"""What an augmentation operation is, and what its implementations share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Protocol, Self

import torch
from torch import Tensor

from trainer.base.checks import check_probability as check_probability
from trainer.base.chunks import Change
from trainer.contracts import Rows as Rows


class OperationLike(Protocol):
    """What Pipeline takes: an Operation, or an object with these two methods and any others of an Operation."""

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows: ...

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor: ...


class Operation(ABC):
    """One change of an image whose parameters are drawn beforehand, a row of numbers for each sample.

    Between operations pixels are whole numbers 0..255, as torchvision's uint8 images are after every transform;
    so sums over an image are exact, and what a sample looks like cannot depend on the batch it is in.
    """

    keeps_values: bool = False
    """Whether it only moves or blackens pixels: it then takes and gives images of any type."""
    probability: float = 1.0
    """Of an image to be changed; it does not change how many numbers are drawn."""
    fill: str = "black"
    """If it maps coordinates, what lies outside of the image: `warp.Fill`."""

    @abstractmethod
    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        """The table of an epoch, on the CPU. The number of draws a sample is fixed, whatever they say and
        whatever the probability is; `input_shape` is (channels, height, width)."""

    @abstractmethod
    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        """The changed images, float32 with whole numbers 0..255 as the given ones, which it may overwrite.

        Image i depends on row i alone. Rows are on the CPU, so that an operation may look at them without
        waiting for the device; `column` takes one to the images."""

    def prepare(self, images_NCHW: Tensor, rows: Rows) -> Change | None:
        """For an operation that is cheap for each pixel: the change of a few images (float32, contiguous), which
        Pipeline makes together with those of its neighbours before it turns to the next images. None: the operation
        is called for these rows."""
        return None

    @property
    def maps_coordinates(self) -> bool:
        """Whether Pipeline uses `matrix`, composed with those of its neighbours, in place of a call."""
        return type(self).matrix is not Operation.matrix

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        """float64_N33 for images of this size, from a pixel of the result to where it is taken from (see `warp`); the
        identity if the operation is not applied."""
        raise AssertionError(f"{type(self).__name__} maps no coordinates")

    def frames(self, rows: Rows, sizes_N2: Tensor, output_hw: tuple[int, int]) -> Tensor | None:
        """For the first operation: what to cut out of photographs of these heights and widths, int64_N8 (see
        `framing`). None: they are framed as for evaluation, and the operation is called."""
        return None

    @property
    def mixes(self) -> bool:
        """Whether it mixes samples and their labels: Pipeline uses `mix` in place of a call."""
        return type(self).mix is not Operation.mix

    def mix(self, images_NCHW: Tensor, partners_NCHW: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Preprocessed images mixed with others, and the weight `lam` of each one's own label, float32_N."""
        raise AssertionError(f"{type(self).__name__} mixes no samples")

    def phrases(self, rows: Rows) -> Sequence[list[str]] | None:
        """What a picture says was done to each image, phrase by phrase; None: its numbers."""
        return None

    def always(self) -> Self:
        """A copy that changes every image, by the same numbers."""
        changed = copy(self)
        if self.probability != 1:
            changed.probability = 1.0
        return changed


def draw_applied(num_samples: int, probability: float, generator: torch.Generator) -> Tensor:
    """bool_N, true with this probability; one draw a sample."""
    return torch.rand(num_samples, generator=generator, dtype=torch.float64) < probability


def draw_uniform(num_samples: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """float64_N, uniform in [low, high); one draw a sample."""
    return low + (high - low) * torch.rand(num_samples, generator=generator, dtype=torch.float64)


def draw_seeds(num_samples: int, generator: torch.Generator) -> Tensor:
    """int64_N in 0..2^31-1, for `counted`: noise on pixels."""
    return torch.randint(2**31, (num_samples,), generator=generator)


class RangedOperation(Operation):
    """An Operation that changes some of the images, by numbers that are uniform in ranges.

    `probability`: of an image to be changed; `ranges`: of each number, by its name. A row holds `applied`, the numbers
    and, with `draws_seeds`, a `seed` for `counted`, drawn in this order. Raises ValueError: `probability` not in 0..1.
    """

    draws_seeds = False

    def __init__(self, probability: float, **ranges: tuple[float, float]) -> None:
        check_probability(probability)
        self.probability, self.ranges = probability, ranges

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        rows = {"applied": draw_applied(num_samples, self.probability, generator)}
        for name, (low, high) in self.ranges.items():
            rows[name] = draw_uniform(num_samples, low, high, generator)
        if self.draws_seeds:
            rows["seed"] = draw_seeds(num_samples, generator)
        return rows

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        def change(images_KCHW: Tensor, indices_K: Tensor) -> Tensor:
            return self.change(images_KCHW, {name: values_N[indices_K] for name, values_N in rows.items()})

        return where(images_NCHW, rows["applied"], change)

    @abstractmethod
    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        """The images to be changed, which it may overwrite, given with their rows alone; otherwise as an Operation."""


def column(values_N: Tensor, images_NCHW: Tensor) -> Tensor:
    """A row's number for each image, (N, 1, 1, 1), in the type and on the device of the images."""
    return values_N.to(images_NCHW.device, images_NCHW.dtype, non_blocking=True).view(-1, 1, 1, 1)


def where(images_NCHW: Tensor, chosen_N: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`change(images, indices)` of the chosen samples alone, in the place of the given ones.

    `chosen_N` is a bool on the CPU; `indices` (on the CPU) pick the chosen samples' rows.
    """
    indices_K = chosen_N.nonzero().flatten()
    if len(indices_K) == 0:
        return images_NCHW
    if len(indices_K) == len(images_NCHW):
        return change(images_NCHW, indices_K)
    there_K = indices_K.to(images_NCHW.device, non_blocking=True)
    return put(images_NCHW, there_K, change(images_NCHW.index_select(0, there_K), indices_K))


def most(chosen_N: Tensor) -> bool:
    """Whether more than half are true."""
    return 2 * int(chosen_N.sum()) > len(chosen_N)


def put(images_NCHW: Tensor, there_K: Tensor, changed_KCHW: Tensor) -> Tensor:
    """Overwrites the images at these indices, which are on their device, and returns all."""
    words, changed = _as_words(images_NCHW), _as_words(changed_KCHW)
    if words is None or changed is None:
        return images_NCHW.index_copy_(0, there_K, changed_KCHW)
    words.index_copy_(0, there_K, changed)
    return images_NCHW


def _as_words(images_NCHW: Tensor) -> Tensor | None:
    """The same memory as int64, a line an image, where that is possible: index_copy_ writes number by number, so
    that eight uint8 pixels take as long as one."""
    size = math.prod(images_NCHW.shape[1:]) * images_NCHW.element_size()
    if not images_NCHW.is_contiguous() or size % 8 or images_NCHW.data_ptr() % 8:
        return None
    return images_NCHW.flatten(1).view(torch.int64)
