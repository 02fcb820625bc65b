"""Properties of every operation of noise, erasing and weather."""

from pathlib import Path

import pytest
import torch
import yaml
from scipy.stats import binomtest, kstest

from trainer import augmentation
from trainer.augmentation import (
    Clouds,
    Emboss,
    Erasing,
    Fog,
    GaussianBlur,
    GaussianNoise,
    Rain,
    Salt,
    Snowflakes,
    SnowyLandscape,
    Superpixels,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "augmentation"
SHAPES = [(1, 8, 8), (3, 9, 13), (1, 28, 28), (3, 32, 32)]
CLASSES = [
    Clouds, Emboss, Erasing, Fog, GaussianBlur, GaussianNoise, Rain, Salt, Snowflakes, SnowyLandscape, Superpixels,
]  # fmt: skip
VARIANTS = [
    *(pytest.param(kind, {}, id=kind.__name__) for kind in CLASSES),
    pytest.param(Erasing, {"fill": "mean"}, id="Erasing mean"),
    pytest.param(Erasing, {"fill": "noise"}, id="Erasing noise"),
    pytest.param(GaussianBlur, {"kernel_size": 1}, id="GaussianBlur 1"),
    pytest.param(Rain, {"slant": (0.5, 1.5), "length": 0.0}, id="Rain slanted"),
    pytest.param(Salt, {"cell": 3, "amount": (0.1, 0.4)}, id="Salt coarse"),
    pytest.param(Snowflakes, {"size": 1}, id="Snowflakes 1"),
    pytest.param(Superpixels, {"cell": 3, "compactness": 0.0}, id="Superpixels by colour"),
]
IDENTITIES = [
    pytest.param(Clouds(opacity=(0.0, 0.0)), id="clouds that are transparent"),
    pytest.param(Clouds(coverage=(0.0, 0.0)), id="no clouds"),
    pytest.param(Emboss(alpha=(0.0, 0.0)), id="no relief"),
    pytest.param(Erasing(scale=(0.0, 0.0), probability=1.0), id="nothing erased"),
    pytest.param(Fog(density=(0.0, 0.0)), id="no fog"),
    pytest.param(GaussianBlur(sigma=(0.0, 0.0)), id="sigma 0"),
    pytest.param(GaussianBlur(kernel_size=1), id="kernel of one pixel"),
    pytest.param(GaussianNoise(std=(0.0, 0.0)), id="std 0"),
    pytest.param(Rain(density=(0.0, 0.0)), id="no streak"),
    pytest.param(Rain(opacity=(0.0, 0.0)), id="streaks that are transparent"),
    pytest.param(Salt(amount=(0.0, 0.0)), id="no salt"),
    pytest.param(Snowflakes(density=(0.0, 0.0)), id="no flake"),
    pytest.param(SnowyLandscape(factor=(1.0, 1.0)), id="factor 1"),
    pytest.param(SnowyLandscape(threshold=(0.0, 0.0)), id="nothing is dark enough"),
    pytest.param(Superpixels(replaced=(0.0, 0.0)), id="no segment painted"),
]


def images(num: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, *shape), generator=generator).float()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_of(rows, indices):
    return {name: column[indices] for name, column in rows.items()}


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_image_does_not_depend_on_the_batch_it_is_in(kind, arguments, shape):
    operation = kind(probability=0.8, **arguments)
    rows = operation.draw(64, shape, generator())
    whole = operation(images(64, shape), rows)
    assert whole.shape == (64, *shape)
    assert torch.equal(whole, whole.round().clamp(0, 255))
    for i in range(64):
        assert torch.equal(operation(images(64, shape)[i : i + 1], some_of(rows, [i])), whole[i : i + 1])
    mixed = torch.randperm(64, generator=generator(1))
    for indices in (mixed[:37], mixed[37:], torch.tensor([5, 5, 9])):
        assert torch.equal(operation(images(64, shape)[indices], some_of(rows, indices)), whole[indices])


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
def test_another_memory_layout_gives_the_same_image(kind, arguments):
    operation, shape = kind(**arguments), (3, 12, 20)
    rows = operation.draw(16, shape, generator())
    expected = operation(images(16, shape), rows)
    strided = images(16, shape).to(memory_format=torch.channels_last)
    assert torch.equal(operation(strided, rows), expected)


