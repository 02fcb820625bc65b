"""Policies that draw an operation and a magnitude for each image: TrivialAugment, RandAugment."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.augmentation.colour_arithmetic import (
    blend_weights,
    change_brightness,
    change_contrast,
    change_saturation,
    equalize,
    posterize,
    sharpen,
    solarize,
    stretch_contrast,
)
from trainer.augmentation.operation import Operation, Rows, check_probability, draw_applied, put
from trainer.base.checks import check_whole

# sorted by kind: the identity, the geometric operations (with a sign), the colour operations
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
_NUM_MOVING = 5
_COLOURS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda images, magnitude_N: change_brightness(images, *blend_weights(1 + magnitude_N, images)),
    lambda images, magnitude_N: change_saturation(images, *blend_weights(1 + magnitude_N, images)),
    lambda images, magnitude_N: change_contrast(images, *blend_weights(1 + magnitude_N, images)),
    lambda images, magnitude_N: sharpen(images, 1 + magnitude_N),
    lambda images, magnitude_N: posterize(images, magnitude_N),
    lambda images, magnitude_N: solarize(images, 255 * magnitude_N),
    lambda images, _: stretch_contrast(images),
    lambda images, _: equalize(images),
)
_MAX_GRID_BYTES = 256 << 20
_MOST_BINS, _MOST_LAYERS = 1000, 100


class _Policy(Operation):
    """Applies `num_layers` operations in sequence, each drawn independently from `pool`, with a magnitude drawn from
    `bins`.

    For each layer a row holds the operation's index in OPERATIONS, the index of its magnitude in `bins`, and whether
    the magnitude is negative. Images are sorted by these, so that each operation is one call on consecutive images.
    """

    def __init__(
        self, pool: Sequence[str], num_layers: int, num_magnitude_bins: int, bins: Sequence[int], probability: float
    ) -> None:
        check_probability(probability)
        check_whole("num_magnitude_bins", num_magnitude_bins, 2, _MOST_BINS)
        check_whole("num_ops", num_layers, 1, _MOST_LAYERS)
        if not pool or not set(pool) <= set(OPERATIONS):
            raise ValueError(f"pool={list(pool)}: must name one or more of {', '.join(OPERATIONS)}")
        self.pool, self.num_magnitude_bins, self.probability = tuple(pool), num_magnitude_bins, probability
        self._num_layers, self._bins = num_layers, list(bins)
        self._magnitudes_of: dict[tuple[int, int], Tensor] = {}
        self._grids_of: dict[tuple[int, int, torch.device], Tensor] = {}

    @abstractmethod
    def _largest(self, height: int, width: int) -> tuple[float, float, float, float, float, int]:
        """Largest shear, shifts in x and y (pixels), angle (degrees), colour change, and number of lost bits."""

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        shape = (num_samples, self._num_layers)
        applied_N = draw_applied(num_samples, self.probability, generator)
        numbers = torch.tensor([OPERATIONS.index(name) for name in self.pool])
        operation_NL = numbers[torch.randint(len(numbers), shape, generator=generator)]
        return {
            "operation": operation_NL * applied_N.unsqueeze(1),
            "strength": torch.randint(len(self._bins), shape, generator=generator),
            "negative": torch.randint(2, shape, generator=generator).bool(),
        }

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        operation_NL = rows["operation"]
        code_NL = (operation_NL * len(self._bins) + rows["strength"]) * 2 + rows["negative"]
        for layer in range(self._num_layers):
            code_N, order_N = code_NL[:, layer].sort(stable=True)
            counts = torch.bincount(operation_NL[:, layer], minlength=len(OPERATIONS)).tolist()
            moving, coloured = counts[0], sum(counts[: 1 + _NUM_MOVING])  # where each kind begins
            self._move(images_NCHW, order_N[moving:coloured], code_N[moving:coloured])
            self._colour(images_NCHW, order_N[coloured:], code_N[coloured:], counts[1 + _NUM_MOVING :])
        return images_NCHW

    def phrases(self, rows: Rows) -> Sequence[list[str]]:
        """The names of the operations."""
        return [[OPERATIONS[number] for number in numbers] for numbers in rows["operation"].tolist()]

    def _move(self, images_NCHW: Tensor, indices_K: Tensor, code_K: Tensor) -> None:
        if len(indices_K) == 0:
            return
        index_K = indices_K.to(images_NCHW.device, non_blocking=True)
        grids = self._grids(code_K, images_NCHW)
        moved = F.grid_sample(images_NCHW.index_select(0, index_K), grids, mode="nearest", align_corners=False)
        put(images_NCHW, index_K, moved)

    def _colour(self, images_NCHW: Tensor, indices_K: Tensor, code_K: Tensor, counts: list[int]) -> None:
        if len(indices_K) == 0:
            return
        index_K = indices_K.to(images_NCHW.device, non_blocking=True)
        coloured = images_NCHW.index_select(0, index_K)
        H, W = images_NCHW.shape[2:]
        magnitude_K = self._magnitudes(H, W).index_select(0, code_K)
        start = 0
        for change, count in zip(_COLOURS, counts, strict=True):
            if count:
                stop = start + count
                change(coloured[start:stop], magnitude_K[start:stop])
                start = stop
        put(images_NCHW, index_K, coloured)

    def _magnitudes(self, height: int, width: int) -> Tensor:
        """float64, indexed by the code (operation, magnitude, sign): torchvision's float32 values."""
        if (height, width) not in self._magnitudes_of:
            num_bins = self.num_magnitude_bins
            shear, shift_x, shift_y, angle, colours, lost_bits = self._largest(height, width)
            largest = (0.0, shear, shear, shift_x, shift_y, angle, *[colours] * 4)
            none, solarized = torch.zeros(num_bins), torch.linspace(1.0, 0.0, num_bins)
            bits = (8 - torch.arange(num_bins) / ((num_bins - 1) / lost_bits)).round()
            signed = torch.stack([torch.linspace(0.0, end, num_bins) for end in largest])
            others = torch.stack((bits, solarized, none, none))
            table = torch.stack((torch.cat((signed, others)), torch.cat((-signed, others))), 2)
            self._magnitudes_of = {(height, width): table[:, self._bins].double().flatten()}
        return self._magnitudes_of[height, width]

    def _grids(self, code_K: Tensor, images_NCHW: Tensor) -> Tensor:
        """float32 (K, H, W, 2) for grid_sample.

        The grids of all codes are computed once per image size and cached (2.5 MB for 32x32 pixels and 31 magnitudes),
        unless they take more than 256 MB.
        """
        H, W = images_NCHW.shape[2:]
        first, stop = 2 * len(self._bins), 2 * len(self._bins) * (1 + _NUM_MOVING)
        if (stop - first) * H * W * 8 > _MAX_GRID_BYTES:
            grids_KHW2 = torch.stack([self._grid(code, H, W) for code in code_K.tolist()])
            return grids_KHW2.to(images_NCHW.device, non_blocking=True)
        key = (H, W, images_NCHW.device)
        if key not in self._grids_of:
            table = torch.stack([self._grid(code, H, W) for code in range(first, stop)])
            self._grids_of = {key: table.flatten(1).to(images_NCHW.device, non_blocking=True)}
        grid_index_K = (code_K - first).to(images_NCHW.device, non_blocking=True)
        return self._grids_of[key].index_select(0, grid_index_K).view(-1, H, W, 2)

    def _grid(self, code: int, height: int, width: int) -> Tensor:
        """Source position of each pixel, (H, W, 2); outside the image for a black pixel.

        It is the exact centre of the pixel that torchvision picks, so that rounding cannot pick another.
        """
        import torchvision.transforms.v2.functional as transforms

        name = OPERATIONS[code // (2 * len(self._bins))]
        magnitude = self._magnitudes(height, width)[code].item()
        x_W, y_H = ((2 * torch.arange(size) + 1) / size - 1 for size in (width, height))
        # torchvision transforms an image of coordinates, shifted to be positive; pixels that it fills with 0 end at -4
        centres_2HW = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy")) + 4
        if name == "Rotate":
            found_2HW = transforms.rotate(centres_2HW, magnitude)
        else:
            slope = math.degrees(math.atan(magnitude))
            shear = {"ShearX": [slope, 0.0], "ShearY": [0.0, slope]}.get(name, [0.0, 0.0])
            shift = {"TranslateX": [int(magnitude), 0], "TranslateY": [0, int(magnitude)]}.get(name, [0, 0])
            centre = [0, 0] if name.startswith("Shear") else None  # the upper left corner
            found_2HW = transforms.affine(
                centres_2HW, angle=0.0, translate=shift, scale=1.0, shear=shear, center=centre
            )
        grid_HW2: Tensor = (found_2HW - 4).permute(1, 2, 0)
        return grid_HW2


class TrivialAugment(_Policy):
    """Applies one random operation of `pool` per image, at one of `num_magnitude_bins` magnitudes.

    Equal to torchvision's TrivialAugmentWide with nearest-neighbour interpolation and black (0) fill. Magnitudes range
    from none to: shear 0.99, shift 32 pixels, rotation 135 degrees, factors of brightness, saturation (Color),
    contrast and sharpness 1 +- 0.99, posterizing to two bits, solarizing all pixels; signs are random.

    Source: Mueller and Hutter, "TrivialAugment" (2021). Raises ValueError: an unknown name in `pool` or none,
    `num_magnitude_bins` not in 2..1000, `probability` not in 0..1.
    """

    def __init__(
        self, num_magnitude_bins: int = 31, pool: Sequence[str] = OPERATIONS, probability: float = 1.0
    ) -> None:
        super().__init__(pool, 1, num_magnitude_bins, range(num_magnitude_bins), probability)

    def notice(self, side: int, are_characters: bool) -> tuple[str, str] | None:
        *_, shift, turn, _, _ = self._largest(side, side)
        unsuited: dict[str, str] = {}
        if shift > side:
            unsuited |= dict.fromkeys(("TranslateX", "TranslateY"), f"shifts by up to {shift:g} of {side} pixels")
        if are_characters:
            unsuited["Rotate"] = f"turns by up to {turn:g} degrees, a 6 into a 9"
        kept = [name for name in self.pool if name not in unsuited]
        reasons = dict.fromkeys(unsuited[name] for name in self.pool if name in unsuited)
        return (" and ".join(reasons), f"pool=[{','.join(kept)}]") if reasons and kept else None

    def _largest(self, height: int, width: int) -> tuple[float, float, float, float, float, int]:
        return 0.99, 32.0, 32.0, 135.0, 0.99, 6


class RandAugment(_Policy):
    """Applies `num_ops` random operations of `pool` in sequence, all at `magnitude`, in 0..`num_magnitude_bins` - 1.

    Equal to torchvision's RandAugment with nearest-neighbour interpolation and black (0) fill. The largest magnitudes:
    shear 0.3, shift 150/331 of the image, rotation 30 degrees, factors of brightness, saturation (Color), contrast and
    sharpness 1 +- 0.9, posterizing to four bits, solarizing all pixels; signs are random.

    Source: Cubuk et al., "RandAugment" (2020). Raises ValueError: `num_ops` not in 1..100, `magnitude` not below the
    number of bins, an unknown name in `pool` or none, `num_magnitude_bins` not in 2..1000, `probability` not in 0..1.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        pool: Sequence[str] = OPERATIONS,
        probability: float = 1.0,
    ) -> None:
        super().__init__(pool, num_ops, num_magnitude_bins, [magnitude], probability)
        check_whole("magnitude", magnitude, 0, num_magnitude_bins - 1, must="from 0 to num_magnitude_bins - 1")
        self.num_ops, self.magnitude = num_ops, magnitude

    def _largest(self, height: int, width: int) -> tuple[float, float, float, float, float, int]:
        return 0.3, 150.0 / 331.0 * width, 150.0 / 331.0 * height, 30.0, 0.9, 4
