"""Frames against torchvision: the distribution of the boxes and the exact pixels."""

import pytest
import torch
import torchvision.transforms.v2 as transforms
from scipy.stats import binomtest, chisquare, ks_2samp, kstest

from tests.augmentation.helpers import generator, images, name
from tests.torchvision_reference import functional as reference
from trainer.augmentation import CropAndPad, HorizontalFlip, Pipeline, RandomShortSide, ResizedCrop
from trainer.augmentation.framing import apply_frames

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 33, 47), (3, 7, 10), (1, 8, 8)]
OPERATIONS = [ResizedCrop(), ResizedCrop((0.05, 1), (0.2, 5)), RandomShortSide(), CropAndPad(0.4)]


def sizes(num: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor([height, width]).expand(num, 2)


def framed(image: torch.Tensor, frame: torch.Tensor, output_hw: tuple[int, int]) -> torch.Tensor:
    """Apply a frame with torchvision."""
    top, left, height, width, new_height, new_width, y, x = frame.tolist()
    resized = reference.resized_crop(image, top, left, height, width, [new_height, new_width], antialias=True)
    return reference.crop(resized, y, x, *output_hw)


def assert_equal(result: torch.Tensor, expected: list[torch.Tensor]) -> None:
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.stack(expected).float())


@pytest.mark.proves(
    "ResizedCrop", "RandomShortSide", reference="torchvision v2's resized_crop and crop", tolerance="bitwise"
)
@pytest.mark.parametrize("operation", OPERATIONS[:3], ids=name)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_torchvisions(operation, shape):
    pixels = images(64, shape)
    rows = operation.draw(64, shape, generator())
    frames = operation.frames(rows, sizes(64, *shape[1:]), shape[1:])
    assert_equal(operation(pixels.float(), rows), [framed(pixels[i], frames[i], shape[1:]) for i in range(64)])


