"""Displacement fields: elastic against torchvision v2 with the same field, lenses against scipy.

Tolerance: 1 of 255 levels, at fewer than 1 pixel in 1000 (coordinates are float32 here and float64 in scipy).
"""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from scipy.ndimage import map_coordinates
from scipy.stats import binomtest, kstest
from torchvision.transforms import InterpolationMode

from tests.augmentation.helpers import generator, images, name
from trainer.augmentation import Elastic, LensDistortion

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 33, 47), (3, 7, 10)]
FILLS = {"black": "grid-constant", "edge": "nearest", "mirror": "reflect"}  # scipy's names
CPU = torch.device("cpu")


def assert_close(result: torch.Tensor, expected: list[torch.Tensor]) -> None:
    difference = (result - torch.stack(expected).float()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def by_scipy(image: torch.Tensor, y: np.ndarray, x: np.ndarray, fill: str) -> torch.Tensor:
    """`y` and `x` are relative to the centre."""
    coordinates = [y + (image.shape[1] - 1) / 2, x + (image.shape[2] - 1) / 2]
    planes = [map_coordinates(plane.double().numpy(), coordinates, order=1, mode=FILLS[fill]) for plane in image]
    return torch.from_numpy(np.rint(planes))


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")


@pytest.mark.proves(
    "Elastic",
    reference="torchvision v2's elastic with the same field",
    tolerance="1 of 255 levels, at fewer than 1 pixel in 1000",
)
@pytest.mark.parametrize("shape", SHAPES)
def test_elastic_is_torchvisions_with_the_same_field(shape):
    pixels, operation = images(32, shape), Elastic(alpha=2.0, sigma=3.0)
    rows = operation.draw(32, shape, generator())
    pixel_field = operation.displacement(rows["seed"], *shape[1:], CPU)
    field = (pixel_field / torch.tensor([shape[2] / 2, shape[1] / 2]).view(2, 1, 1)).permute(0, 2, 3, 1)
    wanted = [reference.elastic(pixels[i], field[i : i + 1], InterpolationMode.BILINEAR) for i in range(32)]
    assert_close(operation(pixels.float(), rows), wanted)


@pytest.mark.parametrize("fill", FILLS)
def test_elastic_with_every_fill(fill):
    pixels, operation = images(16, (1, 20, 31)), Elastic(alpha=4.0, sigma=3.0, fill=fill)
    rows = operation.draw(16, (1, 20, 31), generator())
    field = operation.displacement(rows["seed"], 20, 31, CPU).numpy()
    y, x = coordinates(20, 31)
    wanted = [by_scipy(pixels[i], y + field[i, 1], x + field[i, 0], fill) for i in range(16)]
    assert_close(operation(pixels.float(), rows), wanted)


@pytest.mark.parametrize("sigma", [1.0, 1.7, 4.0, 6.5])
def test_a_field_has_the_strength_and_the_smoothness_asked_for(sigma):
    """Correlation of white noise after a Gaussian filter at distance d: exp(-d^2 / 4 sigma^2)."""
    field = Elastic(alpha=3.0, sigma=sigma).displacement(torch.arange(5000) * 7919, 16, 24, CPU) / 3
    assert field.mean().abs() < 0.02
    square = field.square().mean((0, 1))
    assert square.min() > 0.93 and square.max() < 1.07  # everywhere, including the border; from 10000 values each
    assert abs(square.mean() - 1) < 0.02
    for distance in (1, math.ceil(sigma), math.ceil(2 * sigma)):
        expected = math.exp(-((distance / sigma) ** 2) / 4)
        assert abs((field[..., distance:] * field[..., :-distance]).mean() - expected) < 0.02
        assert abs((field[..., distance:, :] * field[..., :-distance, :]).mean() - expected) < 0.02
    assert (field[:, 0] * field[:, 1]).mean().abs() < 0.02


def test_other_seeds_give_other_fields():
    first, other = Elastic().displacement(torch.tensor([5, 6]), 32, 32, CPU)
    assert np.corrcoef(first.flatten(), other.flatten())[0, 1] < 0.5
    assert not torch.equal(first, other)


@pytest.mark.proves(
    "LensDistortion", reference="scipy's map_coordinates", tolerance="1 of 255 levels, at fewer than 1 pixel in 1000"
)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_lens_is_its_formula(fill, shape):
    pixels, operation = images(16, shape), LensDistortion((-0.3, 0.5), fill=fill)
    rows = operation.draw(16, shape, generator())
    y, x = coordinates(*shape[1:])
    square = (x**2 + y**2) / ((shape[1] / 2) ** 2 + (shape[2] / 2) ** 2)
    wanted = []
    for i in range(16):
        factor = 1 + float(rows["k1"][i]) * square
        wanted.append(by_scipy(pixels[i], y * factor, x * factor, fill))
    assert_close(operation(pixels.float(), rows), wanted)


def test_a_positive_coefficient_is_a_barrel():
    """A straight line near the top is curved upwards: its middle is higher than its ends."""
    image = torch.zeros(1, 1, 65, 65)
    image[..., 12:15, :] = 255
    barrel = LensDistortion((0.2, 0.2))(image.clone(), {"k1": torch.tensor([0.2])})[0, 0]
    pincushion = LensDistortion((-0.2, -0.2))(image.clone(), {"k1": torch.tensor([-0.2])})[0, 0]
    assert barrel[:32, 32].argmax() < barrel[:32, 12].argmax()
    assert pincushion[:32, 32].argmax() > pincushion[:32, 12].argmax()


UNMOVED = [Elastic(alpha=0), Elastic(probability=0.0), LensDistortion((0, 0)), LensDistortion(probability=0.0)]


@pytest.mark.parametrize("operation", UNMOVED, ids=name)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 227, 301)])
def test_identity_parameters_give_the_identical_image(operation, shape):
    pixels = images(16, shape)
    assert torch.equal(operation(pixels.float(), operation.draw(16, shape, generator())), pixels.float())


