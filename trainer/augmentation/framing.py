"""Operations that choose a part of an image and bring it to the output's size, antialiased.

A frame is a row of eight whole numbers: the box that is cut out of the image (top, left, height, width), the size
(height, width) that it is resized to, and the corner (top, left) in that of the output.
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


class Framing(Operation):
    """A frame for each sample. It depends on the size of the stored image, so a table holds a seed instead."""

    def __init__(self, probability: float) -> None:
        check_probability(probability)
        self.probability = probability

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        return {"applied": applied_N, "seed": draw_seeds(num_samples, generator)}

    def frames(self, rows: Rows, sizes_N2: Tensor, output_hw: tuple[int, int]) -> Tensor:
        """int64_N8, given the images' heights and widths."""
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
    """Frames of the largest central boxes with a ratio width / height in low..high."""
    box_height_N = torch.minimum(height_N, (width_N / low).round().long().clamp(min=1))
    box_width_N = torch.minimum(width_N, (height_N * high).round().long().clamp(min=1))
    top_N, left_N = (height_N - box_height_N) // 2, (width_N - box_width_N) // 2
    return _frames(top_N, left_N, box_height_N, box_width_N, *output_hw, 0, 0)


def _frames(*columns: Tensor | int) -> Tensor:
    tensors = [column for column in columns if isinstance(column, Tensor)]
    return torch.stack([torch.as_tensor(column).expand_as(tensors[0]) for column in columns], 1)


class ResizedCrop(Framing):
    """Resizes a box of random area, shape and place to the output's size.

    The area is uniform in `scale` of the image's, the ratio width / height is exp(u), u uniform over the
    logarithm of `ratio`; sides are rounded to pixels, the place is uniform. After ten boxes that do
    not fit it is the largest central one with a ratio in the range: torchvision's RandomResizedCrop. With 1 -
    `probability` it is the largest central box of the output's shape.

    Source: CUHK ELEG 5491, "Data augmentation" (random crops/scales); Szegedy et al., "Going deeper with convolutions"
    (2014). Raises ValueError: `scale` not in 0..1, `ratio` not above 0, bounds in the wrong order, `probability` not in
    0..1.
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

    def _chosen(self, seeds_N: Tensor, height_N: Tensor, width_N: Tensor, output_hw: tuple[int, int]) -> Tensor:
        drawn = uniform(seeds_N, (2 * _TRIES + 2,), seeds_N.device).double()
        scale_NT, ratio_NT, place_N2 = drawn.split([_TRIES, _TRIES, 2], 1)
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
        top_N = (place_N2[:, 0] * (height_N - box_height_N + 1)).long()
        left_N = (place_N2[:, 1] * (width_N - box_width_N + 1)).long()
        found_N8 = _frames(top_N, left_N, box_height_N, box_width_N, *output_hw, 0, 0)
        central_N8 = _central(height_N, width_N, *self.ratio, output_hw)
        return torch.where(fits_NT.any(1, keepdim=True), found_N8, central_N8)


class RandomShortSide(Framing):
    """Resizes the image to a random short side and cuts the output out of it at a random place, both uniform.

    The short side is a whole number of pixels in `short_side` times the output's side (256/224..480/224 in the
    lecture), the long one follows, rounded down as in torchvision. Where the output is no square, the side that
    would fall short of the output's first takes the part of the short one. With 1 - `probability` it is the largest
    central box of the output's shape.

    Source: CUHK ELEG 5491, "Data augmentation" (pick random L in [256, 480], resize, sample a 224 x 224 patch). Raises
    ValueError: `short_side` not in 1..10, `probability` not in 0..1.
    """

    def __init__(self, short_side: tuple[float, float] = (256 / 224, 480 / 224), probability: float = 1.0) -> None:
        super().__init__(probability)
        self.short_side = check_range("short_side", short_side, 1, 10)

    def _chosen(self, seeds_N: Tensor, height_N: Tensor, width_N: Tensor, output_hw: tuple[int, int]) -> Tensor:
        output_h, output_w = output_hw
        uniform_N3 = uniform(seeds_N, (3,), seeds_N.device).double()
        by_height_N = height_N * output_w <= width_N * output_h
        side_N = torch.where(by_height_N, output_h, output_w)
        low_N, high_N = ((side_N * share).round().long() for share in self.short_side)
        short_N = low_N + (uniform_N3[:, 0] * (high_N - low_N + 1)).long()
        new_height_N = torch.where(by_height_N, short_N, (short_N * height_N // width_N).clamp(min=output_h))
        new_width_N = torch.where(by_height_N, (short_N * width_N // height_N).clamp(min=output_w), short_N)
        y_N = (uniform_N3[:, 1] * (new_height_N - output_h + 1)).long()
        x_N = (uniform_N3[:, 2] * (new_width_N - output_w + 1)).long()
        return _frames(0, 0, height_N, width_N, new_height_N, new_width_N, y_N, x_N)


class CropAndPad(Operation):
    """Cuts pixels off each side, or adds black ones, and resizes the rest to the size that it had.

    The share of the height or width is uniform in -`fraction`..`fraction` for each of the four sides, rounded to
    whole pixels; negative ones are cut off. As torchvision's crop and pad, then resize.

    Source: UVic PHYS 555, "Data augmentation" (crop-and-pad). Raises ValueError: `fraction` not in 0..0.5,
    `probability` not in 0..1.
    """

    def __init__(self, fraction: float = 0.125, probability: float = 1.0) -> None:
        check_probability(probability)
        self.fraction, self.probability = check_number("fraction", fraction, 0, 0.5), probability

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        names = ("top", "bottom", "left", "right")
        shares = [draw_uniform(num_samples, -self.fraction, self.fraction, generator) for _ in names]
        return {name: torch.where(applied_N, share_N, 0) for name, share_N in zip(names, shares, strict=True)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        height, width = images_NCHW.shape[2:]
        top_N, bottom_N = (_pixels(rows[name], height) for name in ("top", "bottom"))
        left_N, right_N = (_pixels(rows[name], width) for name in ("left", "right"))
        frames_N8 = _frames(-top_N, -left_N, height + top_N + bottom_N, width + left_N + right_N, height, width, 0, 0)
        changed_N = (frames_N8[:, :4] != torch.tensor([0, 0, height, width])).any(1)
        return where(images_NCHW, changed_N, lambda chosen, at_K: apply_frames(chosen, frames_N8[at_K]))


def _pixels(share_N: Tensor, size: int) -> Tensor:
    """Whole pixels to add; of any size something is left."""
    return (share_N * size).round().long().clamp(min=-((size - 1) // 2))


def apply_frames(images_NCHW: Tensor, frames_N8: Tensor, output_hw: tuple[int, int] | None = None) -> Tensor:
    """What the frames (on the CPU) show, whole numbers 0..255; in place if the size stays as it is.

    `output_hw` is the images' own size by default. A box may reach beyond the image: it is black there. The
    numbers are those of torchvision's crop and resize(antialias=True) on uint8 images: weights of a triangle filter
    as whole numbers over a power of two, across first, rounded, then down. Sums are exact, in whatever order.
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
    """`length` pixels from `start` on are resized to `new` ones, of which `output` are wanted from `corner` on.

    Each of these O is made of K neighbours among the I = `size` given ones: the sum of weights * pixels, rounded.
    """

    def __init__(
        self, start_N: Tensor, length_N: Tensor, new_N: Tensor, corner_N: Tensor, size: int, output: int
    ) -> None:
        self._size = size
        taps_NPK, weights_NPK = _triangles(length_N, new_N)
        bits_N = _bits(weights_NPK.amax((1, 2)))
        wanted_NOK = (corner_N.unsqueeze(1) + torch.arange(output)).unsqueeze(2).expand(-1, -1, taps_NPK.shape[2])
        at_NOK = taps_NPK.gather(1, wanted_NOK) + start_N.view(-1, 1, 1)
        self._at_NOK = torch.where((at_NOK >= 0) & (at_NOK < size), at_NOK, size)  # the last one stands for outside
        # below 2^24 whole numbers are exact in float32
        self._dtype = torch.float32 if int(bits_N.max()) <= 16 else torch.float64
        one_N11 = 2.0 ** bits_N.view(-1, 1, 1)
        self._weights_NOK = (weights_NPK.gather(1, wanted_NOK) * one_N11 + 0.5).floor_().to(self._dtype)
        self._one_N11 = one_N11.to(self._dtype)

    def resize(self, pixels_NIL: Tensor, chunk: slice) -> Tensor:
        """NOL, of some images."""
        device = pixels_NIL.device
        at_NOK, weights_NOK, one_N11 = (
            values[chunk].to(device, non_blocking=True) for values in (self._at_NOK, self._weights_NOK, self._one_N11)
        )
        matrix_NOI = weights_NOK.new_zeros(*at_NOK.shape[:2], self._size + 1).scatter_(2, at_NOK, weights_NOK)
        sums_NOL = matrix_NOI[..., :-1] @ pixels_NIL.to(self._dtype)
        return sums_NOL.add_(one_N11 / 2).div_(one_N11).floor_()


