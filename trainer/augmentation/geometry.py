"""Crops and flips."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.augmentation.operation import Operation, Rows, check_probability, draw_applied, put
from trainer.base.checks import check_whole

_MOST_PADDING = 256  # pixels


class Crop(Operation):
    """Pads each side with `padding` black pixels (0) and crops the original size at a random position.

    Both offsets are uniform over 0..2*padding; with probability 1 - `probability` the image is unchanged. Equal to
    torchvision's pad followed by crop.

    Source: CUHK ELEG 5491, UVic PHYS 555, "Data augmentation" (crop). Raises ValueError: `padding` not in 0..256,
    `probability` not in 0..1.
    """

    keeps_values = True

    def __init__(self, padding: int = 4, probability: float = 1.0) -> None:
        check_whole("padding", padding, 0, _MOST_PADDING)
        check_probability(probability)
        self.padding = padding
        self.probability = probability

    def lengths(self) -> dict[str, tuple[int, int]]:
        return {"padding": (self.padding, 1)}

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        offsets_2N = torch.randint(2 * self.padding + 1, (2, num_samples), generator=generator)
        offset_y_N, offset_x_N = torch.where(applied_N, offsets_2N, self.padding)
        return {"offset_y": offset_y_N, "offset_x": offset_x_N}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        N, C, H, W = images_NCHW.shape
        padded_NCHW = F.pad(images_NCHW, (self.padding,) * 4)
        padded_H, padded_W = padded_NCHW.shape[2:]
        # From its first to its last pixel, a channel's crop is one contiguous run of the flattened images. Copying the
        # run, including the few pixels between rows, takes a third of the time of indexing.
        run = (H - 1) * padded_W + W
        flat = padded_NCHW.flatten()
        num_starts = max(0, flat.numel() - run + 1)  # a rank's shard of the last batch may be empty
        runs_at_every_start = flat.as_strided((num_starts, run), (1, 1))
        planes_NC = torch.arange(N * C, device=flat.device).view(N, C) * (padded_H * padded_W)
        offsets_N = (rows["offset_y"] * padded_W + rows["offset_x"]).to(flat.device, non_blocking=True)
        starts_NC = planes_NC + offsets_N.unsqueeze(1)
        runs = runs_at_every_start.index_select(0, starts_NC.flatten())
        return runs.as_strided((N, C, H, W), (C * run, run, padded_W, 1)).contiguous()


class _Flip(Operation):
    """Flips images along one axis."""

    keeps_values = True
    _axis: int

    def __init__(self, probability: float = 0.5) -> None:
        check_probability(probability)
        self.probability = probability

    def notice(self, side: int, are_characters: bool) -> tuple[str, str] | None:
        if not are_characters:
            return None
        return "mirror images of the classes' characters are others or none", "probability=0"

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        return {"applied": draw_applied(num_samples, self.probability, generator)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        index_K = rows["applied"].nonzero().flatten().to(images_NCHW.device, non_blocking=True)
        if len(index_K) == 0:
            return images_NCHW
        flipped = images_NCHW.index_select(0, index_K).flip(self._axis)
        # uint8 images belong to the data set and must not be modified
        return put(images_NCHW if images_NCHW.dtype == torch.float32 else images_NCHW.clone(), index_K, flipped)


class HorizontalFlip(_Flip):
    """Flips left and right with probability `probability`.

    Source: CUHK ELEG 5491, UVic PHYS 555, "Data augmentation" (horizontal flip). Raises ValueError: `probability` not
    in 0..1.
    """

    _axis = 3


class VerticalFlip(_Flip):
    """Flips top and bottom with probability `probability`.

    Source: UVic PHYS 555, "Data augmentation" (vertical flip). Raises ValueError: `probability` not in 0..1.
    """

    _axis = 2