@pytest.mark.proves("CropAndPad", reference="torchvision v2's pad and resized_crop", tolerance="bitwise")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_crop_and_pad_is_torchvisions(shape, fraction):
    pixels, operation = images(64, shape), CropAndPad(fraction)
    _, height, width = shape
    rows = operation.draw(64, shape, generator())
    expected = []
    for i in range(64):
        top, bottom, left, right = (
            max(round(float(rows[side][i]) * size), -((size - 1) // 2))
            for side, size in (("top", height), ("bottom", height), ("left", width), ("right", width))
        )
        wide = reference.pad(pixels[i], [max(margin, 0) for margin in (left, top, right, bottom)])
        kept = reference.crop(wide, max(-top, 0), max(-left, 0), height + top + bottom, width + left + right)
        expected.append(reference.resize(kept, [height, width], antialias=True))
    assert_equal(operation(pixels.float(), rows), expected)


@pytest.mark.parametrize("output_hw", [(32, 32), (48, 20), (100, 150), (250, 400)])
@pytest.mark.parametrize("operation", [ResizedCrop((0.01, 1)), RandomShortSide((1, 1.5))], ids=name)
def test_other_output_sizes(operation, output_hw):
    pixels = images(16, (3, 200, 300))
    rows = operation.draw(16, (3, *output_hw), generator())
    frames = operation.frames(rows, sizes(16, 200, 300), output_hw)
    result = apply_frames(pixels.float(), frames, output_hw)
    assert_equal(result, [framed(pixels[i], frames[i], output_hw) for i in range(16)])


def test_sums_that_float32_does_not_hold():
    pixels = images(4, (1, 1000, 1000))
    frames = torch.tensor([0, 0, 1000, 1000, 100, 100, 0, 0]).repeat(4, 1)
    assert_equal(apply_frames(pixels.float(), frames, (100, 100)), [framed(x, frames[0], (100, 100)) for x in pixels])


@pytest.mark.parametrize("output_hw", [(8, 8), (20, 31)])
def test_a_box_beyond_the_image_is_black_there(output_hw):
    pixels = images(2, (1, 20, 31))
    frames = torch.tensor([[-5, 3, 20, 40, *output_hw, 0, 0], [4, -9, 21, 12, *output_hw, 0, 0]])
    wide = reference.pad(pixels, [50] * 4)
    shifted = frames + torch.tensor([50, 50, 0, 0, 0, 0, 0, 0])
    expected = [framed(wide[i], shifted[i], output_hw) for i in range(2)]
    assert_equal(apply_frames(pixels.float(), frames, output_hw), expected)


PHOTOGRAPHS = [(375, 500), (500, 375), (32, 32), (40, 300), (5, 3)]
CHOICES = [(0.08, 1.0, 3 / 4, 4 / 3), (0.5, 0.9, 1.0, 1.0), (0.9, 1.0, 0.5, 0.6)]


@pytest.mark.parametrize("size", PHOTOGRAPHS)
@pytest.mark.parametrize("choice", CHOICES)
def test_boxes_are_distributed_as_torchvisions(size, choice):
    operation = ResizedCrop(choice[:2], choice[2:])
    frames = operation.frames(operation.draw(3000, (3, 224, 224), generator()), sizes(3000, *size), (224, 224))
    theirs = transforms.RandomResizedCrop(224, choice[:2], choice[2:])
    torch.manual_seed(0)
    image = torch.empty(1, *size, dtype=torch.uint8)
    boxes = [theirs.make_params([image]) for _ in range(3000)]
    for column, key in enumerate(("top", "left", "height", "width")):
        expected = torch.tensor([box[key] for box in boxes])
        assert ks_2samp(frames[:, column].numpy(), expected.numpy()).pvalue > 1e-3
    assert (frames[:, 4:] == torch.tensor([224, 224, 0, 0])).all()
    assert (frames[:, :2] >= 0).all()
    assert (frames[:, :2] + frames[:, 2:4] <= torch.tensor(size)).all()
    assert (frames[:, 2:4] > 0).all()


@pytest.mark.parametrize("size", [(40, 300), (300, 40), (299, 40)])
def test_boxes_that_never_fit_are_central(size):
    operation, theirs = ResizedCrop((0.9, 1.0)), transforms.RandomResizedCrop(224, (0.9, 1.0))
    frames = operation.frames(operation.draw(50, (3, 224, 224), generator()), sizes(50, *size), (224, 224))
    box = theirs.make_params([torch.empty(1, *size, dtype=torch.uint8)])
    assert (frames[:, :4] == torch.tensor([box[key] for key in ("top", "left", "height", "width")])).all()


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (224, 224), (100, 1000)])
def test_short_sides_and_places_are_uniform(size):
    operation = RandomShortSide()
    frames = operation.frames(operation.draw(6000, (3, 224, 224), generator()), sizes(6000, *size), (224, 224))
    assert (frames[:, :4] == torch.tensor([0, 0, *size])).all()
    new_N2 = frames[:, 4:6]
    short_N = new_N2.amin(1)
    assert (short_N.min(), short_N.max()) == (256, 480)
    assert chisquare(torch.bincount(short_N - 256).numpy()).pvalue > 1e-3
    image = torch.empty(1, *size, dtype=torch.uint8)
    for i in range(20):
        assert new_N2[i].tolist() == list(reference.resize(image, [int(short_N[i])]).shape[1:])
    for axis in (0, 1):
        room_N = new_N2[:, axis] - 224 + 1
        offset_N = frames[:, 6 + axis]
        assert ((offset_N >= 0) & (offset_N < room_N)).all()
        fractions = (offset_N + torch.rand(6000, generator=generator(1))) / room_N
        assert kstest(fractions.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("size", [(30, 200), (200, 30), (47, 33), (33, 47)])
@pytest.mark.parametrize("output_hw", [(28, 28), (20, 60), (33, 47)])
def test_an_output_of_another_shape_fits_into_what_is_resized(size, output_hw):
    operation = RandomShortSide((1, 1.2))
    frames = operation.frames(operation.draw(500, (1, *output_hw), generator()), sizes(500, *size), output_hw)
    assert (frames[:, 6:] >= 0).all()
    assert (frames[:, 6:] + torch.tensor(output_hw) <= frames[:, 4:6]).all()
    enlarged = frames[:, 4:6] / torch.tensor(size)
    cover = max(output_hw[0] / size[0], output_hw[1] / size[1])  # smallest scale that covers it
    assert enlarged.min() >= cover * 0.95
    assert enlarged.max() <= cover * 1.2 * 1.06
    ratio = enlarged[:, 0] / enlarged[:, 1]
    assert ((ratio > 0.93) & (ratio < 1.07)).all()


@pytest.mark.parametrize("operation", [ResizedCrop(probability=0.0), RandomShortSide(probability=0.0)], ids=name)
@pytest.mark.parametrize(
    ("size", "output_hw", "box"),
    [
        ((375, 500), (224, 224), [0, 62, 375, 375]),
        ((500, 375), (224, 224), [62, 0, 375, 375]),
        ((100, 100), (20, 40), [25, 0, 50, 100]),
        ((7, 10), (7, 10), [0, 0, 7, 10]),
        ((1, 3), (5, 5), [0, 1, 1, 1]),
    ],
)
def test_not_applied_it_is_the_central_box(operation, size, output_hw, box):
    frames = operation.frames(operation.draw(10, (3, *output_hw), generator()), sizes(10, *size), output_hw)
    assert (frames == torch.tensor([*box, *output_hw, 0, 0])).all()


UNMOVED = [
    ResizedCrop(probability=0.0),
    RandomShortSide(probability=0.0),
    RandomShortSide((1, 1)),
    CropAndPad(0),
    CropAndPad(probability=0.0),
]


@pytest.mark.parametrize("operation", UNMOVED, ids=name)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 201, 301)])
def test_identity_parameters_give_the_identical_image(operation, shape):
    pixels = images(16, shape)
    assert torch.equal(operation(pixels.float(), operation.draw(16, shape, generator())), pixels.float())


