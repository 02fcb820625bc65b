"""Coordinate transforms against torchvision v2 on single uint8 images, and against scipy if v2 has no counterpart.

Tolerance: 1 of 255 levels, at fewer than 1 pixel in 200. v2 also computes coordinates in float32 and rounds the same
way; values within about 1e-4 of a half differ.
"""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from scipy.ndimage import map_coordinates
from scipy.stats import binomtest, chisquare, kstest
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import _get_perspective_coeffs

from tests.augmentation.helpers import generator, images, name
from trainer.augmentation import (
    Perspective,
    Pipeline,
    Rotate,
    Scale,
    Shear,
    Stretch,
    TranslateX,
    TranslateY,
    VerticalFlip,
)
from trainer.augmentation.warp import resample

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 33, 47), (3, 7, 10), (1, 8, 8)]
FILLS = {"black": "grid-constant", "edge": "nearest", "mirror": "reflect"}  # scipy's names
OPERATIONS = [
    Rotate(30),
    TranslateX(0.3),
    TranslateY(0.3),
    Scale((0.5, 2)),
    Stretch((0.5, 2)),
    Shear(30, 20),
    Perspective(0.5),
]


def affine(image: torch.Tensor, angle=0.0, translate=(0, 0), scale=1.0, shear=(0.0, 0.0)) -> torch.Tensor:
    return reference.affine(image, angle, list(translate), scale, list(shear), interpolation=InterpolationMode.BILINEAR)


def assert_close(result: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (result - expected.to(torch.float32)).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 5e-3


def by_scipy(image: torch.Tensor, back: np.ndarray, fill: str) -> torch.Tensor:
    """Warp an image by a 3 x 3 matrix from output to input coordinates, relative to the centre."""
    height, width = image.shape[1:]
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    from_x, from_y, depth = np.tensordot(back, np.stack([x, y, np.ones_like(x)]), 1)
    coordinates = [from_y / depth + (height - 1) / 2, from_x / depth + (width - 1) / 2]
    planes = [map_coordinates(plane.double().numpy(), coordinates, order=1, mode=FILLS[fill]) for plane in image]
    return torch.from_numpy(np.rint(planes))


ONE_BY_ONE = [
    (Rotate(180), lambda x, degrees: reference.rotate(x, degrees, InterpolationMode.BILINEAR)),
    (TranslateX(0.6), lambda x, fraction: affine(x, translate=(round(fraction * x.shape[2]), 0))),
    (TranslateY(0.6), lambda x, fraction: affine(x, translate=(0, round(fraction * x.shape[1])))),
    (Scale((0.3, 3)), lambda x, factor: affine(x, scale=factor)),
    (Shear(60, 40), lambda x, x_degrees, y_degrees: affine(x, shear=(x_degrees, y_degrees))),
]


@pytest.mark.proves(
    "Rotate",
    "TranslateX",
    "TranslateY",
    "Scale",
    "Shear",
    reference="torchvision v2's rotate and affine",
    tolerance="1 of 255 levels, at fewer than 1 pixel in 200",
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("operation", "expected"), ONE_BY_ONE, ids=[name(op) for op, _ in ONE_BY_ONE])
def test_one_operation_is_torchvisions(operation, expected, shape):
    pixels = images(48, shape)
    rows = operation.draw(48, shape, generator())
    result = operation(pixels.float(), rows)
    wanted = [expected(pixels[i], **{key: float(values[i]) for key, values in rows.items()}) for i in range(48)]
    assert_close(result, torch.stack(wanted))
    assert result.dtype == torch.float32


@pytest.mark.proves(
    "Perspective", reference="torchvision v2's perspective", tolerance="1 of 255 levels, at fewer than 1 pixel in 200"
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distortion", [0.3, 0.6, 1.0])
def test_perspective_is_torchvisions(shape, distortion):
    pixels, operation = images(48, shape), Perspective(distortion)
    _, height, width = shape
    rows = operation.draw(48, shape, generator())
    corners = operation.corners(rows, height, width)
    start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    # With three corners on a line no map exists: torchvision's solver raises or returns an arbitrary result, depending
    # on the processor. Corners are whole numbers, so twice the area of each triangle is exactly 0 or at least 1.
    edges = corners.roll(-1, 1) - corners
    defined = (torch.linalg.det(torch.stack((edges, edges.roll(-1, 1)), 3)).abs() > 0.5).all(1)
    assert defined.all() or distortion == 1
    assert defined.sum() >= 24
    wanted = torch.stack(
        [
            reference.perspective(pixels[i], start, corners[i].int().tolist(), InterpolationMode.BILINEAR)
            for i in defined.nonzero().flatten().tolist()
        ]
    )
    assert_close(operation(pixels.float(), rows)[defined], wanted)


@pytest.mark.proves(
    "Stretch", reference="scipy's map_coordinates", tolerance="1 of 255 levels, at fewer than 1 pixel in 200"
)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 47)])
def test_stretching_widens_alone(shape):
    pixels, operation = images(16, shape), Stretch((0.5, 2))
    rows = operation.draw(16, shape, generator())
    wanted = [by_scipy(pixels[i], np.diag([1 / float(rows["factor"][i]), 1, 1]), "black") for i in range(16)]
    assert_close(operation(pixels.float(), rows), torch.stack(wanted))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_lies_outside(fill, shape):
    pixels = images(16, shape)
    angle = torch.linspace(-3, 3, 16, dtype=torch.float64)
    back = torch.eye(3, dtype=torch.float64).repeat(16, 1, 1)
    back[:, 0, 0] = back[:, 1, 1] = 1.7 * angle.cos()
    back[:, 0, 1], back[:, 1, 0] = -1.7 * angle.sin(), 1.7 * angle.sin()
    back[:, :2, 2] = torch.tensor([1.3, -4.7])
    wanted = [by_scipy(pixels[i], back[i].numpy(), fill) for i in range(16)]
    assert_close(resample(pixels.float(), back, fill), torch.stack(wanted))


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_are_one_affine_map_of_torchvision(shape):
    """It scales, shears, rotates and translates, in this order, about the centre."""
    pixels = images(48, shape)
    pipeline = Pipeline(
        scale=Scale((0.6, 1.6)), shear=Shear(20, 10), rotate=Rotate(40), x=TranslateX(0.2), y=TranslateY(0.2)
    )
    rows = pipeline.draw(48, shape, generator())
    wanted = []
    for i in range(48):
        row = {key: float(values[i]) for key, values in rows.items()}
        shift = (round(row["x.fraction"] * shape[2]), round(row["y.fraction"] * shape[1]))
        slant = (row["shear.x_degrees"], row["shear.y_degrees"])
        wanted.append(affine(pixels[i], -row["rotate.degrees"], shift, row["scale.factor"], slant))
    assert_close(pipeline(pixels.float(), rows), torch.stack(wanted))


