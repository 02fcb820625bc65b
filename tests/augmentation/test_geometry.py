"""Crop and flip against torchvision v2 on single images; distributions of their parameters."""

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from scipy.stats import binomtest, chisquare

from trainer.augmentation import Crop, HorizontalFlip

SHAPES = [(1, 8, 8), (3, 32, 32), (3, 7, 10)]


def images(num: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    # no zeros, to tell padding from the image
    return torch.randint(1, 256, (num, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.proves("Crop", reference="torchvision v2's pad and crop", tolerance="bitwise")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [0, 1, 2, 4, 9])
def test_crop_is_torchvisions_pad_and_crop(shape, padding):
    pixels = images(64, shape)
    crop = Crop(padding=padding)
    rows = crop.draw(64, shape, generator())
    result = crop(pixels, rows)
    for i in range(64):
        padded = reference.pad(pixels[i], [padding] * 4)
        y, x = int(rows["offset_y"][i]), int(rows["offset_x"][i])
        assert torch.equal(result[i], reference.crop(padded, y, x, *shape[1:]))
    assert result.dtype == torch.uint8
    assert result.is_contiguous()


@pytest.mark.proves("HorizontalFlip", reference="torchvision v2's horizontal_flip", tolerance="bitwise")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_flip_is_torchvisions(shape, probability):
    pixels = images(64, shape)
    flip = HorizontalFlip(probability=probability)
    rows = flip.draw(64, shape, generator())
    result = flip(pixels, rows)
    for i in range(64):
        expected = reference.horizontal_flip(pixels[i]) if rows["applied"][i] else pixels[i]
        assert torch.equal(result[i], expected)
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("operation", [Crop(padding=3, probability=0.0), HorizontalFlip(probability=0.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_probability_zero_is_the_identity(operation, shape):
    pixels = images(32, shape)
    assert torch.equal(operation(pixels, operation.draw(32, shape, generator())), pixels)


def test_padding_zero_is_the_identity():
    pixels = images(32, (3, 32, 32))
    crop = Crop(padding=0)
    assert torch.equal(crop(pixels, crop.draw(32, (3, 32, 32), generator())), pixels)


def test_two_flips_are_the_identity():
    pixels = images(32, (3, 7, 10))
    flip = HorizontalFlip()
    rows = flip.draw(32, (3, 7, 10), generator())
    assert 0 < rows["applied"].sum() < 32
    assert torch.equal(flip(flip(pixels, rows), rows), pixels)


@pytest.mark.parametrize("operation", [Crop(padding=4), HorizontalFlip()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_move_the_same_pixels(operation, dtype):
    pixels = images(16, (3, 32, 32))
    rows = operation.draw(16, (3, 32, 32), generator())
    assert torch.equal(operation(pixels.to(dtype), rows), operation(pixels, rows).to(dtype))


@pytest.mark.parametrize("operation", [Crop(padding=4), HorizontalFlip()])
def test_images_in_another_memory_layout(operation):
    pixels = images(16, (3, 32, 32))
    rows = operation.draw(16, (3, 32, 32), generator())
    strided = pixels.to(memory_format=torch.channels_last)
    assert torch.equal(operation(strided, rows), operation(pixels, rows))


def test_offsets_are_uniform_over_their_whole_range():
    rows = Crop(padding=2).draw(5000, (3, 32, 32), generator())
    # joint distribution, which also shows independence
    cells = torch.bincount(rows["offset_y"] * 5 + rows["offset_x"], minlength=25)
    assert len(cells) == 25
    assert chisquare(cells.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_probability_is_respected(probability):
    applied = HorizontalFlip(probability).draw(5000, (3, 32, 32), generator())["applied"]
    assert binomtest(int(applied.sum()), 5000, probability).pvalue > 1e-3
    rows = Crop(padding=250, probability=probability).draw(5000, (3, 32, 32), generator())
    moved = (rows["offset_y"] != 250) | (rows["offset_x"] != 250)  # 1 in 250,000 is unchanged by chance
    assert binomtest(int(moved.sum()), 5000, probability).pvalue > 1e-3


def test_probability_one_is_always():
    assert HorizontalFlip(1.0).draw(5000, (3, 32, 32), generator())["applied"].all()


def test_the_probability_does_not_change_what_is_drawn():
    always = Crop(padding=4).draw(1000, (3, 32, 32), generator())
    often = Crop(padding=4, probability=0.7).draw(1000, (3, 32, 32), generator())
    moved = (often["offset_y"] != 4) | (often["offset_x"] != 4)
    assert 500 < moved.sum() < 800
    for name in always:
        assert torch.equal(often[name][moved], always[name][moved])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Crop(padding=-1), "padding=-1: must be from 0 to 256"),
        (lambda: Crop(probability=1.1), "probability=1.1: must be between 0 and 1"),
        (lambda: HorizontalFlip(probability=-0.1), "probability=-0.1: must be between 0 and 1"),
        (lambda: HorizontalFlip(probability=float("nan")), "probability=nan: must be between 0 and 1"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build()