def test_the_whole_square_is_the_identical_image():
    pixels, operation = images(16, (3, 32, 32)), ResizedCrop((1, 1), (1, 1))
    assert torch.equal(operation(pixels.float(), operation.draw(16, (3, 32, 32), generator())), pixels.float())


@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 47)])
def test_an_image_does_not_depend_on_the_batch_it_is_in(operation, shape):
    pixels = images(64, shape).float()
    rows = operation.draw(64, shape, generator())
    whole = operation(pixels.clone(), rows)
    order = torch.randperm(64, generator=generator(1))
    for indices in (*torch.arange(64).split(1), *order.split(13)):
        part = operation(pixels[indices], {key: values[indices] for key, values in rows.items()})
        assert torch.equal(part, whole[indices])


def test_nor_on_how_strongly_others_are_reduced():
    pixels = images(8, (1, 300, 300)).float()
    frames = torch.tensor([[0, 0, 300, 300, 8, 8, 0, 0]] + [[10, 20, 8 + i, 6 + i, 8, 8, 0, 0] for i in range(7)])
    whole = apply_frames(pixels, frames, (8, 8))
    for i in range(8):
        assert torch.equal(apply_frames(pixels[i : i + 1], frames[i : i + 1], (8, 8)), whole[i : i + 1])


@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
def test_an_empty_batch_stays_empty(operation):
    rows = operation.draw(0, (3, 32, 32), generator())
    assert operation(torch.zeros(0, 3, 32, 32), rows).shape == (0, 3, 32, 32)
    assert apply_frames(torch.zeros(0, 3, 32, 32), torch.zeros(0, 8).long(), (5, 6)).shape == (0, 3, 5, 6)


def test_frames_and_the_operation_itself_agree_inside_a_pipeline():
    pixels = images(12, (3, 32, 32)).float()
    pipeline = Pipeline(cut=ResizedCrop(probability=0.6), pad=CropAndPad())
    rows = pipeline.draw(12, (3, 32, 32), generator())
    frames = pipeline.frames(rows, sizes(12, 32, 32), (32, 32))
    assert torch.equal(pipeline(apply_frames(pixels.clone(), frames), rows, skip=1), pipeline(pixels, rows))


def test_a_flip_that_comes_next_is_a_negative_width():
    cut, flip = ResizedCrop(), HorizontalFlip()
    pipeline = Pipeline(cut=cut, flip=flip, pad=CropAndPad())
    rows = pipeline.draw(50, (3, 32, 32), generator())
    frames = pipeline.frames(rows, sizes(50, 40, 60), (32, 32))
    assert torch.equal(frames.abs(), Pipeline(cut=cut).frames(rows, sizes(50, 40, 60), (32, 32)))
    assert torch.equal((frames < 0).nonzero(), torch.tensor([[n, 5] for n in rows["flip.applied"].nonzero()]))
    others = Pipeline(cut=cut), Pipeline(cut=cut, pad=CropAndPad(), flip=flip)
    assert [each.framed for each in (pipeline, *others)] == [2, 1, 1]


@pytest.mark.parametrize("operation", [ResizedCrop, RandomShortSide, CropAndPad])
def test_the_probability_decides_who_and_not_what(operation):
    always = operation(probability=1.0).draw(3000, (3, 32, 32), generator())
    sometimes = operation(probability=0.3).draw(3000, (3, 32, 32), generator())
    moved = sometimes["applied"] if "applied" in sometimes else sometimes["top"] != 0
    assert binomtest(int(moved.sum()), 3000, 0.3).pvalue > 1e-3
    for key, values in always.items():
        if key != "applied":
            assert torch.equal(sometimes[key][moved], values[moved])


def test_margins_are_uniform():
    rows = CropAndPad(0.2).draw(5000, (3, 32, 32), generator())
    for values in rows.values():
        assert kstest(values.numpy(), "uniform", (-0.2, 0.4)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResizedCrop(scale=(-0.1, 1)), "scale=.*: must be two numbers from 0 to 1"),
        (lambda: ResizedCrop(scale=(0.1, 1.1)), "scale=.*: must be two numbers from 0 to 1"),
        (lambda: ResizedCrop(scale=(0.9, 0.2)), "scale=.*: must be two numbers"),
        (lambda: ResizedCrop(ratio=(0, 1)), "ratio=.*: must be two numbers above 0"),
        (lambda: ResizedCrop(ratio=(2, 1)), "ratio=.*: must be two numbers"),
        (lambda: ResizedCrop(probability=-1), "probability=-1: must be between 0 and 1"),
        (lambda: RandomShortSide(short_side=(0.9, 2)), "short_side=.*: must be two numbers from 1 to 10"),
        (lambda: RandomShortSide(short_side=(1.5, 1.2)), "short_side=.*: must be two numbers from 1 to 10"),
        (lambda: RandomShortSide(short_side=(1, 1e6)), "short_side=.*: must be two numbers from 1 to 10"),
        (lambda: CropAndPad(fraction=0.6), "fraction=0.6: must be from 0 to 0.5"),
        (lambda: CropAndPad(probability=1.1), "probability=1.1: must be between 0 and 1"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()