def forward_perspective(corners: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Coefficients of torchvision's own solver for the inverse map, in coordinates from the top left."""
    start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    back = np.array([*_get_perspective_coeffs(start, corners.int().tolist()), 1]).reshape(3, 3)
    centre = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    return np.linalg.inv(np.linalg.inv(centre) @ back @ centre)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 47)])
def test_neighbours_in_another_order_are_the_product_of_their_maps(shape):
    pixels = images(24, shape)
    pipeline = Pipeline(x=TranslateX(0.2), rotate=Rotate(40), bend=Perspective(0.4), stretch=Stretch((0.7, 1.4)))
    rows = pipeline.draw(24, shape, generator())
    wanted = []
    for i in range(24):
        row = {key: values[i : i + 1] for key, values in rows.items()}
        angle = math.radians(float(row["rotate.degrees"]))
        forward = np.eye(3)
        forward[0, 2] = round(float(row["x.fraction"]) * shape[2])
        turn = np.array([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        moved = pipeline.operations["bend"].corners({"inwards": row["bend.inwards"]}, *shape[1:])[0]
        bend = forward_perspective(moved, *shape[1:])
        forward = np.diag([float(row["stretch.factor"]), 1, 1]) @ bend @ turn @ forward
        wanted.append(by_scipy(pixels[i], np.linalg.inv(forward), "black"))
    assert_close(pipeline(pixels.float(), rows), torch.stack(wanted))


def test_what_one_moves_out_another_moves_back_in():
    pixels = images(8, (3, 32, 32))
    there_and_back = {"there.fraction": torch.full((8,), 0.5), "back.fraction": torch.full((8,), -0.5)}
    pipeline = Pipeline(there=TranslateX(0.5), back=TranslateX(0.5))
    assert torch.equal(pipeline(pixels.float(), there_and_back), pixels.float())
    # not if the fills differ: then these are two resampling steps
    pipeline = Pipeline(there=TranslateX(0.5), back=TranslateX(0.5, fill="edge"))
    assert not torch.equal(pipeline(pixels.float(), there_and_back), pixels.float())


@pytest.mark.parametrize("size", [31, 32, 100, 224])
def test_whole_pixels_are_moved_exactly(size):
    pixels = images(4, (1, size, size))
    rows = {"fraction": torch.tensor([-0.4, -1 / size, 1 / size, 0.4], dtype=torch.float64)}
    result = TranslateY(0.4)(pixels.float(), rows)
    for i, fraction in enumerate(rows["fraction"].tolist()):
        moved = torch.roll(pixels[i], round(fraction * size), 1)
        if fraction > 0:
            moved[:, : round(fraction * size)] = 0
        else:
            moved[:, round(fraction * size) :] = 0
        assert torch.equal(result[i], moved.float())


UNMOVED = [
    Rotate(0),
    TranslateX(0),
    TranslateY(0),
    Scale((1, 1)),
    Stretch((1, 1)),
    Shear(0, 0),
    Perspective(0),
    *(type(operation)(probability=0.0) for operation in OPERATIONS),
]


@pytest.mark.parametrize("operation", UNMOVED, ids=name)
@pytest.mark.parametrize("shape", SHAPES)
def test_identity_parameters_give_the_identical_image(operation, shape):
    pixels = images(32, shape)
    rows = operation.draw(32, shape, generator())
    eye = torch.eye(3, dtype=torch.float64).expand(32, 3, 3)
    assert torch.equal(operation.matrix(rows, *shape[1:]), eye)
    assert torch.equal(operation(pixels.float(), rows), pixels.float())


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("probability", [0.1, 0.9])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 227, 301)])
def test_images_that_are_not_chosen_are_identical(fill, probability, shape):
    pixels, operation = images(20, shape), Rotate(90, probability=probability, fill=fill)
    rows = operation.draw(20, shape, generator(3))
    kept = rows["degrees"] == 0
    assert 0 < kept.sum() < 20
    result = operation(pixels.float(), rows)
    assert torch.equal(result[kept], pixels[kept].float())
    assert not any(torch.equal(result[i], pixels[i].float()) for i in (~kept).nonzero().flatten().tolist())