@pytest.mark.parametrize("operation", [Elastic(2, 3, probability=0.6), LensDistortion(probability=0.6)], ids=name)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 47)])
def test_an_image_does_not_depend_on_the_batch_it_is_in(operation, shape):
    pixels = images(64, shape).float()
    rows = operation.draw(64, shape, generator())
    whole = operation(pixels.clone(), rows)
    changed = (whole != pixels).flatten(1).any(1)
    assert torch.equal(changed, rows["applied"] if "applied" in rows else rows["k1"] != 0)
    order = torch.randperm(64, generator=generator(1))
    for indices in (*torch.arange(64).split(1), *order.split(13)):
        part = operation(pixels[indices], {key: values[indices] for key, values in rows.items()})
        assert torch.equal(part, whole[indices])


@pytest.mark.parametrize("operation", [Elastic(), LensDistortion()], ids=name)
def test_an_empty_batch_stays_empty(operation):
    rows = operation.draw(0, (3, 32, 32), generator())
    assert operation(torch.zeros(0, 3, 32, 32), rows).shape == (0, 3, 32, 32)


def test_coefficients_are_uniform():
    k1 = LensDistortion((-0.1, 0.4)).draw(5000, (3, 32, 32), generator())["k1"]
    assert kstest(k1.numpy(), "uniform", (-0.1, 0.5)).pvalue > 1e-3


@pytest.mark.parametrize("operation", [Elastic, LensDistortion])
def test_the_probability_decides_who_and_not_what(operation):
    always = operation(probability=1.0).draw(3000, (3, 32, 32), generator())
    sometimes = operation(probability=0.3).draw(3000, (3, 32, 32), generator())
    moved = sometimes["applied"] if "applied" in sometimes else sometimes["k1"] != 0
    assert binomtest(int(moved.sum()), 3000, 0.3).pvalue > 1e-3
    for key, values in always.items():
        if key != "applied":
            assert torch.equal(sometimes[key][moved], values[moved])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Elastic(alpha=-1), "alpha=-1: must be at least 0"),
        (lambda: Elastic(sigma=0), "sigma=0: must be from 0.1 to 1000"),
        (lambda: Elastic(probability=2), "probability=2: must be between 0 and 1"),
        (lambda: Elastic(fill="grey"), "fill=grey: must be black, edge or mirror"),
        (lambda: LensDistortion(k1=(-0.4, 0)), "k1=.*: must be two numbers above -0.333"),
        (lambda: LensDistortion(k1=(float("nan"), 0)), "k1=.*: must be two numbers above"),
        (lambda: LensDistortion(k1=(0.2, 0.1)), "k1=.*: must be two numbers"),
        (lambda: LensDistortion(probability=-1), "probability=-1: must be between 0 and 1"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()