def _triangles(length_N: Tensor, new_N: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `length` pixels make each of `new` ones, and with what weights, NPK; 0 behind the last one."""
    scale_N11 = (length_N / new_N.double()).view(-1, 1, 1)
    support_N11 = scale_N11.clamp(min=1)
    num_taps = 2 * math.ceil(float(support_N11.max())) + 1
    new_P1 = torch.arange(int(new_N.max())).unsqueeze(1)
    centre_NP1 = scale_N11 * (new_P1 + 0.5)
    taps_NPK = (centre_NP1 - support_N11 + 0.5).long().clamp(min=0) + torch.arange(num_taps)
    weights_NPK = (1 - ((taps_NPK - centre_NP1 + 0.5) * (1 / support_N11)).abs()).clamp_(min=0)
    weights_NPK *= (taps_NPK < length_N.view(-1, 1, 1)) & (new_P1 < new_N.view(-1, 1, 1))
    total_NP = weights_NPK[..., 0].clone()
    for k in range(1, num_taps):  # one after the other: how many there are must not matter
        total_NP += weights_NPK[..., k]
    return taps_NPK, weights_NPK / total_NP.clamp(min=1e-9).unsqueeze(2)


def _bits(largest_N: Tensor) -> Tensor:
    """The most, up to 22, with which the largest weight stays below 2^15, as in torch's resizing of uint8 images."""
    doubled_NB = 2.0 ** torch.arange(1, 23) * largest_N.unsqueeze(1)
    return ((doubled_NB + 0.5).floor() < 2**15).sum(1)
