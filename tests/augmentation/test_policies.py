"""TrivialAugment and RandAugment against torchvision v2 on single images; distributions of their draws.

Largest difference from torchvision's uint8 images: 1 level after one operation and 2 after two if one of them blends
two images (the compiler chooses whether a x + b y is rounded once or twice; here all are equal), otherwise 0.
"""

from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from scipy.stats import binomtest, chisquare
from torchvision.transforms import v2

from trainer import augmentation
from trainer.augmentation import RandAugment, TrivialAugment
from trainer.augmentation.policies import OPERATIONS

CONFIGS = Path(__file__).parents[2] / "configs" / "augmentation"
SIGNED = OPERATIONS[1:10]
BLENDS = {"Color", "Contrast", "Sharpness"}
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 21, 37), (1, 24, 17)]
BOTH = [TrivialAugment(probability=0.9), RandAugment(probability=0.9)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(num: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """uint8, noise and smooth ones in turn; above 0, to tell black fill from the image."""
    noise = torch.randint(1, 256, (num, *shape), dtype=torch.uint8, generator=generator(1))
    coarse = torch.rand(num, shape[0], 4, 4, generator=generator(2)) * 280
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear").clamp(1, 255).to(torch.uint8)
    return torch.where(torch.arange(num).view(-1, 1, 1, 1) % 2 == 0, noise, smooth)


def reference(kind: type, name: str, bin_: int, negative: bool) -> object:
    """torchvision's policy with a fixed operation, strength and sign."""
    magnitudes, signed = kind._AUGMENTATION_SPACE[name]

    def only(num_bins: int, height: int, width: int) -> torch.Tensor | None:
        values = magnitudes(31, height, width)
        return None if values is None else values[bin_ : bin_ + 1] * (-1 if signed and negative else 1)

    fixed = type(kind.__name__, (kind,), {"_AUGMENTATION_SPACE": {name: (only, False)}})
    arguments = {"num_ops": 1, "magnitude": 0} if kind is v2.RandAugment else {}
    return fixed(num_magnitude_bins=1, **arguments)


def numbers(values: list) -> torch.Tensor:
    return torch.tensor(values).view(len(values), -1)


def parts(rows: dict[str, torch.Tensor], indices: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: column[indices] for name, column in rows.items()}


@pytest.mark.proves(
    "TrivialAugment",
    reference="torchvision v2's TrivialAugmentWide, every operation and strength",
    tolerance="1 of 255 levels where two images are blended, else bitwise",
)
@pytest.mark.parametrize("shape", SHAPES)
def test_trivial_augment_is_torchvisions_in_every_case(shape):
    cases = list(product(range(14), range(31), (False, True)))
    operation, strength, negative = zip(*cases, strict=True)
    pixels = images(len(cases), shape)
    rows = {"operation": numbers(operation), "strength": numbers(strength), "negative": numbers(negative)}
    result = TrivialAugment()(pixels.float(), rows)
    for i, (number, bin_, sign) in enumerate(cases):
        expected = reference(v2.TrivialAugmentWide, OPERATIONS[number], bin_, sign)(pixels[i])
        difference = (result[i] - expected).abs().max()
        assert difference <= (OPERATIONS[number] in BLENDS), (OPERATIONS[number], bin_, sign)


@pytest.mark.proves(
    "RandAugment",
    reference="torchvision v2's RandAugment, every operation and strength",
    tolerance="1 of 255 levels where two images are blended, else bitwise",
)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_operation_of_rand_augment_is_torchvisions_in_every_case(shape):
    cases = list(product(range(14), (False, True)))
    operation, negative = zip(*cases, strict=True)
    pixels = images(len(cases), shape)
    rows = {"operation": numbers(operation), "strength": numbers([0] * 28), "negative": numbers(negative)}
    for magnitude in range(31):
        result = RandAugment(num_ops=1, magnitude=magnitude)(pixels.float(), rows)
        for i, (number, sign) in enumerate(cases):
            expected = reference(v2.RandAugment, OPERATIONS[number], magnitude, sign)(pixels[i])
            difference = (result[i] - expected).abs().max()
            assert difference <= (OPERATIONS[number] in BLENDS), (OPERATIONS[number], magnitude, sign)


@pytest.mark.proves(
    "RandAugment",
    reference="torchvision v2's RandAugment, every pair of operations",
    tolerance="2 of 255 levels; fewer than 1 pixel in 100 above after operations that amplify",
)
@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("magnitude", [9, 24])
def test_two_operations_of_rand_augment_are_torchvisions_for_every_pair(shape, magnitude):
    cases = list(product(range(14), range(14), (False, True), (False, True)))
    pixels = images(len(cases), shape)
    rows = {
        "operation": numbers([case[:2] for case in cases]),
        "strength": numbers([[0, 0]] * len(cases)),
        "negative": numbers([case[2:] for case in cases]),
    }
    result = RandAugment(num_ops=2, magnitude=magnitude)(pixels.float(), rows)
    one = {
        (number, sign): reference(v2.RandAugment, OPERATIONS[number], magnitude, sign)
        for number, sign in product(range(14), (False, True))
    }
    for i, (first, second, *signs) in enumerate(cases):
        expected = one[second, signs[1]](one[first, signs[0]](pixels[i]))
        names = OPERATIONS[first], OPERATIONS[second]
        difference = (result[i] - expected).abs()
        if not BLENDS & set(names):
            assert difference.max() == 0, names
        elif names[1] not in ("AutoContrast", "Equalize", "Posterize", "Solarize"):
            assert difference.max() <= 2, names
        else:  # these amplify the difference of neighbouring levels; few pixels are at such an edge
            assert (difference > 2).float().mean() < 1e-2, names


@pytest.mark.parametrize("policy", BOTH)
def test_an_image_does_not_depend_on_the_batch_it_is_in(policy):
    for shape in SHAPES:
        pixels = images(64, shape).float()
        table = policy.draw(64, shape, generator())
        whole = policy(pixels.clone(), table)
        order = torch.randperm(64, generator=generator())
        for indices in (*order.split(27), *torch.arange(64).split(1), torch.tensor([5, 5])):
            assert torch.equal(policy(pixels[indices], parts(table, indices)), whole[indices])


def test_image_sizes_may_change_from_batch_to_batch():
    policy = TrivialAugment()
    for shape in (*SHAPES[:2], *SHAPES[:2]):
        pixels = images(40, shape).float()
        rows = policy.draw(40, shape, generator())
        alone = TrivialAugment()(pixels.clone(), rows)
        assert torch.equal(policy(pixels.clone(), rows), alone)


def test_large_images_do_without_kept_grids(monkeypatch):
    pixels, policy = images(40, (3, 32, 32)).float(), TrivialAugment()
    rows = policy.draw(40, (3, 32, 32), generator())
    expected = policy(pixels.clone(), rows)
    monkeypatch.setattr("trainer.augmentation.policies._MAX_GRID_BYTES", 1000)
    again = TrivialAugment()
    assert torch.equal(again(pixels.clone(), rows), expected)
    assert not again._grids_of


@pytest.mark.parametrize("kind", [TrivialAugment, RandAugment])
def test_identity_and_probability_zero_change_no_bit(kind):
    pixels = images(32, (3, 32, 32)).float()
    for policy in (kind(pool=["Identity"]), kind(probability=0.0)):
        assert torch.equal(policy(pixels.clone(), policy.draw(32, (3, 32, 32), generator())), pixels)


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n not in ("AutoContrast", "Equalize")])
def test_no_strength_changes_no_bit(name):
    pixels = images(32, (3, 32, 32)).clamp(max=254).float()  # solarize begins at 255
    policy = RandAugment(magnitude=0, pool=[name])
    assert torch.equal(policy(pixels.clone(), policy.draw(32, (3, 32, 32), generator())), pixels)


