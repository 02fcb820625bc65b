"""Weather on whole batches: clouds, fog, snow and rain."""

import torch
from torch import Tensor

from trainer.augmentation.counted import uniform
from trainer.augmentation.operation import RangedOperation, Rows, column
from trainer.base.checks import check_number, check_range, check_whole

_OCTAVES = 3


class Clouds(RangedOperation):
    """Draws white clouds: y = round(x + (255 - x) opacity t), t = clamp(2.5 (f - 1 + coverage), 0, 1).

    f is a smooth random field in [0, 1) (see `smooth_field`) with clouds of about `size` times the shorter side.
    `opacity`, `coverage`: ranges in 0..1, uniform; if either is 0, the image is unchanged.

    Source: UVic PHYS 555, "Weather" (clouds). Raises ValueError: `opacity` or `coverage` not in 0..1 or in the wrong
    order, `size` not in 0.02..1, `probability` not in 0..1.
    """

    draws_seeds = True

    def __init__(
        self,
        opacity: tuple[float, float] = (0.3, 0.9),
        coverage: tuple[float, float] = (0.3, 0.7),
        size: float = 0.5,
        probability: float = 1.0,
    ) -> None:
        super().__init__(
            probability, opacity=check_range("opacity", opacity, 0, 1), coverage=check_range("coverage", coverage, 0, 1)
        )
        self.size = check_number("size", size, 0.02, 1)

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        thickness = smooth_field(rows["seed"], images_KCHW, self.size)
        thickness.add_(column(rows["coverage"], images_KCHW) - 1).mul_(2.5).clamp_(0, 1)
        return _veil(images_KCHW, thickness.mul_(column(rows["opacity"], images_KCHW)), 255)


class Fog(RangedOperation):
    """Blends the image with a grey veil: y = round(x + (level - x) density (1 - patchiness f)).

    f is a smooth random field in [0, 1) (see `smooth_field`) with patches of about `size` times the shorter side.
    `density`: range in 0..1, uniform, of the veil's opacity at its thickest; `patchiness` in 0..1: 0 is a uniform
    veil. `level` in 0..255.

    Source: UVic PHYS 555, "Weather" (fog). Raises ValueError: a value out of its range, `density` in the wrong order,
    `size` not in 0.02..1, `probability` not in 0..1.
    """

    draws_seeds = True

    def __init__(
        self,
        density: tuple[float, float] = (0.2, 0.7),
        patchiness: float = 0.5,
        level: float = 220.0,
        size: float = 0.7,
        probability: float = 1.0,
    ) -> None:
        super().__init__(probability, density=check_range("density", density, 0, 1))
        self.patchiness = check_number("patchiness", patchiness, 0, 1)
        self.level, self.size = check_number("level", level, 0, 255), check_number("size", size, 0.02, 1)

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        field = smooth_field(rows["seed"], images_KCHW, self.size)
        thickness = field.mul_(-self.patchiness).add_(1)
        return _veil(images_KCHW, thickness.mul_(column(rows["density"], images_KCHW)), self.level)


class Snowflakes(RangedOperation):
    """Draws white flakes: y = round(x + (255 - x) m), where m is a sum of flakes, at most 1.

    m is uniform in 0.5..1 at a flake's centre and falls linearly in both directions to 0 at a distance of `size`
    pixels (1: a single pixel). `density`: range of the fraction of pixels that are centres of flakes, uniform.

    Source: UVic PHYS 555, "Weather" (snow-flakes). Raises ValueError: `density` not in 0..1 or in the wrong order,
    `size` not in 1..64, `probability` not in 0..1.
    """

    draws_seeds = True

    def __init__(self, density: tuple[float, float] = (0.005, 0.03), size: int = 2, probability: float = 1.0) -> None:
        super().__init__(probability, density=check_range("density", density, 0, 1))
        self.size = check_whole("size", size, 1, 64)

    def lengths(self) -> dict[str, tuple[int, int]]:
        return {"size": (self.size, 1)}

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        H, W = images_KCHW.shape[2:]
        reach = self.size - 1
        shape = (1, H + 2 * reach, W + 2 * reach)  # flakes centred outside extend into the image
        numbers = uniform(rows["seed"], shape, images_KCHW.device)
        density = column(rows["density"], images_KCHW)
        flakes = (numbers < density).to(torch.float32)
        brightness = uniform(rows["seed"], shape, images_KCHW.device, 1)
        flakes.mul_(brightness.mul_(128).floor_().add_(128))
        for axis in (2, 3):
            flakes = _spread(flakes, self.size, axis)
        return _veil(images_KCHW, flakes.div_(256 * self.size**2).clamp_(max=1), 255)


