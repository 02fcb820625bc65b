"""The layout with shared borders gives the same crops as padded images, in less memory."""

import pytest
import torch

from trainer.augmentation import Crop, HorizontalFlip, Pipeline
from trainer.augmentation.bordered import Bordered

PIPELINES = {
    "flip, crop": {"flip": HorizontalFlip(), "crop": Crop(4)},
    "crop, flip": {"crop": Crop(3), "flip": HorizontalFlip()},
    "crop": {"crop": Crop(5, probability=0.5)},
    "flip, crop, flip, crop": {
        "flip": HorizontalFlip(), "crop": Crop(2), "again": HorizontalFlip(), "once_more": Crop(1),
    },
    "no padding": {"flip": HorizontalFlip(), "crop": Crop(0)},
}  # fmt: skip


def pixels(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randint(1, 256, (100, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 9, 5)])
@pytest.mark.parametrize("name", PIPELINES)
def test_it_gives_what_the_operations_give(name: str, shape: tuple[int, int, int]) -> None:
    pipeline, images = Pipeline(**PIPELINES[name]), pixels(shape)
    table = pipeline.draw(100, shape, torch.Generator().manual_seed(1))
    moved = pipeline.border(images)
    assert moved is not None
    assert torch.equal(moved.images_NCHW, images)
    for indices in (torch.randperm(100)[:33], torch.tensor([99, 0, 99]), torch.arange(0)):
        rows = {name: values[indices] for name, values in table.items()}
        found, left_to_do = moved.begin(indices, rows)
        assert found.is_contiguous() and not left_to_do
        assert torch.equal(found, pipeline(images[indices], rows))


def test_it_takes_1_27_times_the_images() -> None:
    images = pixels((3, 32, 32))
    assert Bordered.size(images.shape, 4) == len(Bordered(images, 4)._flat)
    assert Bordered.size(images.shape, 4) / images.numel() < 1.28


def test_there_is_none_without_room_or_without_a_crop_in_front() -> None:
    images = pixels((3, 32, 32))
    pipeline = Pipeline(crop=Crop(4))
    need = Bordered.size(images.shape, 4)
    assert pipeline.border(images, need) is not None
    assert pipeline.border(images, need - 1) is None
    assert Pipeline(flip=HorizontalFlip()).border(images) is None
