"""Preprocessing against scikit-learn, NumPy in float64 and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from trainer.preprocessing import Scale, Standardize, ToFloat

SHAPES = [(50, 1, 8, 8), (20, 3, 32, 32), (7, 2, 5, 3)]


def images(shape: tuple[int, ...] = (20, 3, 32, 32), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def every_module() -> list[torch.nn.Module]:
    modules = [ToFloat(), Scale(), Standardize("channel"), Standardize("feature")]
    for module in modules:
        module.fit(images())
    return modules


def test_to_float_is_the_pixel_value():
    result = ToFloat()(images())
    assert result.dtype == torch.float32
    assert np.array_equal(result.numpy(), images().numpy().astype(np.float32))


def test_scale_is_a_division_by_255():
    assert np.array_equal(Scale()(images()).numpy(), images().numpy() / np.float32(255))


@pytest.mark.parametrize("shape", SHAPES)
def test_standardize_per_feature_is_scikit_learns(shape):
    train, test = images(shape), images(shape, seed=1)
    module = Standardize(per="feature")
    module.fit(train)
    oracle = StandardScaler().fit(train.flatten(1).double().numpy())
    for part in (train, test):
        expected = oracle.transform(part.flatten(1).double().numpy()).reshape(shape)
        np.testing.assert_allclose(module(part).numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_standardize_per_channel_is_scikit_learns_on_pixels(shape):
    train, test = images(shape), images(shape, seed=1)
    module = Standardize(per="channel")
    module.fit(train)

    def pixels(part):
        return part.permute(0, 2, 3, 1).reshape(-1, shape[1]).double().numpy()

    oracle = StandardScaler().fit(pixels(train))
    np.testing.assert_allclose(pixels(module(test)), oracle.transform(pixels(test)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(1500, 3, 32, 32), (3, 1, 800, 800)])
def test_the_statistics_of_many_chunks_are_exact(shape):
    train = images(shape)
    module = Standardize()
    module.fit(train)
    for channel in range(shape[1]):
        counts = torch.bincount(train[:, channel].flatten().long(), minlength=256).tolist()
        mean = Fraction(sum(v * n for v, n in enumerate(counts)), sum(counts))
        variance = Fraction(sum(v * v * n for v, n in enumerate(counts)), sum(counts)) - mean**2
        assert module.mean[0, channel, 0, 0].item() == np.float32(float(mean))
        assert module.reciprocal_std[0, channel, 0, 0].item() == np.float32(float(variance) ** -0.5)


def test_the_order_of_the_samples_does_not_change_a_bit():
    train = images((999, 3, 32, 32))
    one, other = Standardize("feature"), Standardize("feature")
    one.fit(train)
    other.fit(train.flip(0))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.reciprocal_std, other.reciprocal_std)


def test_a_pixel_that_is_constant_in_training_gives_zero():
    train = images((10, 1, 4, 4))
    train[:, 0, 1, 2] = 77
    module = Standardize("feature")
    module.fit(train)
    test = images((5, 1, 4, 4), seed=1)
    result = module(test)
    assert (result[:, 0, 1, 2] == 0).all()
    assert result.isfinite().all()
    assert result[:, 0, 1, 1].abs().min() > 0


def test_one_deviating_pixel_in_many_is_not_taken_for_constant():
    train = torch.full((2000, 1, 10, 10), 254, dtype=torch.uint8)
    train[0, 0, 0, 0] = 255
    module = Standardize("channel")
    module.fit(train)
    deviation = np.sqrt((1 / 200_000) * (1 - 1 / 200_000))
    assert module.reciprocal_std.item() == pytest.approx(1 / deviation, rel=1e-6)


def test_the_training_part_gets_mean_zero_and_variance_one():
    train = images((500, 3, 16, 16)) // 2 + 20
    module = Standardize("channel")
    module.fit(train)
    result = module(train).double()
    assert result.mean((0, 2, 3)).abs().max() < 1e-5
    assert (result.square().mean((0, 2, 3)) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("module", every_module(), ids=lambda m: m.__class__.__name__)
def test_float_images_are_treated_as_bytes_are_and_left_alone(module):
    pixels = images()
    as_float = pixels.float()
    expected = module(pixels)
    assert torch.equal(module(as_float), expected)
    assert torch.equal(module(pixels.double()), expected)
    assert torch.equal(as_float, pixels.float())
    assert expected.dtype == torch.float32
    assert expected.is_contiguous()


@pytest.mark.parametrize("module", every_module(), ids=lambda m: m.__class__.__name__)
def test_an_image_does_not_depend_on_its_batch(module):
    assert torch.equal(module(images())[3:4], module(images()[3:4]))


@pytest.mark.parametrize("per", ["channel", "feature"])
def test_the_statistics_travel_in_the_state_to_a_module_that_was_never_fitted(per):
    fitted, fresh = Standardize(per), Standardize(per)
    fitted.fit(images())
    outer = torch.nn.ModuleDict({"preprocessing": fresh})
    outer.load_state_dict({f"preprocessing.{name}": value for name, value in fitted.state_dict().items()})
    assert set(fitted.state_dict()) == {"mean", "reciprocal_std"}
    assert torch.equal(fresh(images(seed=1)), fitted(images(seed=1)))
    with pytest.raises(RuntimeError, match="Missing key"):
        Standardize(per).load_state_dict({})


def test_without_statistics_there_is_no_answer():
    with pytest.raises(RuntimeError, match="size of tensor"):
        Standardize()(images())


def test_there_is_nothing_to_train():
    assert [list(module.parameters()) for module in every_module()] == [[], [], [], []]


def test_bad_argument():
    with pytest.raises(ValueError, match=r"^per=pixel: must be channel or feature$"):
        Standardize(per="pixel")


@pytest.mark.parametrize("module", [ToFloat, Scale, Standardize])
def test_an_unknown_argument_is_refused(module):
    with pytest.raises(TypeError, match="unexpected keyword argument 'pre'"):
        module(pre="channel")