@pytest.mark.parametrize("policy", BOTH)
def test_images_in_another_memory_layout(policy):
    pixels = images(64, (3, 21, 37)).float()
    rows = policy.draw(64, (3, 21, 37), generator())
    strided = pixels.clone(memory_format=torch.channels_last)
    assert torch.equal(policy(strided, rows), policy(pixels.clone(), rows))


@pytest.mark.parametrize("policy", BOTH)
def test_an_empty_batch_stays_empty(policy):
    assert policy(torch.zeros(0, 3, 8, 8), policy.draw(0, (3, 8, 8), generator())).shape == (0, 3, 8, 8)


def test_trivial_augment_draws_uniformly():
    rows = TrivialAugment().draw(20000, (3, 32, 32), generator())
    assert {column.shape for column in rows.values()} == {(20000, 1)}
    operation, strength, negative = (rows[name].flatten() for name in ("operation", "strength", "negative"))
    cells = torch.bincount((operation * 31 + strength) * 2 + negative, minlength=14 * 31 * 2)
    assert len(cells) == 14 * 31 * 2
    assert chisquare(cells.numpy()).pvalue > 1e-3


def test_rand_augment_draws_its_operations_independently():
    rows = RandAugment(num_ops=2).draw(20000, (3, 32, 32), generator())
    assert {column.shape for column in rows.values()} == {(20000, 2)}
    first, second = (2 * rows["operation"] + rows["negative"]).T
    cells = torch.bincount(first * 28 + second, minlength=28 * 28)
    assert len(cells) == 28 * 28
    assert chisquare(cells.numpy()).pvalue > 1e-3
    assert not rows["strength"].any()


