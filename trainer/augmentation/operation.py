"""The interface of augmentation operations, and helpers for implementing them."""

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
    """What Pipeline accepts: an Operation, or any object with these two methods and optionally others of Operation."""

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows: ...

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor: ...


class Operation(ABC):
    """An image transform whose parameters are drawn in advance, one row per sample.

    Between operations, pixels are integers 0..255, as torchvision's uint8 images are after every transform. Sums over
    an image are therefore exact, and a sample's result does not depend on the rest of its batch.
    """

    keeps_values: bool = False
    """Whether the operation only moves or blackens pixels; it then accepts and returns images of any dtype."""
    probability: float = 1.0
    """Probability that an image is changed; it does not affect the number of draws."""
    fill: str = "black"
    """For operations that map coordinates: how to fill pixels from outside the image, a `warp.Fill`."""

    @abstractmethod
    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        """Return an epoch's table of parameters, on the CPU.

        The number of draws per sample is fixed, whatever their values and the probability; `input_shape` is (channels,
        height, width).
        """

    @abstractmethod
    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        """Return the changed images, float32 with integers 0..255 like the input, which may be overwritten.

        Image i depends on row i alone. Rows are on the CPU, so that an operation can inspect them without waiting for
        the device; `column` moves one to the images.
        """

    def lengths(self) -> dict[str, tuple[int, int]]:
        """Settings in pixels, as for images of 32x32: name to value and smallest value."""
        return {}

    def notice(self, side: int, are_characters: bool) -> tuple[str, str] | None:
        """Return why the operation does not suit images with this shorter side, and the setting that helps.

        `are_characters`: the classes are digits or letters, which mirroring and turning change.
        """
        for name, (value, least) in self.lengths().items():
            suited = max(least, value * side // 32)
            if value > side / 4 and suited < value:
                return f"{name}={value} is more than a quarter of {side} pixels", f"{name}={suited}"
        return None

    def prepare(self, images_NCHW: Tensor, rows: Rows) -> Change | None:
        """For operations that are cheap per pixel: return a change of a chunk of images (float32, contiguous).

        Pipeline applies the changes of neighbouring operations to one chunk before it moves to the next. None: the
        operation is called for these rows instead.
        """
        return None

    @property
    def maps_coordinates(self) -> bool:
        """Whether Pipeline uses `matrix`, composed with those of neighbouring operations, instead of a call."""
        return type(self).matrix is not Operation.matrix

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        """float64_N33 for images of this size, mapping output positions to input positions (see `warp`).

        The identity if the operation is not applied.
        """
        raise AssertionError(f"{type(self).__name__} does not map coordinates")

    def frames(self, rows: Rows, sizes_N2: Tensor, output_hw: tuple[int, int]) -> Tensor | None:
        """For the first operation: frames to crop from photographs of these heights and widths, int64_N8 (see
        `framing`).

        None: photographs are framed as for evaluation, and the operation is called.
        """
        return None

    @property
    def mixes(self) -> bool:
        """Whether the operation mixes samples and their labels: Pipeline uses `mix` instead of a call."""
        return type(self).mix is not Operation.mix

    def mix(self, images_NCHW: Tensor, partners_NCHW: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Mix preprocessed images with their partners; also return `lam`, the weight of each image's own label,
        float32_N."""
        raise AssertionError(f"{type(self).__name__} does not mix samples")

    def phrases(self, rows: Rows) -> Sequence[list[str]] | None:
        """Descriptions of what was done to each image, for captions; None: the parameters are shown."""
        return None

    def always(self) -> Self:
        """A copy that is applied to every image, with the same parameters."""
        changed = copy(self)
        if self.probability != 1:
            changed.probability = 1.0
        return changed


def draw_applied(num_samples: int, probability: float, generator: torch.Generator) -> Tensor:
    """bool_N, true with probability `probability`; one draw per sample."""
    return torch.rand(num_samples, generator=generator, dtype=torch.float64) < probability


def draw_uniform(num_samples: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """float64_N, uniform in [low, high); one draw per sample."""
    return low + (high - low) * torch.rand(num_samples, generator=generator, dtype=torch.float64)


def draw_seeds(num_samples: int, generator: torch.Generator) -> Tensor:
    """int64_N in 0..2^31-1: seeds for the pixel noise of `counted`."""
    return torch.randint(2**31, (num_samples,), generator=generator)


class RangedOperation(Operation):
    """An operation that is applied to some images, with parameters uniform in ranges.

    `probability` is that of being applied; `ranges` are the parameters' ranges by name. A row holds `applied`, the
    parameters and, if `draws_seeds`, a `seed` for `counted`, drawn in this order. Raises ValueError: `probability` not
    in 0..1.
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
        """Change the selected images, given with their rows alone; otherwise like `Operation.__call__`."""


def column(values_N: Tensor, images_NCHW: Tensor) -> Tensor:
    """A parameter per image as (N, 1, 1, 1), in the dtype and on the device of the images."""
    return values_N.to(images_NCHW.device, images_NCHW.dtype, non_blocking=True).view(-1, 1, 1, 1)


def where(images_NCHW: Tensor, chosen_N: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Replace the selected images by `change(images, indices)` of them, in place.

    `chosen_N` is a bool mask on the CPU; `indices` (on the CPU) are the selected samples.
    """
    indices_K = chosen_N.nonzero().flatten()
    if len(indices_K) == 0:
        return images_NCHW
    if len(indices_K) == len(images_NCHW):
        return change(images_NCHW, indices_K)
    index_K = indices_K.to(images_NCHW.device, non_blocking=True)
    return put(images_NCHW, index_K, change(images_NCHW.index_select(0, index_K), indices_K))


def most(chosen_N: Tensor) -> bool:
    """Whether more than half of the values are true."""
    return 2 * int(chosen_N.sum()) > len(chosen_N)


def put(images_NCHW: Tensor, index_K: Tensor, changed_KCHW: Tensor) -> Tensor:
    """Overwrite the images at `index_K`, indices on the images' device, and return all images."""
    words, changed = _as_words(images_NCHW), _as_words(changed_KCHW)
    if words is None or changed is None:
        return images_NCHW.index_copy_(0, index_K, changed_KCHW)
    words.index_copy_(0, index_K, changed)
    return images_NCHW


def _as_words(images_NCHW: Tensor) -> Tensor | None:
    """View the images' memory as int64, one row per image, if size and alignment allow.

    `index_copy_` writes one element at a time, so eight uint8 pixels take as long as one.
    """
    size = math.prod(images_NCHW.shape[1:]) * images_NCHW.element_size()
    if not images_NCHW.is_contiguous() or size % 8 or images_NCHW.data_ptr() % 8:
        return None
    return images_NCHW.flatten(1).view(torch.int64)
