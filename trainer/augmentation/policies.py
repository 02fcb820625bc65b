"""Policies that draw an operation and its strength for each image: TrivialAugment, RandAugment."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.augmentation import colour
from trainer.augmentation.operation import Rows, check_probability, draw_applied

# those that move pixels, with their sign, stand between the one that does nothing and those of colours
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
_NUM_SIGNED = 10  # the first ones; the others have no sign
_COLOURS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda images, magnitude_N: colour.change_brightness(images, 1 + magnitude_N),
    lambda images, magnitude_N: colour.change_saturation(images, 1 + magnitude_N),
    lambda images, magnitude_N: colour.change_contrast(images, 1 + magnitude_N),
    lambda images, magnitude_N: colour.sharpen(images, 1 + magnitude_N),
    lambda images, magnitude_N: colour.posterize(images, magnitude_N),
    lambda images, magnitude_N: colour.solarize(images, 255 * magnitude_N),
    lambda images, _: colour.stretch_contrast(images),
    lambda images, _: colour.equalize(images),
)
_MAX_GRID_BYTES = 128 << 20


class _Policy:
    """`num_layers` operations, one after the other, each drawn from the pool for itself.

    A row holds for each layer the number of the operation in OPERATIONS, the bin of its magnitude, and whether that
    is negative. Images are sorted by their operation, so that each is one call on neighbouring images.
    """

    def __init__(self, pool: Sequence[str], num_layers: int, num_magnitude_bins: int, probability: float) -> None:
        check_probability(probability)
        if num_magnitude_bins < 2:
            raise ValueError(f"num_magnitude_bins={num_magnitude_bins}: must be 2 or more")
        unknown = [name for name in pool if name not in OPERATIONS]
        if unknown or not pool:
            raise ValueError(f"pool={list(pool)}: must name one or more of {', '.join(OPERATIONS)}")
        self.pool, self.num_magnitude_bins, self.probability = tuple(pool), num_magnitude_bins, probability
        self._num_layers = num_layers
        self._magnitudes_of: dict[tuple[int, int], Tensor] = {}
        self._grids_of: dict[tuple[int, int, int, torch.device], Tensor] = {}

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        shape = (num_samples, self._num_layers)
        applied_N = draw_applied(num_samples, self.probability, generator)
        numbers = torch.tensor([OPERATIONS.index(name) for name in self.pool])
        operation_NL = numbers[torch.randint(len(numbers), shape, generator=generator)]
        return {
            "operation": operation_NL * applied_N.unsqueeze(1),
            "bin": self._draw_bins(shape, generator),
            "negative": torch.randint(2, shape, generator=generator).bool(),
        }

    def _draw_bins(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def _largest(self, height: int, width: int) -> tuple[float, float, float, float, float, int]:
        """Of the shear, the shifts in x and y (pixels), the angle (degrees), the colours, and the lost bits."""
        raise NotImplementedError

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        images_NCHW = images_NCHW.contiguous()
        for layer in range(self._num_layers):
            operation_N, bin_N, negative_N = (rows[name][:, layer] for name in ("operation", "bin", "negative"))
            images_NCHW = self._apply(images_NCHW, operation_N, bin_N, negative_N)
        return images_NCHW

    def _apply(self, images_NCHW: Tensor, operation_N: Tensor, bin_N: Tensor, negative_N: Tensor) -> Tensor:
        H, W = images_NCHW.shape[2:]
        order_N = operation_N.argsort(stable=True)
        counts = torch.bincount(operation_N, minlength=len(OPERATIONS)).tolist()
        code_N = (operation_N * self.num_magnitude_bins + bin_N) * 2 + negative_N
        sizes = (counts[0], sum(counts[1 : 1 + _NUM_MOVING]), sum(counts[1 + _NUM_MOVING :]))
        _, moved_K, coloured_K = order_N.split(sizes)
        if len(moved_K):
            there_K = moved_K.to(images_NCHW.device, non_blocking=True)
            grids = self._grids(code_N[moved_K].tolist(), H, W, images_NCHW.device)
            moved = F.grid_sample(images_NCHW.index_select(0, there_K), grids, mode="nearest", align_corners=False)
            images_NCHW.index_copy_(0, there_K, moved)
        if len(coloured_K):
            there_K = coloured_K.to(images_NCHW.device, non_blocking=True)
            coloured = images_NCHW.index_select(0, there_K)
            magnitude_K = self._magnitudes(H, W).index_select(0, code_N[coloured_K])
            sizes = tuple(counts[1 + _NUM_MOVING :])
            for change, images, magnitudes in zip(
                _COLOURS, coloured.split(sizes), magnitude_K.split(sizes), strict=True
            ):
                if len(images):
                    change(images, magnitudes)
            images_NCHW.index_copy_(0, there_K, coloured)
        return images_NCHW

    def _magnitudes(self, height: int, width: int) -> Tensor:
        """float64, by the code (operation, bin, sign): torchvision's float32 steps."""
        if (height, width) not in self._magnitudes_of:
            bins = self.num_magnitude_bins
            shear, shift_x, shift_y, angle, colours, lost_bits = self._largest(height, width)
            none = torch.zeros(bins)
            signed = [torch.linspace(0.0, largest, bins) for largest in (shear, shift_x, shift_y, angle, colours)]
            bits = (8 - torch.arange(bins) / ((bins - 1) / lost_bits)).round()
            table = torch.stack(
                [none, signed[0], *signed[:4], *[signed[4]] * 4, bits, torch.linspace(1.0, 0.0, bins), none, none]
            ).double()
            negative = table.clone()
            negative[:_NUM_SIGNED].neg_()
            self._magnitudes_of = {(height, width): torch.stack((table, negative), 2).flatten()}
        return self._magnitudes_of[height, width]

    def _grids(self, codes: list[int], height: int, width: int, device: torch.device) -> Tensor:
        """float32 (K, H, W, 2) for grid_sample. Those of one image size, kept, take 2.5 MB at 32 x 32 and 31 bins."""
        grids = []
        for code in codes:
            key = (code, height, width, device)
            if key not in self._grids_of:
                while len(self._grids_of) * height * width * 8 > _MAX_GRID_BYTES:
                    self._grids_of.pop(next(iter(self._grids_of)))
                self._grids_of[key] = self._grid(code, height, width).to(device)
            grids.append(self._grids_of[key])
        return torch.stack(grids)

    def _grid(self, code: int, height: int, width: int) -> Tensor:
        """Where each pixel comes from, (H, W, 2): the centre of the one that torchvision takes, so that no rounding
        decides between two; outside of the image for a black one."""
        import torchvision.transforms.v2.functional as transforms

        name = OPERATIONS[code // (2 * self.num_magnitude_bins)]
        magnitude = self._magnitudes(height, width)[code].item()
        numbers_1HW = torch.arange(1.0, height * width + 1).view(1, height, width)
        if name == "Rotate":
            found = transforms.rotate(numbers_1HW, magnitude)
        else:
            slope = math.degrees(math.atan(magnitude))
            shear = {"ShearX": [slope, 0.0], "ShearY": [0.0, slope]}.get(name, [0.0, 0.0])
            shift = {"TranslateX": [int(magnitude), 0], "TranslateY": [0, int(magnitude)]}.get(name, [0, 0])
            corner = [0, 0] if name.startswith("Shear") else None
            found = transforms.affine(numbers_1HW, angle=0.0, translate=shift, scale=1.0, shear=shear, center=corner)
        number_HW = found[0].to(torch.int64)
        x_HW, y_HW = (number_HW - 1) % width, (number_HW - 1) // width
        grid_HW2 = torch.stack(((2 * x_HW + 1) / width - 1, (2 * y_HW + 1) / height - 1), 2)
        return torch.where((number_HW > 0).unsqueeze(2), grid_HW2, -2.0)


class TrivialAugment(_Policy):
    """One operation of the pool an image, at one of `num_magnitude_bins` strengths: equal to torchvision's
    TrivialAugmentWide with nearest neighbours and black (0) where there is no image.

    Strengths go from none to: shear 0.99, shift 32 pixels, rotation 135 degrees, the factors of brightness, saturation
    (Color), contrast and sharpness 1 +- 0.99, two bits of colour, all pixels solarized; signs are drawn.

    Source: Mueller and Hutter, "TrivialAugment" (2021). Raises ValueError: an unknown name in `pool` or none,
    `num_magnitude_bins` below 2, `probability` not in 0..1.
    """

    def __init__(
        self, num_magnitude_bins: int = 31, pool: Sequence[str] = OPERATIONS, probability: float = 1.0
    ) -> None:
        super().__init__(pool, 1, num_magnitude_bins, probability)

    def _draw_bins(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.randint(self.num_magnitude_bins, shape, generator=generator)

    def _largest(self, height: int, width: int) -> tuple[float, float, float, float, float, int]:
        return 0.99, 32.0, 32.0, 135.0, 0.99, 6


class RandAugment(_Policy):
    """`num_ops` operations of the pool, one after the other, all at the strength `magnitude` of
    0..`num_magnitude_bins` - 1: equal to torchvision's RandAugment with nearest neighbours and black (0) where there
    is no image.

    The strongest: shear 0.3, shift 150/331 of the image, rotation 30 degrees, the factors of brightness, saturation
    (Color), contrast and sharpness 1 +- 0.9, four bits of colour, all pixels solarized; signs are drawn.

    Source: Cubuk et al., "RandAugment" (2020). Raises ValueError: `num_ops` below 1, `magnitude` not below the number
    of bins, an unknown name in `pool` or none, `num_magnitude_bins` below 2, `probability` not in 0..1.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        pool: Sequence[str] = OPERATIONS,
        probability: float = 1.0,
    ) -> None:
        super().__init__(pool, num_ops, num_magnitude_bins, probability)
        if num_ops < 1:
            raise ValueError(f"num_ops={num_ops}: must be 1 or more")
        if not 0 <= magnitude < num_magnitude_bins:
            raise ValueError(f"magnitude={magnitude}: must be from 0 to num_magnitude_bins - 1")
        self.num_ops, self.magnitude = num_ops, magnitude

    def _draw_bins(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.full(shape, self.magnitude)

    def _largest(self, height: int, width: int) -> tuple[float, float, float, float, float, int]:
        return 0.3, 150.0 / 331.0 * width, 150.0 / 331.0 * height, 30.0, 0.9, 4
