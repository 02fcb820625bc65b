"""Clouds, fog, flakes, snow and rain against colorsys and plain loops over pixels, and by their properties."""

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import binomtest

from trainer.augmentation import Clouds, Fog, Rain, Snowflakes, SnowyLandscape, counted
from trainer.augmentation.weather import smooth_field

CPU = torch.device("cpu")
SHAPES = [(1, 8, 8), (3, 32, 32), (3, 20, 45)]


def images(num: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, *shape), generator=generator).float()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def apply(operation, given):
    rows = operation.draw(len(given), tuple(given.shape[1:]), generator())
    return operation(given.clone(), rows), rows


def field_by_hand(seed: int, H: int, W: int, size: float) -> np.ndarray:
    """The sum of three grids, interpolated with smoothed coordinates, one pixel at a time."""
    total = np.zeros((H, W))
    for octave in range(3):
        cell = size * min(H, W) / 2**octave
        rows, columns = max(1, round(H / cell)), max(1, round(W / cell))
        grid = np.floor(counted.uniform(torch.tensor([seed]), (rows + 1, columns + 1), CPU, octave)[0].numpy() * 256)
        for y in range(H):
            for x in range(W):
                v, u = (y + 0.5) * rows / H, (x + 0.5) * columns / W
                i, j = math.floor(v), math.floor(u)
                a, b = (round(256 * (t * t * (3 - 2 * t))) / 256 for t in (v - i, u - j))
                upper = (1 - b) * grid[i, j] + b * grid[i, j + 1]
                lower = (1 - b) * grid[i + 1, j] + b * grid[i + 1, j + 1]
                total[y, x] += ((1 - a) * upper + a * lower) / 2**octave
    return total / 1.75 / 256


@pytest.mark.proves("Clouds", "Fog", reference="the smooth field in plain loops over pixels", tolerance="1e-6")
@pytest.mark.parametrize(("H", "W", "size"), [(8, 8, 0.5), (20, 33, 0.3), (9, 40, 1.0)])
def test_the_field_is_interpolated_between_random_grids(H, W, size):
    field = smooth_field(torch.tensor([5, 77]), torch.empty(2, 3, H, W), size)
    for i, seed in enumerate((5, 77)):
        assert np.abs(field[i, 0].numpy() - field_by_hand(seed, H, W, size)).max() < 1e-6


def test_the_field_is_smooth_and_about_a_half():
    field = smooth_field(torch.arange(500), torch.empty(500, 1, 64, 64), 0.5)
    assert field.min() >= 0
    assert field.max() < 1
    assert field.mean().item() == pytest.approx(0.5, abs=0.02)
    assert field.diff(dim=2).abs().max() < 0.12  # a grid step is at least 64 * size / 4 = 8 pixels
    assert field.flatten(2).std(2).mean() > 0.1
    near, far = field[:, 0, :, 0], field[:, 0, :, -1]
    assert abs(torch.corrcoef(torch.stack((near[:, 0], far[:, -1])))[0, 1]) < 0.2


def veiled(given: torch.Tensor, level: float, opacity: torch.Tensor) -> np.ndarray:
    opacity64 = opacity.double()
    return ((1 - opacity64) * given.double() + opacity64 * level).numpy()


@pytest.mark.proves("Clouds", reference="the formula in float64", tolerance="rounding")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clouds(shape):
    given = images(30, shape)
    result, rows = apply(Clouds(size=0.4), given)
    field = smooth_field(rows["seed"], given, 0.4).double()
    thickness = (2.5 * (field - 1 + rows["coverage"].view(-1, 1, 1, 1))).clamp(0, 1)
    exact = veiled(given, 255, thickness * rows["opacity"].view(-1, 1, 1, 1))
    assert np.abs(result.numpy() - exact).max() < 0.501
    assert (result >= given).all()


def test_the_sky_is_clear_between_clouds_and_fuller_with_more_of_them():
    given = images(100, (3, 32, 32))
    few, _ = apply(Clouds(coverage=(0.4, 0.4), opacity=(1.0, 1.0)), given)
    many, _ = apply(Clouds(coverage=(0.8, 0.8), opacity=(1.0, 1.0)), given)
    assert 0.1 < (few == given).float().mean() < 0.9
    assert (many >= few).all()
    assert (many == 255).float().mean() > 0.2


@pytest.mark.proves("Fog", reference="the formula in float64", tolerance="rounding")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("patchiness", "level"), [(0.0, 255.0), (0.5, 220.0), (1.0, 0.0)])
def test_fog(shape, patchiness, level):
    given = images(30, shape)
    result, rows = apply(Fog(patchiness=patchiness, level=level), given)
    field = smooth_field(rows["seed"], given, 0.7).double()
    exact = veiled(given, level, (1 - patchiness * field) * rows["density"].view(-1, 1, 1, 1))
    assert np.abs(result.numpy() - exact).max() < 0.501


def test_the_densest_fog_leaves_nothing():
    result, _ = apply(Fog(density=(1.0, 1.0), patchiness=0.0, level=210.0), images(10, (3, 16, 16)))
    assert (result == 210).all()


# --- snowflakes -------------------------------------------------------------------------------------------


