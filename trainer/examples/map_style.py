"""A map-style torch Dataset as one of a user's own, which `train data=map_style` reads."""

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Bars(Dataset[tuple[Tensor, int]]):
    """Noisy grey images, 16x16, with a bright bar: a row or a column? A sample is a function of its number."""

    classes = ("row", "column")

    def __init__(self, num_images: int = 500) -> None:
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        image_CHW = torch.randint(180, (1, 16, 16), generator=generator, dtype=torch.uint8)
        place, label = int(torch.randint(16, (1,), generator=generator)), index % 2
        image_CHW.select(1 + label, place).add_(75)
        return image_CHW, label
