"""Noise, blur, salt, relief and superpixels against torchvision, scipy and scikit-learn on single images."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from scipy import ndimage
from scipy.stats import binomtest, chisquare, ks_2samp, kstest
from sklearn.cluster import KMeans

from trainer.augmentation import Emboss, GaussianBlur, GaussianNoise, Salt, Superpixels, counted

SHAPES = [(1, 8, 8), (3, 32, 32), (3, 9, 14)]


def images(num: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, *shape), generator=generator).float()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_rounded(result: torch.Tensor, exact: np.ndarray) -> None:
    """`result` is `exact` rounded; within 0.001 of a half, in either direction."""
    exact = np.clip(exact, 0, 255)
    far_from_a_half = np.abs(np.abs(exact - np.floor(exact)) - 0.5) > 1e-3
    assert far_from_a_half.mean() > 0.9
    assert np.abs(result.double().numpy() - exact).max() < 0.501
    assert np.array_equal(result.double().numpy()[far_from_a_half], np.round(exact)[far_from_a_half])


# --- gaussian noise ---------------------------------------------------------------------------------------


@pytest.mark.proves(
    "GaussianNoise", reference="torchvision v2's gaussian_noise with the same noise", tolerance="bitwise"
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("std", [5.1, 51.0])
def test_the_same_noise_added_by_torchvision(shape, std, monkeypatch):
    operation = GaussianNoise(std=(std, std))
    rows = operation.draw(20, shape, generator())
    result = operation(images(20, shape), rows)
    for i in range(20):
        noise = counted.normal(rows["seed"][i : i + 1], shape, torch.device("cpu"))[0]
        monkeypatch.setattr(torch, "randn_like", lambda image, dtype=None, noise=noise: noise)
        expected = reference.gaussian_noise(images(20, shape)[i].to(torch.uint8), sigma=std / 255)
        assert torch.equal(result[i], expected.float())


@pytest.mark.proves(
    "GaussianNoise",
    reference="the distribution of torchvision v2's gaussian_noise",
    tolerance="p > 0.001; standard deviation 1 %",
)
def test_noise_is_distributed_as_torchvisions():
    grey = torch.full((50, 3, 32, 32), 128.0)
    operation = GaussianNoise(std=(20.0, 20.0))
    ours = operation(grey.clone(), operation.draw(50, (3, 32, 32), generator())) - 128
    torch.manual_seed(0)
    theirs = reference.gaussian_noise(grey.to(torch.uint8), sigma=20 / 255).float() - 128
    blur = torch.rand(2, 5000, generator=generator())  # integers made continuous
    assert ks_2samp(ours.flatten()[:5000] + blur[0], theirs.flatten()[:5000] + blur[1]).pvalue > 1e-3
    assert abs(ours.mean()) < 0.3
    assert ours.std() == pytest.approx(float(theirs.std()), rel=0.01)
    assert not torch.equal(ours[:, 0], ours[:, 1])


def test_std_is_in_levels_and_a_samples_own():
    operation = GaussianNoise(std=(2.0, 40.0))
    rows = operation.draw(200, (3, 32, 32), generator())
    spread = operation(torch.full((200, 3, 32, 32), 128.0), rows).flatten(1).std(1)
    assert torch.allclose(spread, rows["std"].float(), rtol=0.06, atol=0.6)  # clamping to 0..255 reduces the deviation


# --- gaussian blur ----------------------------------------------------------------------------------------


@pytest.mark.proves(
    "GaussianBlur",
    reference="torchvision v2's gaussian_blur",
    tolerance="1 of 255 levels, at fewer than 1 pixel in 1000",
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, 7, 15])
@pytest.mark.parametrize("sigma", [0.25, 1.0, 3.0])
def test_blur_is_torchvisions(shape, kernel_size, sigma):
    """Equal except if the exact value is a half: at most one pixel in a thousand differs, by one level."""
    operation = GaussianBlur(sigma=(sigma, sigma), kernel_size=kernel_size)
    result = operation(images(30, shape), operation.draw(30, shape, generator()))
    expected = torch.stack(
        [reference.gaussian_blur(image.to(torch.uint8), [kernel_size] * 2, [sigma]) for image in images(30, shape)]
    ).float()
    assert (result - expected).abs().max() <= 1
    assert (result != expected).float().mean() < 1e-3


@pytest.mark.proves("GaussianBlur", reference="scipy's correlate1d in float64", tolerance="rounding")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_sample_is_blurred_with_its_own_sigma(shape):
    operation = GaussianBlur(sigma=(0.2, 2.0), kernel_size=7)
    rows = operation.draw(30, shape, generator())
    result = operation(images(30, shape), rows)
    for i in range(30):
        kernel = np.exp(-0.5 * (np.arange(-3, 4) / rows["sigma"][i].item()) ** 2)
        exact = images(30, shape)[i].double().numpy()
        for axis in (1, 2):
            exact = ndimage.correlate1d(exact, kernel / kernel.sum(), axis, mode="mirror")
        assert_rounded(result[i], exact)


# --- salt -------------------------------------------------------------------------------------------------


@pytest.mark.proves(
    "Salt", reference="shares of black and white cells, by binomial and chi-square tests", tolerance="p > 0.001"
)
@pytest.mark.parametrize(("cell", "pepper"), [(1, 0.5), (1, 0.0), (3, 0.2), (4, 1.0)])
def test_spots_are_cells_in_their_share(cell, pepper):
    operation = Salt(amount=(0.3, 0.3), pepper=pepper, cell=cell)
    grey = torch.full((200, 3, 26, 32), 100.0)
    result = operation(grey, operation.draw(200, (3, 26, 32), generator()))
    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 0], result[:, 2])
    corners = result[:, 0, ::cell, ::cell]
    assert torch.equal(corners.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :26, :32], result[:, 0])
    black, white = (int((corners == level).sum()) for level in (0, 255))
    assert black + white + int((corners == 100).sum()) == corners.numel()
    assert binomtest(black + white, corners.numel(), 0.3).pvalue > 1e-3
    assert binomtest(black, black + white, pepper).pvalue > 1e-3
    per_cell = (corners != 100).sum(0).flatten()  # equally often everywhere
    assert chisquare(per_cell.numpy()).pvalue > 1e-3


def test_the_amount_is_a_samples_own():
    operation = Salt(amount=(0.0, 0.9))
    rows = operation.draw(200, (1, 60, 60), generator())
    result = operation(torch.full((200, 1, 60, 60), 100.0), rows)
    share = (result != 100).double().mean((1, 2, 3))
    assert (share - rows["amount"]).abs().max() < 5 * 0.5 / 60


# --- emboss -----------------------------------------------------------------------------------------------


@pytest.mark.proves("Emboss", reference="scipy's correlate in float64", tolerance="rounding")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_relief_is_the_correlation_with_the_kernel(shape):
    operation = Emboss(strength=(0.0, 2.0))
    rows = operation.draw(30, shape, generator())
    result = operation(images(30, shape), rows)
    for i in range(30):
        s, alpha = rows["strength"][i].item(), rows["alpha"][i].item()
        effect = np.array([[-1 - s, 0 - s, 0], [0 - s, 1, 0 + s], [0, 0 + s, 1 + s]])
        kernel = (1 - alpha) * np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]) + alpha * effect
        pixels = images(30, shape)[i].double().numpy()
        assert_rounded(result[i], np.stack([ndimage.correlate(c, kernel, mode="mirror") for c in pixels]))


# --- superpixels ------------------------------------------------------------------------------------------


def smooth(num: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Smooth images, so that segments follow structure."""
    coarse = torch.rand(num, shape[0], 4, 4, generator=generator(3)) * 255
    fine = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    return (fine + 8 * torch.randn(num, *shape, generator=generator(4))).round().clamp(0, 255)


