"""Occlusion: erasing a rectangle of an image."""

import math
from typing import Literal

import torch
from torch import Tensor

from trainer.augmentation.counted import uniform
from trainer.augmentation.operation import Operation, Rows, check_probability, draw_applied, draw_seeds
from trainer.base.checks import check_one_of, check_range, check_that
from trainer.base.chunks import Change

_TRIES = 10


class Erasing(Operation):
    """Overwrites a random rectangle with probability `probability`.

    Its area is uniform in `scale` (fractions of the image area); its aspect ratio height / width is exp(u) with u
    uniform in log `ratio`. Sides are rounded to pixels and redrawn up to ten times until both are shorter than the
    image's; otherwise nothing is erased. The position is uniform, as in torchvision's RandomErasing. `fill`: black
    (0), mean (of each channel of the image, rounded) or noise (uniform integers 0..255, independent per pixel and
    channel).

    Source: UVic PHYS 555, "Noise / occlusion"; Zhong et al., "Random erasing data augmentation" (2017). Raises
    ValueError: `scale` not within 0..1, `ratio` not positive, bounds in the wrong order, another `fill`, `probability`
    not in 0..1.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        fill: Literal["black", "mean", "noise"] = "black",
        probability: float = 0.5,
    ) -> None:
        check_probability(probability)
        check_one_of("fill", fill, ("black", "mean", "noise"))
        self.scale = check_range("scale", scale, 0, 1)
        self.ratio = check_range("ratio", ratio, 0)
        check_that(ratio[0] > 0, "ratio", ratio, "above 0")
        self.fill, self.probability = fill, probability
        self.keeps_values = fill == "black"

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        _, H, W = input_shape
        applied_N = draw_applied(num_samples, self.probability, generator)
        seeds_N = draw_seeds(num_samples, generator)
        position_2N = torch.rand(2, num_samples, generator=generator, dtype=torch.float64)
        height_N, width_N = self._sides(applied_N, seeds_N, H, W)
        top_N = (position_2N[0] * (H - height_N + 1)).to(torch.int64)
        left_N = (position_2N[1] * (W - width_N + 1)).to(torch.int64)
        rows = {"top": top_N, "left": left_N, "height": height_N, "width": width_N}
        return rows | ({"seed": seeds_N} if self.fill == "noise" else {})

    def _sides(self, applied_N: Tensor, seeds_N: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        """Height and width of the rectangles, int64_N; 0 if nothing is erased."""
        height_N, width_N = torch.zeros_like(seeds_N), torch.zeros_like(seeds_N)
        open_K = applied_N.nonzero().flatten()
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_TRIES):
            if len(open_K) == 0:
                break
            uniform_2K = uniform(seeds_N[open_K], (2,), seeds_N.device, 1 + attempt).double().T
            area_K = H * W * (self.scale[0] + (self.scale[1] - self.scale[0]) * uniform_2K[0])
            ratio_K = (log_low + (log_high - log_low) * uniform_2K[1]).exp()
            h_K, w_K = (area_K * ratio_K).sqrt().round(), (area_K / ratio_K).sqrt().round()
            fits_K = (h_K < H) & (w_K < W)
            height_N[open_K[fits_K]] = h_K[fits_K].to(torch.int64)
            width_N[open_K[fits_K]] = w_K[fits_K].to(torch.int64)
            open_K = open_K[~fits_K]
        return height_N, width_N

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        C, H, W = images_NCHW.shape[1:]
        if self.fill == "black":  # uint8 images belong to the data set and must not be modified
            kept = self._kept(images_NCHW, rows, images_NCHW.dtype)
            return images_NCHW * kept if images_NCHW.dtype == torch.uint8 else images_NCHW.mul_(kept)
        kept = self._kept(images_NCHW, rows, torch.bool)
        if self.fill == "mean":
            fill = images_NCHW.sum((2, 3), keepdim=True, dtype=torch.float64).div_(H * W).round_().to(torch.float32)
        else:
            fill = uniform(rows["seed"], (C, H, W), images_NCHW.device).mul_(256).floor_()
        return torch.where(kept, images_NCHW, fill)

    def prepare(self, images_NCHW: Tensor, rows: Rows) -> Change | None:
        if self.fill != "black":
            return None
        lines, columns = self._outside(images_NCHW, rows, torch.float32)
        return lambda images, part: images.mul_(torch.maximum(lines[part], columns[part]))

    def _kept(self, images_NCHW: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
        """(N, 1, H, W): 0 inside the rectangle, 1 elsewhere."""
        return torch.maximum(*self._outside(images_NCHW, rows, dtype))

    def _outside(self, images_NCHW: Tensor, rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Row mask (N, 1, H, 1) and column mask (N, 1, 1, W): 0 if the row or column crosses the rectangle, else 1."""
        H, W = images_NCHW.shape[2:]
        outside_NH = _outside(rows["top"], rows["height"], H).to(images_NCHW.device, dtype, non_blocking=True)
        outside_NW = _outside(rows["left"], rows["width"], W).to(images_NCHW.device, dtype, non_blocking=True)
        return outside_NH.view(-1, 1, H, 1), outside_NW.view(-1, 1, 1, W)


def _outside(first_N: Tensor, count_N: Tensor, size: int) -> Tensor:
    """bool (N, size): whether an index lies outside first..first+count-1."""
    positions = torch.arange(size)
    return (positions < first_N.unsqueeze(1)) | (positions >= (first_N + count_N).unsqueeze(1))
