"""Operations that crop a box from an image and resize it to the output size, antialiased.

A frame is a row of eight integers: the box to crop (top, left, height, width), the size (height, width) to resize it
to, and the corner (top, left) of the output within the resized box.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from trainer.augmentation.counted import uniform
from trainer.augmentation.operation import (
    Operation,
    Rows,
    check_probability,
    draw_applied,
    draw_seeds,
    draw_uniform,
    where,
)
from trainer.base.checks import check_number, check_range
from trainer.base.chunks import chunks

_TRIES = 10
_SMALLEST_BOX = 4.0  # pixels that still show something


class Framing(Operation):
    """Base class of operations that choose a frame for each sample.

    Frames depend on the size of the stored image, so the table holds a seed per sample instead of a frame.
    """

    def __init__(self, probability: float) -> None:
        check_probability(probability)
        self.probability = probability

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        return {"applied": applied_N, "seed": draw_seeds(num_samples, generator)}

    def frames(self, rows: Rows, sizes_N2: Tensor, output_hw: tuple[int, int]) -> Tensor:
        """Frames, int64_N8, for images of the given heights and widths."""
        height_N, width_N = sizes_N2.unbind(1)
        chosen_N8 = self._chosen(rows["seed"], height_N, width_N, output_hw)
        ratio = output_hw[1] / output_hw[0]
        return torch.where(
            rows["applied"].unsqueeze(1), chosen_N8, _central(height_N, width_N, ratio, ratio, output_hw)
        )

    @abstractmethod
    def _chosen(self, seeds_N: Tensor, height_N: Tensor, width_N: Tensor, output_hw: tuple[int, int]) -> Tensor: ...

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        height, width = images_NCHW.shape[2:]
        sizes_N2 = torch.tensor([height, width]).expand(len(images_NCHW), 2)
        frames_N8 = self.frames(rows, sizes_N2, (height, width))
        return where(images_NCHW, rows["applied"], lambda chosen, at_K: apply_frames(chosen, frames_N8[at_K]))


def _central(height_N: Tensor, width_N: Tensor, low: float, high: float, output_hw: tuple[int, int]) -> Tensor:
    """Frames of the largest central boxes whose aspect ratio width / height lies in low..high."""
    box_height_N = torch.minimum(height_N, (width_N / low).round().long().clamp(min=1))
    box_width_N = torch.minimum(width_N, (height_N * high).round().long().clamp(min=1))
    top_N, left_N = (height_N - box_height_N) // 2, (width_N - box_width_N) // 2
    return _frames(top_N, left_N, box_height_N, box_width_N, *output_hw, 0, 0)


def _frames(*columns: Tensor | int) -> Tensor:
    tensors = [column for column in columns if isinstance(column, Tensor)]
    return torch.stack([torch.as_tensor(column).expand_as(tensors[0]) for column in columns], 1)


class ResizedCrop(Framing):
    """Crops a box of random area, aspect ratio and position and resizes it to the output size.

    The area is a fraction of the image area, uniform in `scale`; the aspect ratio width / height is exp(u) with u
    uniform in log `ratio`; sides are rounded to pixels and the position is uniform. If ten boxes do not fit, the box
    is the largest central one with an aspect ratio in the range. This is torchvision's RandomResizedCrop. With
    probability 1 - `probability` the box is the largest central one with the output's aspect ratio.

    Source: CUHK ELEG 5491, "Data augmentation" (random crops/scales); Szegedy et al., "Going deeper with convolutions"
    (2014). Raises ValueError: `scale` not in 0..1, `ratio` not above 0, bounds in the wrong order, `probability` not
    in 0..1.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        probability: float = 1.0,
    ) -> None:
        super().__init__(probability)
        self.scale = check_range("scale", scale, 0, 1)
        self.ratio = check_range("ratio", ratio, 0, above=True)

    def notice(self, side: int, are_characters: bool) -> tuple[str, str] | None:
        low, high = self.scale
        if math.sqrt(low) * side >= _SMALLEST_BOX:
            return None
        suited = min(1.0, math.ceil(1e4 * (_SMALLEST_BOX / side) ** 2) / 1e4)
        return (
            f"boxes of {math.sqrt(low) * side:.1f} of {side} pixels are enlarged",
            f"scale=[{suited:g},{max(high, suited):g}]",
        )

    def _chosen(self, seeds_N: Tensor, height_N: Tensor, width_N: Tensor, output_hw: tuple[int, int]) -> Tensor:
        drawn = uniform(seeds_N, (2 * _TRIES + 2,), seeds_N.device).double()
        scale_NT, ratio_NT, position_N2 = drawn.split([_TRIES, _TRIES, 2], 1)
        area_NT = (height_N * width_N).unsqueeze(1) * (self.scale[0] + (self.scale[1] - self.scale[0]) * scale_NT)
        low, high = (math.log(ratio) for ratio in self.ratio)
        ratio_NT = (low + (high - low) * ratio_NT).exp()
        tried_height_NT = (area_NT / ratio_NT).sqrt().round().long()
        tried_width_NT = (area_NT * ratio_NT).sqrt().round().long()
        fits_NT = (tried_height_NT > 0) & (tried_height_NT <= height_N.unsqueeze(1))
        fits_NT &= (tried_width_NT > 0) & (tried_width_NT <= width_N.unsqueeze(1))
        first_N1 = fits_NT.int().argmax(1, keepdim=True)
        box_height_N = tried_height_NT.gather(1, first_N1).squeeze(1)
        box_width_N = tried_width_NT.gather(1, first_N1).squeeze(1)
        top_N = (position_N2[:, 0] * (height_N - box_height_N + 1)).long()
        left_N = (position_N2[:, 1] * (width_N - box_width_N + 1)).long()
        found_N8 = _frames(top_N, left_N, box_height_N, box_width_N, *output_hw, 0, 0)
        central_N8 = _central(height_N, width_N, *self.ratio, output_hw)
        return torch.where(fits_NT.any(1, keepdim=True), found_N8, central_N8)


