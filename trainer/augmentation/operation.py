"""What an augmentation operation is, and what its implementations share."""

from typing import Protocol

import torch
from torch import Tensor

Rows = dict[str, Tensor]  # one entry a drawn parameter, one row a sample


class Operation(Protocol):
    """One change of an image whose parameters are drawn beforehand, a row of numbers for each sample."""

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        """The table of an epoch, on the CPU. The number of draws a sample is fixed, whatever they say and
        whatever the probability is; `input_shape` is (channels, height, width)."""

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        """The changed images, given these samples' rows on the same device. The given images are left as they
        are, and image i depends on row i alone."""


def check_probability(probability: float) -> None:
    """Raises ValueError for a probability outside 0..1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability}: must be between 0 and 1")


def draw_applied(num_samples: int, probability: float, generator: torch.Generator) -> Tensor:
    """bool_N, true with this probability; one draw a sample."""
    return torch.rand(num_samples, generator=generator, dtype=torch.float64) < probability