@pytest.mark.proves("Superpixels", reference="sklearn.cluster.KMeans from the same centres", tolerance="exact")
@pytest.mark.parametrize(
    ("shape", "cell"), [((3, 32, 32), 4), ((1, 28, 28), 4), ((3, 15, 20), 5), ((3, 13, 22), 4)], ids=str
)
@pytest.mark.parametrize("iterations", [2, 3, 6])
def test_segments_are_those_of_k_means_from_the_same_centres(shape, cell, iterations):
    """With a compactness so high that no pixel prefers a centre outside the neighbouring cells."""
    C, H, W = shape
    compactness = 65.0
    operation = Superpixels(replaced=(1.0, 1.0), cell=cell, compactness=compactness, iterations=iterations)
    given = smooth(6, shape)
    result = operation(given.clone(), operation.draw(6, shape, generator()))
    row, column = np.mgrid[:H, :W]
    own = ((row // cell) * -(-W // cell) + column // cell).ravel()
    scale = compactness / cell
    moved = 0
    for i in range(6):
        colours = given[i].double().numpy().reshape(C, -1).T
        features = np.column_stack([colours, scale * row.ravel(), scale * column.ravel()])
        start = np.stack([features[own == k].mean(0) for k in range(own.max() + 1)])
        # its first iteration is the mean of the cells; a last assignment follows after max_iter iterations
        k_means = KMeans(len(start), init=start, n_init=1, max_iter=iterations - 1, tol=0).fit(features)
        moved += int((k_means.labels_ != own).sum())
        expected = np.stack([colours[k_means.labels_ == k].mean(0) for k in k_means.labels_]).round()
        assert np.array_equal(result[i].numpy().reshape(C, -1).T, expected)
    assert moved > 0.02 * 6 * H * W


def segments_pixel_by_pixel(pixels: np.ndarray, cell: int, compactness: float, iterations: int) -> np.ndarray:
    """SLIC of one image (C, H, W) in plain loops; returns the image with segments replaced by their means."""
    _, H, W = pixels.shape
    coordinates = [(y, x) for y in range(H) for x in range(W)]
    segment = {(y, x): (y // cell, x // cell) for y, x in coordinates}
    for _ in range(iterations):
        centres = {}
        for key in set(segment.values()):
            members = np.array([point for point in coordinates if segment[point] == key])
            centres[key] = np.concatenate([pixels[:, members[:, 0], members[:, 1]].mean(1), members.mean(0)])
        for y, x in coordinates:
            values = np.concatenate([pixels[:, y, x], [y, x]])
            weights = np.array([1.0] * len(pixels) + [(compactness / cell) ** 2] * 2)
            near = [k for k in centres if max(abs(k[0] - y // cell), abs(k[1] - x // cell)) <= 1]
            segment[y, x] = min(near, key=lambda k: float((weights * (values - centres[k]) ** 2).sum()))
    painted = np.empty_like(pixels)
    for key in set(segment.values()):
        members = np.array([point for point in coordinates if segment[point] == key])
        painted[:, members[:, 0], members[:, 1]] = (
            pixels[:, members[:, 0], members[:, 1]].mean(1, keepdims=True).round()
        )
    return painted


@pytest.mark.proves("Superpixels", reference="SLIC in plain loops over pixels", tolerance="exact")
@pytest.mark.parametrize("compactness", [0.0, 5.0, 40.0])
def test_segments_pixel_by_pixel(compactness):
    """Including images in which distant centres would be nearer and segments become empty."""
    operation = Superpixels(replaced=(1.0, 1.0), cell=3, compactness=compactness, iterations=5)
    given = images(8, (3, 10, 13), seed=5)
    given[:4, :, :, 4:] = (given[:4, :, :, 4:] / 128).floor() * 100 + 20  # few colours, for empty segments
    given += images(8, (3, 10, 13), seed=6) % 7
    given.clamp_(max=255)
    result = operation(given.clone(), operation.draw(8, (3, 10, 13), generator()))
    for i in range(8):
        expected = segments_pixel_by_pixel(given[i].double().numpy(), 3, compactness, 5)
        assert np.array_equal(result[i].numpy(), expected)


def test_a_segment_that_lost_its_pixels_takes_none():
    """The pixels of the middle segment move to its neighbours; an empty segment must not act as a black one."""
    given = torch.tensor([140.0, 140, 140, 60, 140, 140, 60, 60, 20]).expand(1, 1, 3, 9).contiguous()
    operation = Superpixels(replaced=(1.0, 1.0), cell=3, compactness=0.0, iterations=3)
    result = operation(given.clone(), operation.draw(1, (1, 3, 9), generator()))
    assert result[0, 0, 0].tolist() == [140, 140, 140, 50, 140, 140, 50, 50, 50]


def test_a_picture_of_even_patches_stays_as_it_is():
    """With low compactness, segments follow edges that are not on the grid."""
    patches = torch.zeros(4, 3, 32, 32)
    patches[:, :, :, 14:] = 200
    patches[:, 0, 18:, :] += 55
    operation = Superpixels(replaced=(1.0, 1.0), cell=4, compactness=1.0)
    assert torch.equal(operation(patches.clone(), operation.draw(4, (3, 32, 32), generator())), patches)
    square = Superpixels(replaced=(1.0, 1.0), cell=4, compactness=1e6)
    result = square(patches.clone(), square.draw(4, (3, 32, 32), generator()))
    assert set(result[0, 2, 0].tolist()) == {0.0, 100.0, 200.0}  # squares of 4 pixels, one of which has both halves


def test_no_compactness_at_all_and_segments_that_lose_every_pixel():
    flat = torch.full((4, 3, 20, 20), 77.0)
    flat[:, :, 10:, 3:] = 0
    operation = Superpixels(replaced=(1.0, 1.0), cell=4, compactness=0.0, iterations=6)
    assert torch.equal(operation(flat.clone(), operation.draw(4, (3, 20, 20), generator())), flat)


def test_the_share_of_painted_segments():
    operation = Superpixels(replaced=(0.0, 1.0), cell=4, compactness=1e6)
    given = images(300, (3, 32, 32))
    rows = operation.draw(300, (3, 32, 32), generator())
    result = operation(given.clone(), rows)
    by_cell = (result == given).view(300, 3, 8, 4, 8, 4).all(1).all(2).all(3)  # 64 squares
    untouched = by_cell.double().mean((1, 2))
    assert (1 - untouched - rows["replaced"]).abs().max() < 5 * 0.5 / 8
    noise = (1 - untouched - rows["replaced"]) / (rows["replaced"] * (1 - rows["replaced"]) / 64).sqrt()
    assert kstest(noise[rows["replaced"].sub(0.5).abs() < 0.4].numpy(), "norm").pvalue > 1e-4
