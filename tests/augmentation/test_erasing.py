"""Random erasing against torchvision: the pixels of a given box, and the distribution of boxes."""

import pytest
import torch
import torchvision.transforms.v2 as v2
from scipy.stats import binomtest, chisquare, ks_2samp

from trainer.augmentation import Erasing

SHAPES = [(1, 8, 8), (3, 32, 32), (3, 20, 9)]


def images(num: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    # no zeros, to tell erased pixels from the image
    return torch.randint(1, 256, (num, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(ours: torch.Tensor, theirs: torch.Tensor):
    return ks_2samp(ours, theirs, method="asymp")


def box(rows, i: int) -> list[int]:
    return [int(rows[name][i]) for name in ("top", "left", "height", "width")]


@pytest.mark.proves("Erasing", reference="torchvision v2's erase", tolerance="bitwise")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_black_is_torchvisions_erase(shape, dtype):
    operation = Erasing(probability=0.7)
    assert operation.keeps_values
    rows = operation.draw(200, shape, generator())
    given = images(200, shape).to(dtype)
    result = operation(given.clone(), rows)
    assert result.dtype == dtype
    erased = 0
    for i in range(200):
        expected = v2.functional.erase(given[i], *box(rows, i), torch.zeros(1, 1, 1, dtype=dtype))
        assert torch.equal(result[i], expected)
        erased += box(rows, i)[2] > 0
    assert 100 < erased < 180


def test_a_sets_own_images_stay_as_they_are():
    given = images(50, (3, 32, 32))
    operation = Erasing(probability=1.0)
    assert not torch.equal(operation(given, operation.draw(50, (3, 32, 32), generator())), given)
    assert torch.equal(given, images(50, (3, 32, 32)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_mean_is_of_the_image_and_channel(shape):
    operation = Erasing(fill="mean", probability=0.7)
    assert not operation.keeps_values
    rows = operation.draw(50, shape, generator())
    given = images(50, shape).float()
    result = operation(given.clone(), rows)
    for i in range(50):
        mean = torch.tensor([[[round(channel.double().mean().item())]] for channel in given[i]]).float()
        assert torch.equal(result[i], v2.functional.erase(given[i], *box(rows, i), mean))


def test_noise_is_uniform_over_all_levels_and_only_in_the_box():
    operation = Erasing(fill="noise", probability=1.0, scale=(0.2, 0.5))
    assert not operation.keeps_values
    rows = operation.draw(200, (3, 32, 32), generator())
    given = images(200, (3, 32, 32)).float()
    result = operation(given.clone(), rows)
    inside = []
    for i in range(200):
        top, left, height, width = box(rows, i)
        noise = result[i, :, top : top + height, left : left + width]
        assert torch.equal(result[i], v2.functional.erase(given[i], top, left, height, width, noise))
        inside.append(noise.flatten())
    counts = torch.bincount(torch.cat(inside).long(), minlength=256)
    assert len(counts) == 256
    assert chisquare(counts.numpy()).pvalue > 1e-3
    assert not torch.equal(inside[0][:50], inside[1][:50])


DISTRIBUTIONS = [
    pytest.param((3, 32, 32), (0.02, 0.33), (0.3, 3.3), id="defaults"),
    pytest.param((1, 8, 8), (0.05, 0.1), (0.3, 3.3), id="small"),
    pytest.param((3, 20, 9), (0.3, 0.9), (0.2, 5.0), id="often too large"),
    pytest.param((3, 16, 16), (0.85, 1.0), (0.8, 1.25), id="nearly always too large"),
]


@pytest.mark.proves(
    "Erasing",
    reference="the boxes of torchvision v2's RandomErasing, by Kolmogorov-Smirnov tests",
    tolerance="p > 0.001",
)
@pytest.mark.parametrize(("shape", "scale", "ratio"), DISTRIBUTIONS)
def test_boxes_are_distributed_as_torchvisions(shape, scale, ratio):
    num = 3000
    rows = Erasing(scale=scale, ratio=ratio, probability=1.0).draw(num, shape, generator())
    theirs = v2.RandomErasing(1.0, scale, ratio)
    torch.manual_seed(0)
    found = [theirs.make_params([torch.zeros(shape)]) for _ in range(num)]
    expected = torch.tensor([[p["i"], p["j"], p["h"], p["w"]] for p in found if p["v"] is not None])
    erased = rows["height"] > 0
    ours = torch.stack([rows[name][erased] for name in ("top", "left", "height", "width")], 1)
    # the same number failed in all ten attempts
    assert same(erased.float(), torch.tensor([p["v"] is not None for p in found]).float()).pvalue > 1e-3
    for k, name in enumerate(("top", "left", "height", "width")):
        assert same(ours[:, k], expected[:, k]).pvalue > 1e-3, name
    assert same(ours[:, 2] * ours[:, 3], expected[:, 2] * expected[:, 3]).pvalue > 1e-3
    for k, (side, size) in enumerate(zip(ours[:, 2:].T, shape[1:], strict=True)):
        last = ours[:, k] == size - side  # the last position is as likely as any other
        wanted = (1 / (size - side + 1).double()).sum()
        assert abs(last.sum() - wanted) < 4 * wanted.sqrt() + 1


def test_ten_tries():
    """A box of 90 % of a side fits only if it is nearly square, in about one attempt in a hundred."""
    rows = Erasing(scale=(0.75, 0.75), ratio=(1e-3, 1e3), probability=1.0).draw(20_000, (1, 64, 64), generator())
    # log ratio is uniform over +-6.91; both sides are below 63.5 when |log ratio| < 2 log(63.5/64/sqrt(0.75))
    once = 2 * torch.tensor(63.5 / 64 / 0.75**0.5).log().item() / torch.tensor(1e3).log().item()
    assert binomtest(int((rows["height"] > 0).sum()), 20_000, 1 - (1 - once) ** 10).pvalue > 1e-3


def test_the_probability_does_not_change_what_is_drawn():
    always = Erasing(probability=1.0).draw(1000, (3, 32, 32), generator())
    often = Erasing(probability=0.5).draw(1000, (3, 32, 32), generator())
    erased = often["height"] > 0
    assert binomtest(int(erased.sum()), 1000, 0.5).pvalue > 1e-3
    for name in always:
        assert torch.equal(always[name][erased], often[name][erased])