MIXED = [Pipeline(rotate=Rotate(40, 0.5), bend=Perspective(0.5, 0.5), x=TranslateX(0.3, 0.5))]


@pytest.mark.parametrize("operation", [*OPERATIONS, *MIXED], ids=name)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 47)])
def test_an_image_does_not_depend_on_the_batch_it_is_in(operation, shape):
    pixels = images(64, shape).float()
    rows = operation.draw(64, shape, generator())
    whole = operation(pixels.clone(), rows)
    order = torch.randperm(64, generator=generator(1))
    for indices in (*torch.arange(64).split(1), *order.split(13), *order.split(31)):
        part = operation(pixels[indices], {key: values[indices] for key, values in rows.items()})
        assert torch.equal(part, whole[indices])


@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
def test_an_empty_batch_stays_empty(operation):
    rows = operation.draw(0, (3, 32, 32), generator())
    assert operation(torch.zeros(0, 3, 32, 32), rows).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("operation", [Perspective(1.0), Scale((1e-3, 1e3)), Shear(89, 89)], ids=name)
def test_extremes_give_whole_numbers(fill, operation):
    operation.fill = fill
    rows = operation.draw(500, (1, 8, 8), generator())
    result = operation(images(500, (1, 8, 8)).float(), rows)
    assert torch.equal(result, result.round().clamp(0, 255))


def test_corners_on_a_line_leave_the_image_alone():
    """torchvision divides by the rounding error of 0 there."""
    rows = {"applied": torch.tensor([True]), "inwards": torch.zeros(1, 4, 2, dtype=torch.float64)}
    rows["inwards"][0, 0] = 0.999  # top left in the middle of a 9 x 9 image, on the line between two corners
    operation, pixels = Perspective(1.0), images(1, (1, 9, 9))
    assert operation.corners(rows, 9, 9)[0, 0].tolist() == [4, 4]
    assert torch.equal(operation(pixels.float(), rows), pixels.float())


