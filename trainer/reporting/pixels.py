"""Training images as a picture can show them."""

import torch
from torch import Tensor


def as_levels(images_NCHW: Tensor, stored: object) -> Tensor:
    """uint8 on the CPU: whole numbers 0..255 as they are, of the data set `stored` of uint8 images.

    Where it holds features, nobody knows what is black and what is white: the least and the largest number here.
    """
    images_NCHW = images_NCHW.detach().float().cpu()
    if isinstance(stored, Tensor) and stored.dtype != torch.uint8:
        low, high = images_NCHW.aminmax()
        images_NCHW = (images_NCHW - low) * (255 / (high - low).clamp(min=1e-12))
    return images_NCHW.round().clamp(0, 255).to(torch.uint8)