class RandomShortSide(Framing):
    """Resizes the short side of an image to a random length and crops the output at a random position, both uniform.

    The short side is an integer number of pixels within `short_side` times the output's side (256/224..480/224 in the
    lecture); the long side keeps the aspect ratio, rounded down as in torchvision. If the output is not square, the
    side that would be the first to fall below the output's takes the role of the short side. With probability 1 -
    `probability` the result is the largest central box with the output's aspect ratio, resized.

    Source: CUHK ELEG 5491, "Data augmentation" (pick random L in [256, 480], resize, sample a 224 x 224 patch). Raises
    ValueError: `short_side` not in 1..10, `probability` not in 0..1.
    """

    def __init__(self, short_side: tuple[float, float] = (256 / 224, 480 / 224), probability: float = 1.0) -> None:
        super().__init__(probability)
        self.short_side = check_range("short_side", short_side, 1, 10)

    def notice(self, side: int, are_characters: bool) -> tuple[str, str] | None:
        low, high = self.short_side
        if side / high >= _SMALLEST_BOX:
            return None
        suited = max(1.0, math.floor(1e4 * side / _SMALLEST_BOX) / 1e4)
        return (
            f"boxes of {side / high:.1f} of {side} pixels are enlarged",
            f"short_side=[{min(math.floor(1e4 * low) / 1e4, suited):g},{suited:g}]",
        )

    def _chosen(self, seeds_N: Tensor, height_N: Tensor, width_N: Tensor, output_hw: tuple[int, int]) -> Tensor:
        output_h, output_w = output_hw
        uniform_N3 = uniform(seeds_N, (3,), seeds_N.device).double()
        by_height_N = height_N * output_w <= width_N * output_h
        side_N = torch.where(by_height_N, output_h, output_w)
        low_N, high_N = ((side_N * fraction).round().long() for fraction in self.short_side)
        short_N = low_N + (uniform_N3[:, 0] * (high_N - low_N + 1)).long()
        new_height_N = torch.where(by_height_N, short_N, (short_N * height_N // width_N).clamp(min=output_h))
        new_width_N = torch.where(by_height_N, (short_N * width_N // height_N).clamp(min=output_w), short_N)
        y_N = (uniform_N3[:, 1] * (new_height_N - output_h + 1)).long()
        x_N = (uniform_N3[:, 2] * (new_width_N - output_w + 1)).long()
        return _frames(0, 0, height_N, width_N, new_height_N, new_width_N, y_N, x_N)


class CropAndPad(Operation):
    """Crops or pads each side with black pixels and resizes the result to the original size.

    For each of the four sides the fraction of the height or width is uniform in -`fraction`..`fraction`, rounded to
    pixels; negative values crop. Equal to torchvision's crop and pad followed by resize.

    Source: UVic PHYS 555, "Data augmentation" (crop-and-pad). Raises ValueError: `fraction` not in 0..0.5,
    `probability` not in 0..1.
    """

    def __init__(self, fraction: float = 0.125, probability: float = 1.0) -> None:
        check_probability(probability)
        self.fraction, self.probability = check_number("fraction", fraction, 0, 0.5), probability

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        names = ("top", "bottom", "left", "right")
        fractions = [draw_uniform(num_samples, -self.fraction, self.fraction, generator) for _ in names]
        return {name: torch.where(applied_N, fraction_N, 0) for name, fraction_N in zip(names, fractions, strict=True)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        height, width = images_NCHW.shape[2:]
        top_N, bottom_N = (_pixels(rows[name], height) for name in ("top", "bottom"))
        left_N, right_N = (_pixels(rows[name], width) for name in ("left", "right"))
        frames_N8 = _frames(-top_N, -left_N, height + top_N + bottom_N, width + left_N + right_N, height, width, 0, 0)
        changed_N = (frames_N8[:, :4] != torch.tensor([0, 0, height, width])).any(1)
        return where(images_NCHW, changed_N, lambda chosen, at_K: apply_frames(chosen, frames_N8[at_K]))


def _pixels(fraction_N: Tensor, size: int) -> Tensor:
    """Number of pixels to add, limited so that at least one pixel remains."""
    return (fraction_N * size).round().long().clamp(min=-((size - 1) // 2))


def apply_frames(images_NCHW: Tensor, frames_N8: Tensor, output_hw: tuple[int, int] | None = None) -> Tensor:
    """Crop and resize images to their frames (on the CPU), with integer results 0..255; in place if the size is
    unchanged.

    `output_hw` defaults to the images' own size. A box may extend beyond the image, which is black there. The results
    equal torchvision's crop and resize(antialias=True) on uint8 images: triangle-filter weights in fixed point, first
    horizontally, rounded, then vertically. All sums are exact, in any order.
    """
    N, C, H, W = images_NCHW.shape
    output_h, output_w = output_hw or (H, W)
    if N == 0:
        return images_NCHW.new_empty(N, C, output_h, output_w)
    top_N, left_N, height_N, width_N, new_height_N, new_width_N, y_N, x_N = frames_N8.unbind(1)
    across = _Axis(left_N, width_N, new_width_N, x_N, W, output_w)
    down = _Axis(top_N, height_N, new_height_N, y_N, H, output_h)
    result_NCHW = images_NCHW if (output_h, output_w) == (H, W) else images_NCHW.new_empty(N, C, output_h, output_w)
    for chunk in chunks(images_NCHW):
        narrow_NWL = across.resize(images_NCHW[chunk].flatten(1, 2).transpose(1, 2), chunk)
        turned_NHL = narrow_NWL.unflatten(2, (C, H)).permute(0, 3, 2, 1).flatten(2)
        result_NCHW[chunk] = down.resize(turned_NHL, chunk).unflatten(2, (C, output_w)).transpose(1, 2)
    return result_NCHW


class _Axis:
    """Resizing along one axis: `length` pixels from `start` become `new` pixels, of which `output` are kept from
    `corner`.

    Each of these O output pixels is the rounded weighted sum of K neighbours among the I = `size` input pixels.
    """

    def __init__(
        self, start_N: Tensor, length_N: Tensor, new_N: Tensor, corner_N: Tensor, size: int, output: int
    ) -> None:
        self._size = size
        taps_NPK, weights_NPK = _triangles(length_N, new_N)
        bits_N = _bits(weights_NPK.amax((1, 2)))
        wanted_NOK = (corner_N.unsqueeze(1) + torch.arange(output)).unsqueeze(2).expand(-1, -1, taps_NPK.shape[2])
        at_NOK = taps_NPK.gather(1, wanted_NOK) + start_N.view(-1, 1, 1)
        self._at_NOK = torch.where((at_NOK >= 0) & (at_NOK < size), at_NOK, size)  # index `size` means outside
        # integers below 2^24 are exact in float32
        self._dtype = torch.float32 if int(bits_N.max()) <= 16 else torch.float64
        one_N11 = 2.0 ** bits_N.view(-1, 1, 1)
        self._weights_NOK = (weights_NPK.gather(1, wanted_NOK) * one_N11 + 0.5).floor_().to(self._dtype)
        self._one_N11 = one_N11.to(self._dtype)

    def resize(self, pixels_NIL: Tensor, chunk: slice) -> Tensor:
        """NOL, for a chunk of images."""
        device = pixels_NIL.device
        at_NOK, weights_NOK, one_N11 = (
            values[chunk].to(device, non_blocking=True) for values in (self._at_NOK, self._weights_NOK, self._one_N11)
        )
        matrix_NOI = weights_NOK.new_zeros(*at_NOK.shape[:2], self._size + 1).scatter_(2, at_NOK, weights_NOK)
        sums_NOL = matrix_NOI[..., :-1] @ pixels_NIL.to(self._dtype)
        return sums_NOL.add_(one_N11 / 2).div_(one_N11).floor_()


def _triangles(length_N: Tensor, new_N: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and weights, NPK, of the input pixels (of `length`) that make each of `new` pixels; 0 beyond the last."""
    scale_N11 = (length_N / new_N.double()).view(-1, 1, 1)
    support_N11 = scale_N11.clamp(min=1)
    num_taps = 2 * math.ceil(float(support_N11.max())) + 1
    new_P1 = torch.arange(int(new_N.max())).unsqueeze(1)
    centre_NP1 = scale_N11 * (new_P1 + 0.5)
    taps_NPK = (centre_NP1 - support_N11 + 0.5).long().clamp(min=0) + torch.arange(num_taps)
    weights_NPK = (1 - ((taps_NPK - centre_NP1 + 0.5) * (1 / support_N11)).abs()).clamp_(min=0)
    weights_NPK *= (taps_NPK < length_N.view(-1, 1, 1)) & (new_P1 < new_N.view(-1, 1, 1))
    total_NP = weights_NPK[..., 0].clone()
    for k in range(1, num_taps):  # sequentially: the result must not depend on num_taps
        total_NP += weights_NPK[..., k]
    return taps_NPK, weights_NPK / total_NP.clamp(min=1e-9).unsqueeze(2)


def _bits(largest_N: Tensor) -> Tensor:
    """Largest number of fractional bits, at most 22, that keeps the largest weight below 2^15, as in torch."""
    doubled_NB = 2.0 ** torch.arange(1, 23) * largest_N.unsqueeze(1)
    return ((doubled_NB + 0.5).floor() < 2**15).sum(1)