@pytest.mark.proves("Snowflakes", reference="scipy's correlate in float64", tolerance="rounding")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_flakes_are_tents_around_their_middles(size):
    given = images(30, (3, 20, 24))
    result, rows = apply(Snowflakes(density=(0.02, 0.1), size=size), given)
    reach = size - 1
    shape = (20 + 2 * reach, 24 + 2 * reach)
    tent = 1 - np.abs(np.arange(-reach, reach + 1)) / size
    for i in range(30):
        seed = rows["seed"][i : i + 1]
        flakes = counted.uniform(seed, shape, CPU)[0].numpy() < np.float32(rows["density"][i])
        brightness = 0.5 + 0.5 * np.floor(128 * counted.uniform(seed, shape, CPU, 1)[0].numpy()) / 128
        cover = ndimage.correlate(flakes * brightness.astype(np.float64), np.outer(tent, tent), mode="constant")
        cover = np.minimum(cover[reach : reach + 20, reach : reach + 24], 1)
        exact = given[i].double().numpy() * (1 - cover) + 255 * cover
        assert np.abs(result[i].numpy() - exact).max() < 0.501


def test_as_many_flakes_as_the_density_says():
    result, rows = apply(Snowflakes(density=(0.05, 0.2), size=1), torch.zeros(200, 1, 40, 40))
    flakes = result > 0
    assert ((flakes.double().mean((1, 2, 3)) - rows["density"]).abs() < 5 * 0.4 / 40).all()
    assert result[flakes].min() >= 127
    assert result[flakes].mean().item() == pytest.approx(0.75 * 255, rel=0.01)


# --- snowy landscape --------------------------------------------------------------------------------------


@pytest.mark.proves("SnowyLandscape", reference="Python's colorsys, pixel by pixel", tolerance="rounding")
def test_snow_is_colorsys_hls():
    """Every pixel, except if the exact value is a half within float32's 1e-3."""
    given = images(40, (3, 16, 16))
    given[:, :, 0] = given[:, :1, 0]  # also greys
    given[:, :, 1, :2] = 0
    given[:, :, 1, 2:4] = 255
    result, rows = apply(SnowyLandscape(threshold=(60.0, 255.0), factor=(1.0, 4.0)), given)
    brightened = 0
    for i in range(40):
        threshold, factor = rows["threshold"][i].item(), rows["factor"][i].item()
        for pixel, new in zip(given[i].flatten(1).T.tolist(), result[i].flatten(1).T.tolist(), strict=True):
            hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in pixel))
            if 255 * lightness < threshold:
                lightness = min(1.0, lightness * factor)
                brightened += 1
            exact = [255 * value for value in colorsys.hls_to_rgb(hue, lightness, saturation)]
            assert max(abs(a - b) for a, b in zip(new, exact, strict=True)) < 0.501
    assert 0.3 < brightened / (40 * 256) < 0.9


def test_snow_on_grey_images():
    given = torch.arange(256.0).view(1, 1, 16, 16)
    result, _ = apply(SnowyLandscape(threshold=(100.0, 100.0), factor=(3.0, 3.0)), given)
    expected = torch.where(given < 100, (3 * given).clamp(max=255), given)
    assert torch.equal(result, expected)


# --- rain -------------------------------------------------------------------------------------------------


@pytest.mark.proves("Rain", reference="streaks drawn pixel by pixel", tolerance="exact")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("slant", "length"), [((-0.3, 0.3), 0.2), ((0.5, 1.9), 0.5), ((-1.5, -0.5), 0.0)])
def test_streaks_by_hand(shape, slant, length):
    """Every streak is drawn pixel by pixel, upwards from its end."""
    C, H, W = shape
    given = torch.zeros(20, C, H, W)
    result, rows = apply(Rain(density=(0.02, 0.05), length=length, slant=slant, level=200.0), given)
    pixels = max(1, round(length * H))
    left, right = round(max(0.0, -slant[0]) * (H - 1)), round(max(0.0, slant[1]) * (H - 1))
    for i in range(20):
        shape_of_ends = (H + pixels - 1, W + left + right)
        ends = counted.uniform(rows["seed"][i : i + 1], shape_of_ends, CPU)[0] < rows["density"][i].float()
        streaks = np.zeros((H, W), dtype=bool)
        for y, x in ends.nonzero().tolist():
            for row in range(y, y - pixels, -1):
                column = x - right + round(rows["slant"][i].item() * row)
                if 0 <= row < H and 0 <= column < W:
                    streaks[row, column] = True
        expected = np.round(streaks * 200 * np.float32(rows["opacity"][i]))
        assert all(np.array_equal(channel.numpy(), expected) for channel in result[i])
        assert streaks.any() or H == 8


def test_streaks_lean_as_the_slant_says():
    """The correlation of a row with the one 10 below is highest at 10 x slant."""
    result, _ = apply(Rain(density=(0.01, 0.01), length=0.5, slant=(0.7, 0.7)), torch.zeros(100, 1, 40, 60))
    lit = result[:, 0] > 0
    meets = [int((lit[:, :30, 20:40] & lit[:, 10:, 20 + shift : 40 + shift]).sum()) for shift in range(-20, 21)]
    assert meets.index(max(meets)) - 20 == 7


def test_as_much_rain_as_the_density_says():
    result, _ = apply(Rain(density=(0.01, 0.01), length=0.0), torch.zeros(100, 1, 40, 40))
    assert binomtest(int((result > 0).sum()), result.numel(), 0.01).pvalue > 1e-3