@pytest.mark.parametrize("kind", [TrivialAugment, RandAugment])
def test_probability(kind):
    pool = [name for name in OPERATIONS if name != "Identity"]
    always = kind(pool=pool).draw(5000, (3, 8, 8), generator())
    often = kind(pool=pool, probability=0.7).draw(5000, (3, 8, 8), generator())
    applied = often["operation"].any(1)
    assert binomtest(int(applied.sum()), 5000, 0.7).pvalue > 1e-3
    assert always["operation"].all()
    for name in always:
        assert torch.equal(often[name][applied], always[name][applied])


@pytest.mark.parametrize("kind", [TrivialAugment, RandAugment])
def test_a_pool_is_what_is_drawn_from(kind):
    rows = kind(pool=["Rotate", "Equalize", "Equalize"]).draw(5000, (3, 8, 8), generator())
    counts = torch.bincount(rows["operation"].flatten(), minlength=14)
    assert counts.nonzero().flatten().tolist() == [OPERATIONS.index("Rotate"), OPERATIONS.index("Equalize")]
    assert binomtest(int(counts[OPERATIONS.index("Rotate")]), int(counts.sum()), 1 / 3).pvalue > 1e-3


def test_the_operations_are_torchvisions():
    assert (
        list(OPERATIONS) == list(v2.TrivialAugmentWide._AUGMENTATION_SPACE) == list(v2.RandAugment._AUGMENTATION_SPACE)
    )
    assert tuple(n for n, (_, signed) in v2.RandAugment._AUGMENTATION_SPACE.items() if signed) == SIGNED


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: TrivialAugment(pool=["Rotate", "rotate"]),
            r"pool=\['Rotate', 'rotate'\]: must name one or more of Id",
        ),
        (lambda: RandAugment(pool=[]), r"pool=\[\]: must name one or more of"),
        (lambda: TrivialAugment(num_magnitude_bins=1), "num_magnitude_bins=1: must be from 2 to 1000"),
        (lambda: TrivialAugment(num_magnitude_bins=10**9), "num_magnitude_bins=1000000000: must be from 2 to 1000"),
        (lambda: RandAugment(num_magnitude_bins=1001), "num_magnitude_bins=1001: must be from 2 to 1000"),
        (lambda: RandAugment(num_ops=0), "num_ops=0: must be from 1 to 100"),
        (lambda: RandAugment(num_ops=10**6), "num_ops=1000000: must be from 1 to 100"),
        (lambda: RandAugment(magnitude=31), "magnitude=31: must be from 0 to num_magnitude_bins - 1"),
        (lambda: RandAugment(magnitude=-1), "magnitude=-1: must be from 0 to num_magnitude_bins - 1"),
        (lambda: TrivialAugment(probability=-0.1), "probability=-0.1: must be between 0 and 1"),
        (lambda: RandAugment(probability=2), "probability=2: must be between 0 and 1"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


@pytest.mark.parametrize("option", ["trivial", "randaugment"])
def test_the_options_say_what_the_classes_default_to(option):
    node = yaml.safe_load((CONFIGS / f"{option}.yaml").read_text())
    assert list(node) == ["_target_", "flip", "crop", option]
    for operation in (node["flip"], node["crop"], node[option]):
        target = getattr(augmentation, operation.pop("_target_").removeprefix("trainer.augmentation."))
        assert vars(target(**operation)) == vars(target())