class SnowyLandscape(RangedOperation):
    """Covers dark pixels with snow: if the HLS lightness L is below `threshold`, it becomes min(255, `factor` L).

    Hue and saturation are unchanged. L = (max + min) / 2 over the channels, in levels; y = L' + (x - L) (255 - |2 L' -
    255|) / (255 - |2 L - 255|), rounded. `threshold` (levels 0..255), `factor` (at least 1): ranges, uniform.

    Source: UVic PHYS 555, "Weather" (Fast-snowy-landscape). Raises ValueError: a range out of its bounds or in the
    wrong order, `probability` not in 0..1.
    """

    def __init__(
        self,
        threshold: tuple[float, float] = (100.0, 200.0),
        factor: tuple[float, float] = (1.2, 2.5),
        probability: float = 1.0,
    ) -> None:
        super().__init__(
            probability, threshold=check_range("threshold", threshold, 0, 255), factor=check_range("factor", factor, 1)
        )

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        lowest, highest = images_KCHW.aminmax(dim=1, keepdim=True)
        lightness = lowest.add_(highest).mul_(0.5)
        brighter = (lightness * column(rows["factor"], images_KCHW)).clamp_(max=255)
        dark = lightness < column(rows["threshold"], images_KCHW)
        brighter = torch.where(dark, brighter, lightness)
        # black and white have no colour to stretch
        stretch = _room(brighter).div_(_room(lightness).clamp_(min=1))
        return images_KCHW.sub_(lightness).mul_(stretch).add_(brighter).round_().clamp_(0, 255)


class Rain(RangedOperation):
    """Draws grey streaks, one pixel wide: y = round(x + (level - x) opacity) on a streak.

    `density`: range of the fraction of pixels at which a streak ends; `length`: vertical extent of a streak as a
    fraction of the image height (at least one pixel); `slant`: range of the horizontal shift to the right per pixel
    down, the same for all streaks of an image; `opacity`: range in 0..1. Ranges are uniform. `level` in 0..255.

    Source: UVic PHYS 555, "Weather", beside snow and fog. Raises ValueError: a value out of its range (`slant` in
    -2..2), a range in the wrong order, `probability` not in 0..1.
    """

    draws_seeds = True

    def __init__(
        self,
        density: tuple[float, float] = (0.005, 0.02),
        length: float = 0.2,
        slant: tuple[float, float] = (-0.3, 0.3),
        opacity: tuple[float, float] = (0.2, 0.6),
        level: float = 200.0,
        probability: float = 1.0,
    ) -> None:
        super().__init__(
            probability,
            density=check_range("density", density, 0, 1),
            slant=check_range("slant", slant, -2, 2),
            opacity=check_range("opacity", opacity, 0, 1),
        )
        self.length, self.level = check_number("length", length, 0, 1), check_number("level", level, 0, 255)

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        streaks = self._streaks(rows["seed"], rows["density"], images_KCHW)
        slanted = self._slanted(streaks, rows["slant"], images_KCHW.shape[3])
        opacity = column(rows["opacity"], images_KCHW)
        return _veil(images_KCHW, slanted.unsqueeze(1).mul_(opacity), self.level)

    def _reach(self, height: int) -> tuple[int, int]:
        """Largest shifts of the lowest row to the left and to the right, in pixels."""
        left, right = self.ranges["slant"]
        return round(max(0.0, -left) * (height - 1)), round(max(0.0, right) * (height - 1))

    def _streaks(self, seeds_K: Tensor, density_K: Tensor, images_KCHW: Tensor) -> Tensor:
        """float32 (K, H, W + reach): 1 on a streak, 0 elsewhere, before slanting."""
        H, W = images_KCHW.shape[2:]
        length = max(1, round(self.length * H))
        shape = (1, H + length - 1, W + sum(self._reach(H)))
        numbers = uniform(seeds_K, shape, images_KCHW.device)
        streaks = (numbers < column(density_K, numbers)).to(torch.float32).squeeze(1)
        reached = 1
        while reached < length:  # each round doubles the streaks' length
            step = min(reached, length - reached)
            streaks = torch.maximum(streaks[:, :-step], streaks[:, step:])
            reached += step
        return streaks

    def _slanted(self, streaks: Tensor, slant_K: Tensor, width: int) -> Tensor:
        """Shift row i to the right by round(slant i) and crop to the image width."""
        H = streaks.shape[1]
        slant_K1 = slant_K.to(streaks.device, non_blocking=True).unsqueeze(1)
        shift_KH = (slant_K1 * torch.arange(H, device=streaks.device)).round_()
        first_KH1 = (self._reach(H)[1] - shift_KH).to(torch.int64).unsqueeze(2)
        return streaks.gather(2, first_KH1 + torch.arange(width, device=streaks.device))