@pytest.mark.parametrize("operation", IDENTITIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_identity_parameters_give_the_identical_image(operation, shape):
    rows = operation.draw(32, shape, generator())
    assert torch.equal(operation(images(32, shape), rows), images(32, shape))


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
def test_probability(kind, arguments):
    """Images that are not selected are unchanged; the others are as if all were selected."""
    shape = (3, 16, 16)
    always, often, never = (kind(probability=p, **arguments) for p in (1.0, 0.6, 0.0))
    results = []
    for operation in (always, often, never):
        rows = operation.draw(500, shape, generator())
        if operation is not often and kind is not Erasing:
            assert (rows["applied"] == (operation is always)).all()
        results.append(operation(images(500, shape), rows))
    assert torch.equal(results[2], images(500, shape))
    like_always = (results[1] == results[0]).flatten(1).all(1)
    as_given = (results[1] == images(500, shape)).flatten(1).all(1)
    assert (like_always | as_given).all()
    if arguments != {"kernel_size": 1}:
        changed_always = (results[0] != images(500, shape)).flatten(1).any(1)
        assert changed_always.float().mean() > 0.7
        changed = int((~as_given & changed_always).sum())
        assert binomtest(changed, int(changed_always.sum()), 0.6).pvalue > 1e-3


RANGES = [
    (GaussianNoise, "std", (3.0, 11.0)), (GaussianBlur, "sigma", (0.5, 2.5)), (Salt, "amount", (0.1, 0.2)),
    (Emboss, "alpha", (0.2, 0.9)), (Emboss, "strength", (0.5, 3.0)), (Superpixels, "replaced", (0.4, 0.6)),
    (Clouds, "opacity", (0.2, 0.4)), (Clouds, "coverage", (0.2, 0.4)), (Fog, "density", (0.1, 0.4)),
    (Snowflakes, "density", (0.01, 0.1)), (SnowyLandscape, "threshold", (50.0, 150.0)),
    (SnowyLandscape, "factor", (1.5, 4.0)), (Rain, "density", (0.01, 0.1)), (Rain, "slant", (-0.5, 0.1)),
    (Rain, "opacity", (0.2, 0.3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "bounds"), RANGES, ids=[f"{kind.__name__} {name}" for kind, name, _ in RANGES]
)
def test_ranges_are_drawn_uniformly(kind, name, bounds):
    values = kind(**{name: bounds}).draw(4000, (3, 32, 32), generator())[name]
    low, high = bounds
    assert kstest(values.numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize("kind", CLASSES)
def test_each_sample_and_each_parameter_is_drawn_by_itself(kind):
    rows = kind().draw(2000, (3, 32, 32), generator())
    assert {(len(column), column.device.type) for column in rows.values()} == {(2000, "cpu")}
    drawn = {name: column.double() for name, column in rows.items() if name not in ("applied", "next_weight")}
    names = [name for name in drawn if drawn[name].std() > 0]
    if kind is not Erasing:  # the sides of a box and its position depend on each other
        together = torch.corrcoef(torch.stack([drawn[name] for name in names])).reshape(len(names), -1)
        assert (together - torch.eye(len(names))).abs().max() < 0.1
    for name in names:
        assert abs(torch.corrcoef(torch.stack((drawn[name][1:], drawn[name][:-1])))[0, 1]) < 0.1


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
def test_an_empty_batch_stays_empty(kind, arguments):
    operation = kind(**arguments)
    rows = operation.draw(0, (3, 32, 32), generator())
    assert operation(images(0, (3, 32, 32)), rows).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianNoise(std=(3.0, 1.0)), "std=[3.0, 1.0]: must be two numbers of at least 0, the smaller"),
        (lambda: GaussianNoise(std=(-1.0, 1.0)), "std=[-1.0, 1.0]: must be two numbers of at least 0"),
        (lambda: GaussianNoise(std=(0.0, float("inf"))), "std=[0.0, inf]: must be two numbers of at least 0"),
        (lambda: GaussianNoise(std=(float("nan"), 1.0)), "std=[nan, 1.0]: must be two numbers of at least 0"),
        (lambda: GaussianBlur(kernel_size=4), "kernel_size=4: must be odd and above 0"),
        (lambda: GaussianBlur(kernel_size=-1), "kernel_size=-1: must be odd and above 0"),
        (lambda: GaussianBlur(kernel_size=17).draw(2, (3, 32, 8), generator()), "kernel_size=17: must be below 16"),
        (lambda: Salt(pepper=1.5), "pepper=1.5: must be from 0 to 1"),
        (lambda: Salt(cell=0), "cell=0: must be from 1 to 256"),
        (lambda: Salt(cell=10**9), "cell=1000000000: must be from 1 to 256"),
        (lambda: Salt(amount=(0.0, 1.5)), "amount=[0.0, 1.5]: must be two numbers from 0 to 1"),
        (lambda: Emboss(alpha=(0.0, 1.1)), "alpha=[0.0, 1.1]: must be two numbers from 0 to 1"),
        (lambda: Emboss(strength=(-0.5, 1.0)), "strength=[-0.5, 1.0]: must be two numbers of at least 0"),
        (lambda: Superpixels(cell=1), "cell=1: must be from 2 to 64"),
        (lambda: Superpixels(iterations=0), "iterations=0: must be from 1 to 100"),
        (lambda: Superpixels(iterations=10**6), "iterations=1000000: must be from 1 to 100"),
        (lambda: Superpixels(compactness=-1.0), "compactness=-1.0: must be at least 0"),
        (lambda: Erasing(scale=(0.1, 1.2)), "scale=[0.1, 1.2]: must be two numbers from 0 to 1"),
        (lambda: Erasing(ratio=(0.0, 1.0)), "ratio=[0.0, 1.0]: must be above 0"),
        (lambda: Erasing(fill="white"), "fill=white: must be black, mean or noise"),  # type: ignore[arg-type]
        (lambda: Clouds(size=0.0), "size=0.0: must be from 0.02 to 1"),
        (lambda: Fog(level=256.0), "level=256.0: must be from 0 to 255"),
        (lambda: Fog(patchiness=-0.1), "patchiness=-0.1: must be from 0 to 1"),
        (lambda: Snowflakes(size=0), "size=0: must be from 1 to 64"),
        (lambda: SnowyLandscape(factor=(0.5, 2.0)), "factor=[0.5, 2.0]: must be two numbers of at least 1"),
        (lambda: Rain(slant=(-3.0, 0.0)), "slant=[-3.0, 0.0]: must be two numbers from -2 to 2"),
        (lambda: Rain(length=1.5), "length=1.5: must be from 0 to 1"),
        *((lambda kind=kind: kind(probability=1.5), "probability=1.5: must be between 0 and 1") for kind in CLASSES),
    ],
)  # fmt: skip
def test_bad_arguments(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("option", ["noise", "weather", "crop_erase"])
def test_the_options_name_every_argument(option):
    node = yaml.safe_load((CONFIGS / f"{option}.yaml").read_text())
    assert node.pop("_target_") == "trainer.augmentation.Pipeline"
    for operation in node.values():
        kind = getattr(augmentation, operation.pop("_target_").removeprefix("trainer.augmentation."))
        assert set(operation) == set(kind.__init__.__annotations__) - {"return"}
        kind(**operation)
