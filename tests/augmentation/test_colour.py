"""Colour operations against torchvision v2 on single uint8 images with the same parameters; distributions of
parameters."""

from copy import copy
from pathlib import Path

import pytest
import torch
import torchvision.transforms.v2.functional as reference
import yaml
from scipy.stats import binomtest, chisquare, kstest

from trainer import augmentation
from trainer.augmentation import (
    AutoContrast,
    Brightness,
    ColourShift,
    Contrast,
    Equalize,
    Gamma,
    Hue,
    Invert,
    Lighting,
    Posterize,
    Saturation,
    Sharpen,
    Solarize,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "augmentation"
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 37, 21), (3, 3, 5), (1, 2, 9)]
OFTEN = 0.8

# operation, its row, torchvision's function of (image, parameter), tolerance in levels, and the share of pixels
# that may differ: torchvision rounds factor x + (1 - factor) g once, we round twice; its hue and gamma are float32
TABLE = {
    "brightness": (Brightness((0, 2), OFTEN), "factor", reference.adjust_brightness, 0, 0),
    "contrast": (Contrast((0, 2), OFTEN), "factor", reference.adjust_contrast, 1, 1e-3),
    "saturation": (Saturation((0, 2), OFTEN), "factor", reference.adjust_saturation, 1, 1e-3),
    "hue": (Hue((-0.5, 0.5), OFTEN), "shift", reference.adjust_hue, 1, 1e-3),
    "gamma": (Gamma((0, 3), OFTEN), "gamma", reference.adjust_gamma, 1, 1e-3),
    "sharpen": (Sharpen((0, 3), OFTEN), "factor", reference.adjust_sharpness, 1, 1e-3),
    "solarize": (Solarize((0, 255), OFTEN), "threshold", reference.solarize, 0, 0),
    "posterize": (Posterize((0, 8), OFTEN), "bits", lambda image, bits: reference.posterize(image, int(bits)), 0, 0),
    "invert": (Invert(OFTEN), "applied", lambda image, _: reference.invert(image), 0, 0),
    "autocontrast": (AutoContrast(OFTEN), "applied", lambda image, _: reference.autocontrast(image), 0, 0),
    "equalize": (Equalize(OFTEN), "applied", lambda image, _: reference.equalize(image), 0, 0),
}
NEUTRAL = {"factor": 1.0, "shift": 0.0, "gamma": 1.0, "threshold": 256.0, "bits": 8.0, "applied": False}
GRADED = {name: entry for name, entry in TABLE.items() if entry[1] != "applied"}
OPERATIONS = [*(entry[0] for entry in TABLE.values()), ColourShift((-99, 99), OFTEN), Lighting(1.0, OFTEN)]
IDS = [type(operation).__name__ for operation in OPERATIONS]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(shape: tuple[int, int, int], num: int = 64) -> torch.Tensor:
    """uint8 images: noise, smooth, constant and four-level ones in turn."""
    g = generator(1)
    noise = torch.randint(0, 256, (num, *shape), dtype=torch.uint8, generator=g)
    coarse = torch.rand(num, shape[0], 4, 4, generator=g) * 300 - 20
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear").clamp(0, 255).to(torch.uint8)
    few = torch.randint(0, 4, (num, *shape), dtype=torch.uint8, generator=g) * 85
    kinds = torch.stack((noise, smooth, noise[..., :1, :1].expand_as(noise), few))
    return kinds[torch.arange(num) % 4, torch.arange(num)]


def with_probability(operation: object, probability: float) -> object:
    other = copy(operation)
    other.probability = probability
    return other