def smooth_field(seeds_N: Tensor, images_NCHW: Tensor, size: float) -> Tensor:
    """float32 (N, 1, H, W) in [0, 1) with mean 1/2: a sum of smoothly interpolated grids of random numbers.

    The first grid has about 1 / `size` cells along the shorter side; each of the next two has twice as many and half
    the weight. Grid values and interpolation weights are integer multiples of 1/256, so that all sums are exact in
    float64, in any order and on any device.
    """
    H, W = images_NCHW.shape[2:]
    device = images_NCHW.device
    field = torch.zeros(len(seeds_N), H, W, dtype=torch.float64, device=device)
    for octave in range(_OCTAVES):
        cell = size * min(H, W) / 2**octave
        rows, columns = max(1, round(H / cell)), max(1, round(W / cell))
        grid = uniform(seeds_N, (rows + 1, columns + 1), device, octave).mul_(256).floor_().double()
        down_HR, across_WC = (
            _interpolation(side, cells).to(device, non_blocking=True) for side, cells in ((H, rows), (W, columns))
        )
        between = down_HR @ grid @ across_WC.T
        field.add_(between.mul_(2.0 ** (_OCTAVES - 1 - octave)))
    return field.div_(2**24 * (2**_OCTAVES - 1)).to(torch.float32).unsqueeze(1)


def _interpolation(size: int, cells: int) -> Tensor:
    """float64 (size, cells + 1): weights of the grid points on either side of each pixel centre, in 256ths.

    The weights are 3 t^2 - 2 t^3.
    """
    coordinate = (torch.arange(size, dtype=torch.float64) + 0.5) * cells / size
    before = coordinate.floor()
    t = coordinate - before
    weight = (256 * t * t * (3 - 2 * t)).round_()
    weights = torch.zeros(size, cells + 1, dtype=torch.float64)
    line = torch.arange(size)
    weights[line, before.long()] = 256 - weight
    weights[line, before.long() + 1] = weight
    return weights


def _veil(images_NCHW: Tensor, share_N1HW: Tensor, level: float) -> Tensor:
    """Blend the images with `level`, in place; `share_N1HW` is the weight of the level."""
    return images_NCHW.add_((level - images_NCHW).mul_(share_N1HW)).round_()


def _spread(flakes: Tensor, size: int, axis: int) -> Tensor:
    """Convolve with a triangle: a value also adds to pixels up to size - 1 away, times size - distance."""
    reach = size - 1
    count = flakes.shape[axis] - 2 * reach
    total = flakes.narrow(axis, reach, count) * size
    for distance in range(1, size):
        pair = flakes.narrow(axis, reach - distance, count) + flakes.narrow(axis, reach + distance, count)
        total.add_(pair.mul_(size - distance))
    return total


def _room(lightness: Tensor) -> Tensor:
    """255 - |2 L - 255|: the largest difference of two channels at this lightness."""
    return lightness.mul(2).sub_(255).abs_().neg_().add_(255)
