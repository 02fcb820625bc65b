"""An example of a user's map-style torch Dataset, read by `train data=map_style`."""

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Bars(Dataset[tuple[Tensor, int]]):
    """Noisy grey 16x16 images with a bright bar, either a row or a column; sample i depends on i alone."""

    classes = ("row", "column")

    def __init__(self, num_images: int = 500) -> None:
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        image_CHW = torch.randint(180, (1, 16, 16), generator=generator, dtype=torch.uint8)
        offset, label = int(torch.randint(16, (1,), generator=generator)), index % 2
        image_CHW.select(1 + label, offset).add_(75)
        return image_CHW, label