def rows_of(operation: object, num: int, shape: tuple[int, int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    return operation.draw(num, shape, generator(seed))


@pytest.mark.proves(
    "Contrast", reference="torchvision v2's adjust_contrast", tolerance="1 of 255 levels, at fewer than 1 pixel in 1000"
)
@pytest.mark.proves(
    "Saturation",
    reference="torchvision v2's adjust_saturation",
    tolerance="1 of 255 levels, at fewer than 1 pixel in 1000",
)
@pytest.mark.proves(
    "Hue", reference="torchvision v2's adjust_hue", tolerance="1 of 255 levels, at fewer than 1 pixel in 1000"
)
@pytest.mark.proves(
    "Gamma", reference="torchvision v2's adjust_gamma", tolerance="1 of 255 levels, at fewer than 1 pixel in 1000"
)
@pytest.mark.proves(
    "Sharpen", reference="torchvision v2's adjust_sharpness", tolerance="1 of 255 levels, at fewer than 1 pixel in 1000"
)
@pytest.mark.proves("Brightness", reference="torchvision v2's adjust_brightness", tolerance="bitwise")
@pytest.mark.proves("Solarize", reference="torchvision v2's solarize", tolerance="bitwise")
@pytest.mark.proves("Posterize", reference="torchvision v2's posterize", tolerance="bitwise")
@pytest.mark.proves("Invert", reference="torchvision v2's invert", tolerance="bitwise")
@pytest.mark.proves("AutoContrast", reference="torchvision v2's autocontrast", tolerance="bitwise")
@pytest.mark.proves("Equalize", reference="torchvision v2's equalize", tolerance="bitwise")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TABLE)
def test_it_is_torchvisions(name, shape):
    operation, row, function, tolerance, share = TABLE[name]
    pixels = images(shape)
    rows = rows_of(operation, 64, shape)
    result = operation(pixels.float(), rows)
    assert result.dtype == torch.float32
    assert torch.equal(result, result.round().clamp(0, 255))
    applied = rows[row] != NEUTRAL[row]
    assert 30 < applied.sum() < 64
    expected = [function(x, v.item()) if a else x for x, v, a in zip(pixels, rows[row], applied, strict=True)]
    difference = (result - torch.stack(expected).float()).abs()
    assert difference.max() <= tolerance
    of_many_colours = torch.arange(64) % 4 != 2  # the means of the others are whole numbers before rounding
    assert (difference[of_many_colours] > 0).float().mean() <= share


@pytest.mark.parametrize("name", ["contrast", "saturation", "sharpen"])
def test_a_factor_of_two_or_a_half_loses_nothing(name):
    # halves round the same way here, so even the blends are exact
    operation, row, function, *_ = TABLE[name]
    pixels = images((3, 32, 32))
    factors = torch.tensor([0.0, 0.5, 1.5, 2.0], dtype=torch.float64).repeat(16)
    result = operation(pixels.float(), {row: factors})
    for i in range(64):
        assert torch.equal(result[i], function(pixels[i], factors[i].item()).float())


def test_contrast_of_a_large_image_sums_exactly():
    shape = (1, 301, 321)
    means = torch.arange(201, 233, 2)  # times the number of pixels: odd, and too large for float32
    half = torch.randint(0, 23, (len(means), 301 * 321 // 2), generator=generator())
    pixels = means.unsqueeze(1) + torch.cat((half, -half, torch.zeros(len(means), 1)), 1)
    # only the mean remains: any downward error changes the level
    factors = torch.zeros(len(means), dtype=torch.float64)
    result = Contrast()(pixels.view(-1, *shape).float(), {"factor": factors})
    assert torch.equal(result, means.view(-1, 1, 1, 1).expand_as(result).float())


def test_solarize_by_hand():
    levels = torch.tensor([0.0, 127, 128, 129, 255]).view(1, 1, 1, 5)
    result = Solarize()(levels, {"threshold": torch.tensor([128.0])})
    assert result.flatten().tolist() == [0, 127, 127, 126, 0]


@pytest.mark.proves("Hue", reference="the circle of pure colours by hand", tolerance="exact")
@pytest.mark.parametrize("turn", [1 / 3, -1 / 3, 1 / 6, 0.5])
def test_hues_of_pure_colours_by_hand(turn):
    circle = [(200, 0, 0), (200, 200, 0), (0, 200, 0), (0, 200, 200), (0, 0, 200), (200, 0, 200)]
    pixels = torch.tensor(circle, dtype=torch.float32).view(6, 3, 1, 1)
    result = Hue()(pixels.clone(), {"shift": torch.full((6,), turn, dtype=torch.float64)})
    assert torch.equal(result, pixels.roll(-round(6 * turn), 0))


def test_gamma_by_hand():
    levels = torch.tensor([0.0, 1, 64, 128, 254, 255]).view(1, 1, 1, 6)
    assert Gamma()(levels.clone(), {"gamma": torch.tensor([2.0])}).flatten().tolist() == [0, 0, 16, 64, 253, 255]
    assert Gamma()(levels.clone(), {"gamma": torch.tensor([0.5])}).flatten().tolist() == [0, 16, 128, 181, 255, 255]


@pytest.mark.proves(
    "Lighting", reference="the formula of Krizhevsky et al. 2012 in float64", tolerance="0.05 levels beyond rounding"
)
def test_lighting_is_the_formula_of_its_paper():
    pixels = images((3, 8, 8))
    lighting = Lighting(std=2.0, probability=OFTEN)
    rows = rows_of(lighting, 64, (3, 8, 8))
    sizes = torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64)
    components = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=torch.float64
    )
    assert torch.allclose(components.T @ components, torch.eye(3, dtype=torch.float64), atol=1e-3)
    expected = pixels / 255 + (components @ (rows["alpha"] * sizes).T).T.view(64, 3, 1, 1)
    result = lighting(pixels.float(), rows)
    # half a level for rounding; the constants are printed with four digits
    assert ((result / 255 - expected.clamp(0, 1)).abs() * 255).max() < 0.5 + 0.05


@pytest.mark.proves("ColourShift", reference="addition in whole numbers", tolerance="exact")
def test_a_colour_shift_adds_to_each_channel():
    pixels = images((3, 8, 8))
    shift = ColourShift(levels=(-200, 200), probability=OFTEN)
    rows = rows_of(shift, 64, (3, 8, 8))
    expected = (pixels.to(torch.int64) + rows["levels"].view(64, 3, 1, 1)).clamp(0, 255)
    assert torch.equal(shift(pixels.float(), rows).to(torch.int64), expected)


@pytest.mark.parametrize("operation", [Saturation((0, 2)), Hue((-0.5, 0.5)), Lighting(1.0)])
def test_what_needs_colour_leaves_grey_images(operation):
    pixels = images((1, 28, 28)).float()
    assert torch.equal(operation(pixels.clone(), rows_of(operation, 64, (1, 28, 28))), pixels)


@pytest.mark.parametrize("name", GRADED)
def test_the_neutral_number_changes_no_bit(name):
    operation, row, *_ = GRADED[name]
    for shape in SHAPES:
        pixels = images(shape).float()
        neutral = torch.full((64,), NEUTRAL[row], dtype=torch.float64)
        assert torch.equal(operation(pixels.clone(), {row: neutral}), pixels)
        # and the function itself, when an in-place operation processes all images because most are selected
        mixed = rows_of(operation, 64, shape)[row]
        kept = torch.arange(64) % 5 == 0
        mixed[kept] = NEUTRAL[row]
        assert torch.equal(operation(pixels.clone(), {row: mixed})[kept], pixels[kept])


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_probability_zero_changes_no_bit_and_one_changes_all(operation):
    pixels = images((3, 32, 32))[1::4].mul(0.5).add(50).floor()  # smooth images, values from 50 to 177
    never, always = (with_probability(operation, p) for p in (0.0, 1.0))
    assert torch.equal(never(pixels.clone(), rows_of(never, 16, (3, 32, 32))), pixels)
    changed = always(pixels.clone(), rows_of(always, 16, (3, 32, 32))) != pixels
    assert changed.flatten(1).any(1).sum() >= 12  # a threshold may be above every pixel; all bits may be kept


@pytest.mark.parametrize("probability", [0.2, 0.9])
@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_an_image_does_not_depend_on_the_batch_it_is_in(operation, probability):
    operation = with_probability(operation, probability)
    for shape in SHAPES:
        pixels = images(shape).float()
        table = rows_of(operation, 64, shape)
        whole = operation(pixels.clone(), table)
        order = torch.randperm(64, generator=generator())
        for indices in (*order.split(27), *torch.arange(64).split(1)):
            part = operation(pixels[indices].clone(), {name: column[indices] for name, column in table.items()})
            assert torch.equal(part, whole[indices])


@pytest.mark.parametrize("probability", [0.2, 1.0])
@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_images_in_another_memory_layout(operation, probability):
    operation = with_probability(operation, probability)
    pixels = images((3, 37, 21)).float()
    rows = rows_of(operation, 64, (3, 37, 21))
    expected = operation(pixels.clone(), rows)
    assert torch.equal(operation(pixels.clone(memory_format=torch.channels_last), rows), expected)
    assert torch.equal(operation(pixels.repeat(1, 1, 1, 2)[..., :21], rows), expected)


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_two_threads_give_the_same_bits(operation):
    pixels = images((3, 37, 21)).repeat(16, 1, 1, 1).float()  # enough pixels for several threads
    rows = rows_of(operation, 1024, (3, 37, 21))
    expected = operation(pixels.clone(), rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(operation(pixels.clone(), rows), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_an_empty_batch_stays_empty(operation):
    rows = rows_of(operation, 0, (3, 8, 8))
    assert operation(torch.zeros(0, 3, 8, 8), rows).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_a_table_has_one_row_a_sample_and_a_fixed_number_of_draws(operation):
    often, never = with_probability(operation, 1.0), with_probability(operation, 0.0)
    ends = []
    for each in (operation, often, never):
        g = generator()
        rows = each.draw(50, (3, 8, 8), g)
        assert {len(column) for column in rows.values()} == {50}
        assert {column.device.type for column in rows.values()} == {"cpu"}
        ends.append(g.get_state())
    assert all(torch.equal(end, ends[0]) for end in ends)


@pytest.mark.parametrize("name", [name for name in GRADED if name != "posterize"])
def test_numbers_are_uniform_over_their_range(name):
    operation, row, *_ = GRADED[name]
    low, high = getattr(operation, row)
    values = rows_of(operation, 5000, (3, 32, 32))[row]
    drawn = values[values != NEUTRAL[row]]
    assert binomtest(len(drawn), 5000, OFTEN).pvalue > 1e-3
    assert kstest(((drawn - low) / (high - low)).numpy(), "uniform").pvalue > 1e-3


def test_bits_are_uniform_over_whole_numbers():
    bits = rows_of(Posterize(bits=(3, 6), probability=1.0), 5000, (3, 8, 8))["bits"]
    counts = torch.bincount(bits.to(torch.int64))
    assert counts.nonzero().flatten().tolist() == [3, 4, 5, 6]
    assert chisquare(counts[3:].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("kind", [Invert, AutoContrast, Equalize])
def test_the_share_of_images_is_the_probability(kind):
    applied = rows_of(kind(probability=0.3), 5000, (3, 8, 8))["applied"]
    assert binomtest(int(applied.sum()), 5000, 0.3).pvalue > 1e-3


def test_shifts_are_uniform_and_each_channels_own():
    levels = rows_of(ColourShift(levels=(-2, 2), probability=1.0), 6000, (3, 8, 8))["levels"]
    cells = torch.bincount(((levels + 2) * torch.tensor([1, 5, 25])).sum(1), minlength=125)
    assert len(cells) == 125
    assert chisquare(cells.numpy()).pvalue > 1e-3
    sometimes = rows_of(ColourShift(levels=(50, 60), probability=0.4), 5000, (1, 8, 8))["levels"]
    assert sometimes.shape == (5000, 1)
    assert binomtest(int((sometimes > 0).sum()), 5000, 0.4).pvalue > 1e-3


def test_lighting_is_normal_in_each_component():
    alpha = rows_of(Lighting(std=0.3, probability=0.5), 5000, (3, 8, 8))["alpha"]
    drawn = alpha[alpha.any(1)]
    assert binomtest(len(drawn), 5000, 0.5).pvalue > 1e-3
    for component in (drawn / 0.3).T:
        assert kstest(component.numpy(), "norm").pvalue > 1e-3
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.08


@pytest.mark.parametrize("name", GRADED)
def test_the_probability_does_not_change_what_is_drawn(name):
    operation, row, *_ = GRADED[name]
    often = rows_of(operation, 1000, (3, 8, 8))[row]
    always = rows_of(with_probability(operation, 1.0), 1000, (3, 8, 8))[row]
    drawn = often != NEUTRAL[row]
    assert 700 < drawn.sum() < 1000
    assert torch.equal(often[drawn], always[drawn])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Brightness(factor=(-0.1, 1)), r"factor=\[-0.1, 1\]: must be two numbers of at least 0"),
        (lambda: Contrast(factor=(1.2, 0.8)), r"factor=\[1.2, 0.8\]: must be .* the smaller first"),
        (lambda: Saturation(factor=(0, float("nan"))), r"factor=\[0, nan\]: must be two numbers"),
        (lambda: Sharpen(factor=(0, float("inf"))), r"factor=\[0, inf\]: must be two numbers"),
        (lambda: Hue(shift=(-0.6, 0.1)), r"shift=\[-0.6, 0.1\]: must be two numbers from -0.5 to 0.5"),
        (lambda: Gamma(gamma=(-1, 1)), r"gamma=\[-1, 1\]: must be two numbers of at least 0"),
        (lambda: Solarize(threshold=(0, 256)), r"threshold=\[0, 256\]: must be two numbers from 0 to 255"),
        (lambda: Posterize(bits=(0, 9)), r"bits=\[0, 9\]: must be two numbers from 0 to 8"),
        (lambda: Posterize(bits=(1.5, 3)), r"bits=\[1.5, 3\]: must be two whole numbers"),
        (lambda: ColourShift(levels=(-256, 0)), r"levels=\[-256, 0\]: must be two numbers from -255 to 255"),
        (lambda: ColourShift(levels=(0, 0.5)), r"levels=\[0, 0.5\]: must be two whole numbers"),
        (lambda: Lighting(std=-0.1), r"std=-0.1: must be at least 0"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


@pytest.mark.parametrize("kind", [type(operation) for operation in OPERATIONS])
def test_a_probability_is_a_probability(kind):
    with pytest.raises(ValueError, match=r"^probability=1.1: must be between 0 and 1"):
        kind(probability=1.1)


def test_the_option_says_what_the_classes_default_to():
    node = yaml.safe_load((CONFIGS / "colour.yaml").read_text())
    assert node.pop("_target_") == "trainer.augmentation.Pipeline"
    for operation in node.values():
        target = getattr(augmentation, operation.pop("_target_").removeprefix("trainer.augmentation."))
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in operation.items()}
        assert vars(target(**arguments)) == vars(target())
