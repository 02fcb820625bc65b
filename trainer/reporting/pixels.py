"""Conversion of training images to displayable pixels."""

import torch
from torch import Tensor


def as_levels(images_NCHW: Tensor, stored: object) -> Tensor:
    """Convert images to uint8 on the CPU; pixels 0..255 of a data set `stored` of uint8 images are only rounded.

    Features have no defined black and white: their minimum and maximum in these images are used instead.
    """
    images_NCHW = images_NCHW.detach().float().cpu()
    if isinstance(stored, Tensor) and stored.dtype != torch.uint8:
        low, high = images_NCHW.aminmax()
        images_NCHW = (images_NCHW - low) * (255 / (high - low).clamp(min=1e-12))
    return images_NCHW.round().clamp(0, 255).to(torch.uint8)