@pytest.mark.parametrize(
    ("operation", "column", "low", "high"),
    [
        (Rotate(25), "degrees", -25, 25),
        (TranslateX(0.3), "fraction", -0.3, 0.3),
        (TranslateY(0.2), "fraction", -0.2, 0.2),
        (Shear(20, 5), "x_degrees", -20, 20),
        (Shear(20, 5), "y_degrees", -5, 5),
    ],
)
def test_parameters_are_uniform(operation, column, low, high):
    values = operation.draw(5000, (3, 32, 32), generator())[column]
    assert kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize("operation", [Scale((0.5, 3)), Stretch((0.5, 3))], ids=name)
def test_factors_are_uniform_in_the_logarithm(operation):
    factors = operation.draw(5000, (3, 32, 32), generator())["factor"]
    assert kstest(factors.log().numpy(), "uniform", (math.log(0.5), math.log(6))).pvalue > 1e-3


def test_corners_move_as_torchvisions():
    operation = Perspective(0.4)
    corners = operation.corners(operation.draw(5000, (3, 32, 50), generator()), 32, 50)
    inwards = torch.stack((corners[:, 0], corners[:, 2]), 1)
    inwards[:, 1] = torch.tensor([49, 31]) - inwards[:, 1]
    for axis, most in ((0, int(0.4 * 25)), (1, int(0.4 * 16))):  # its bounds, which randint excludes
        for corner in (0, 1):
            counts = torch.bincount(inwards[:, corner, axis].long())
            assert len(counts) == most + 1
            assert chisquare(counts.numpy()).pvalue > 1e-3
    assert (corners[:, 1, 0] >= 39).all()
    assert (corners[:, 3, 1] >= 25).all()


@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
def test_the_probability_decides_who_and_not_what(operation):
    always = operation.draw(3000, (3, 32, 32), generator())
    operation = type(operation)(**{**parameters(operation), "probability": 0.3})
    sometimes = operation.draw(3000, (3, 32, 32), generator())
    eye = torch.eye(3, dtype=torch.float64)
    moved = (operation.matrix(sometimes, 999, 999) != eye).flatten(1).any(1)
    assert binomtest(int(moved.sum()), 3000, 0.3).pvalue > 1e-3
    for key, values in always.items():
        if key != "applied":
            assert torch.equal(sometimes[key][moved], values[moved])


def parameters(operation: object) -> dict[str, object]:
    return {key: value for key, value in vars(operation).items() if not key.startswith("_")}


@pytest.mark.proves("VerticalFlip", reference="torchvision v2's vertical_flip", tolerance="bitwise")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_vertical_flip_is_torchvisions(shape, probability):
    pixels, flip = images(64, shape), VerticalFlip(probability)
    rows = flip.draw(64, shape, generator())
    result = flip(pixels, rows)
    for i in range(64):
        assert torch.equal(result[i], reference.vertical_flip(pixels[i]) if rows["applied"][i] else pixels[i])
    assert result.dtype == torch.uint8
    assert torch.equal(pixels, images(64, shape))
    assert binomtest(int(flip.draw(2000, shape, generator())["applied"].sum()), 2000, probability).pvalue > 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rotate(degrees=-1), "degrees=-1: must be from 0 to 180"),
        (lambda: Rotate(degrees=float("nan")), "degrees=nan: must be from 0 to 180"),
        (lambda: Rotate(probability=1.5), "probability=1.5: must be between 0 and 1"),
        (lambda: Rotate(fill="white"), "fill=white: must be black, edge or mirror"),
        (lambda: TranslateX(fraction=1.1), "fraction=1.1: must be from 0 to 1"),
        (lambda: TranslateY(fraction=-0.1), "fraction=-0.1: must be from 0 to 1"),
        (lambda: Scale(factor=(0, 1)), r"factor=\[0, 1\]: must be two numbers above 0"),
        (lambda: Scale(factor=0.5), "factor=0.5: must be two numbers above 0"),
        (lambda: Stretch(factor=(2, 1)), "factor=.*: must be two numbers"),
        (lambda: Shear(x_degrees=90), "x_degrees=90: must be from 0 to 89"),
        (lambda: Shear(y_degrees=-1), "y_degrees=-1: must be from 0 to 89"),
        (lambda: Perspective(distortion=1.1), "distortion=1.1: must be from 0 to 1"),
        (lambda: VerticalFlip(probability=2), "probability=2: must be between 0 and 1"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()
