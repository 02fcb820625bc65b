"""Preprocessing against scikit-learn, NumPy in float64 and exact fractions."""

from fractions import Fraction
from math import fsum

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from trainer.preprocessing import ZCA, MeanImage, MeanPixel, PCAWhitening, Preprocessing, Scale, Standardize, ToFloat
from trainer.preprocessing.whitening import MOST_FEATURES, principal_axes

SHAPES = [(50, 1, 8, 8), (20, 3, 32, 32), (7, 2, 5, 3)]


def images(shape: tuple[int, ...] = (20, 3, 8, 8), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def natural(shape: tuple[int, ...] = (400, 3, 6, 5), seed: int = 0) -> torch.Tensor:
    """uint8 images (N, C, H, W) with correlated values of quite different variance."""
    source = torch.Generator().manual_seed(seed)
    count, size = shape[0], int(np.prod(shape[1:]))
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99)) * torch.logspace(0, -1.5, size)
    values = torch.randn(count, size, generator=source) @ mixing.T * 8 + 120
    return values.clamp(0, 255).to(torch.uint8).view(shape)


def features(count: int = 500, seed: int = 0) -> torch.Tensor:
    """float32 features (N, 4, 1, 1): scales 1e5 and 1, one with a large mean, one constant."""
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 4, generator=source, dtype=torch.float64)
    values = values * torch.tensor([1e5, 1.0, 0.5, 0.0]) + torch.tensor([3e5, 0.0, 1e4, 7.7])
    return values.float().view(count, 4, 1, 1)


class Photographs:
    """Images that are not a tensor and support only slices."""

    def __init__(self, images_NCHW: torch.Tensor) -> None:
        self._images = images_NCHW

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: slice) -> torch.Tensor:
        assert isinstance(index, slice)
        return self._images[index].clone()


FITTED = {
    "none": ToFloat, "scale": Scale, "standardize": Standardize, "per_feature": lambda: Standardize("feature"),
    "mean_pixel": MeanPixel, "mean_image": MeanImage, "pca": PCAWhitening, "pca_40": lambda: PCAWhitening(40),
    "zca": ZCA, "zca_40": lambda: ZCA(40, epsilon=0.0),
}  # fmt: skip


def every_module() -> list[torch.nn.Module]:
    modules = [make() for make in FITTED.values()]
    for module in modules:
        module.fit(images())
    return modules


@pytest.mark.proves("preprocessing=none", reference="numpy", tolerance="exact")
def test_to_float_is_the_pixel_value():
    result = ToFloat()(images())
    assert result.dtype == torch.float32
    assert np.array_equal(result.numpy(), images().numpy().astype(np.float32))


@pytest.mark.proves("preprocessing=scale", reference="numpy", tolerance="exact")
def test_scale_is_a_division_by_255():
    assert np.array_equal(Scale()(images()).numpy(), images().numpy() / np.float32(255))


@pytest.mark.proves(
    "preprocessing=standardize", reference="sklearn.preprocessing.StandardScaler", tolerance="2e-6, per feature"
)
@pytest.mark.parametrize("shape", SHAPES)
def test_standardize_per_feature_is_scikit_learns(shape):
    train, test = images(shape), images(shape, seed=1)
    module = Standardize(per="feature")
    module.fit(train)
    oracle = StandardScaler().fit(train.flatten(1).double().numpy())
    for part in (train, test):
        expected = oracle.transform(part.flatten(1).double().numpy()).reshape(shape)
        np.testing.assert_allclose(module(part).numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.proves(
    "preprocessing=standardize",
    reference="sklearn.preprocessing.StandardScaler on pixels",
    tolerance="2e-6, per channel",
)
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


@pytest.mark.parametrize("per", ["channel", "feature"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 5, 13)])
def test_standardize_is_the_formula_in_float64_to_a_rounding(per, shape):
    pixels = images((300, *shape))
    module = Standardize(per)
    module.fit(pixels)
    exact = (pixels.double() - module.mean.double()) * module.reciprocal_std.double()
    # rounding of the bias, of the product (unless it is fused with the sum), and of the sum
    bias = module.mean.double() * module.reciprocal_std.double()
    product = pixels.double() * module.reciprocal_std.double()
    bound = 2.0**-24 * (bias.abs() + product.abs() + exact.abs()) * 1.01
    assert ((module(pixels).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_standardize_loses_no_digits_to_a_large_mean(offset):
    values = torch.randn(500, 2, 3, 3, generator=torch.Generator().manual_seed(0)) + offset
    module = Standardize()
    module.fit(values)
    exact = (values.double() - module.mean.double()) * module.reciprocal_std.double()
    assert (module(values).double() - exact).abs().max() < 2e-6


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_standardized_image_does_not_depend_on_how_threads_share_the_batch(threads):
    pixels = images((301, 1, 27, 29))  # pixels per sample are not a multiple of a vector's length
    module = Standardize()
    module.fit(pixels)
    alone = torch.cat([module(image) for image in pixels.split(1)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in (3, 64, 200, 301):
            assert torch.equal(torch.cat([module(part) for part in pixels.split(size)]), alone)
    finally:
        torch.set_num_threads(before)


def test_standardize_follows_its_statistics():
    module, first, second = Standardize(), images(), images(seed=1) // 2
    module.fit(first)
    module(first)
    module.fit(second)
    fresh = Standardize()
    fresh.fit(second)
    assert torch.equal(module(first), fresh(first))
    module.load_state_dict({"mean": torch.zeros(3, 1, 1), "reciprocal_std": torch.ones(3, 1, 1)})
    assert torch.equal(module(first), first.float())
    assert torch.equal(module(first[:, :, :4]), first[:, :, :4].float())


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
    in_place = module.transform_(as_float)
    assert torch.equal(in_place, expected)
    assert in_place.data_ptr() == as_float.data_ptr(), "it needs no second batch of memory"


@pytest.mark.parametrize("module", every_module(), ids=lambda m: m.__class__.__name__)
def test_an_image_does_not_depend_on_its_batch(module):
    """Bit for bit, at any position in batches of any size and memory layout."""
    many = images((300, 3, 8, 8), seed=4)
    whole = module(many)
    for size in (1, 2, 7, 64, 128):
        parts = [module(part) for part in many.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(module(many.flip(0)).flip(0), whole)
    assert torch.equal(module(many.to(memory_format=torch.channels_last)), whole)


@pytest.mark.parametrize("num_rows", [3072, 100])
def test_a_large_whitened_image_does_not_depend_on_its_batch_either(num_rows):
    """Sums of 3,072 products of an integer and a 24-bit number are exact in float64, in any order."""
    source = torch.Generator().manual_seed(0)
    matrix = torch.randint(-(2**24), 2**24 + 1, (num_rows, 3072), generator=source).float() * 2.0**-24
    module = PCAWhitening()
    centre = torch.randint(256, (3072,), generator=source).float()
    module.load_state_dict({"centre": centre, "matrix": matrix, "offset": torch.randn(num_rows, generator=source)})
    many = images((40, 3, 32, 32))
    whole = module(many)
    for size in (1, 5, 32):
        assert torch.equal(torch.cat([module(part) for part in many.split(size)]), whole)
    some = many[:3].flatten(1).double() - centre
    exact = torch.tensor([[fsum((a * b).tolist()) for b in matrix[:5].double()] for a in some], dtype=torch.float64)
    offset = module.offset[:5].double()
    assert torch.equal(whole[:3].flatten(1)[:, :5], (exact - offset).float())


@pytest.mark.parametrize("name", [name for name in FITTED if name not in ("none", "scale")])
def test_the_statistics_travel_in_the_state_to_a_module_that_was_never_fitted(name):
    fitted, fresh = FITTED[name](), FITTED[name]()
    fitted.fit(images())
    outer = torch.nn.ModuleDict({"preprocessing": fresh})
    outer.load_state_dict({f"preprocessing.{name}": value for name, value in fitted.state_dict().items()})
    assert torch.equal(fresh(images(seed=1)), fitted(images(seed=1)))
    other = FITTED[name]()
    other.fit(images(seed=2))
    other(images(seed=1))
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(images(seed=1)), fitted(images(seed=1))), "what was fitted before is gone"
    with pytest.raises(RuntimeError, match="Missing key"):
        FITTED[name]().load_state_dict({})


def test_without_statistics_there_is_no_answer():
    with pytest.raises(RuntimeError, match="size of tensor"):
        Standardize()(images())


def test_there_is_nothing_to_train():
    assert not [parameter for module in every_module() for parameter in module.parameters()]


def test_bad_argument():
    with pytest.raises(ValueError, match=r"^per=pixel: must be channel or feature$"):
        Standardize(per="pixel")


@pytest.mark.parametrize("module", [ToFloat, Scale, Standardize])
def test_an_unknown_argument_is_refused(module):
    with pytest.raises(TypeError, match="unexpected keyword argument 'pre'"):
        module(pre="channel")


SLICED = [("pixels", name) for name in FITTED] + [("features", name) for name in FITTED if "40" not in name]


@pytest.mark.parametrize(("data", "name"), SLICED)
def test_images_that_are_read_slice_by_slice_give_the_same_statistics(data, name):
    data = natural() if data == "pixels" else features()
    from_tensor, read = FITTED[name](), FITTED[name]()
    from_tensor.fit(data)
    read.fit(Photographs(data))
    assert from_tensor.state_dict().keys() == read.state_dict().keys()
    for key, value in from_tensor.state_dict().items():
        assert torch.equal(value, read.state_dict()[key])


# --- means ------------------------------------------------------------------------------------------------


@pytest.mark.proves(
    "preprocessing=mean_pixel",
    "preprocessing=mean_image",
    reference="numpy in float64",
    tolerance="2e-5 of 255; the mean itself exactly",
)
@pytest.mark.parametrize(("module", "axes"), [(MeanPixel(), (0, 2, 3)), (MeanImage(), 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_means_are_numpys(module, axes, shape):
    train, test = images(shape), images(shape, seed=1)
    module.fit(train)
    mean = train.double().numpy().mean(axes, keepdims=True)
    expected = test.double().numpy() - mean
    np.testing.assert_allclose(module(test).numpy(), expected, rtol=0, atol=2e-5)
    assert np.array_equal(module.mean.numpy(), mean.astype(np.float32))


# --- features ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["channel", "feature"])
def test_features_of_1e5_beside_1_are_standardized_as_scikit_learn_does(per):
    train, test = features(), features(seed=1)
    module = Standardize(per)
    module.fit(train)
    oracle = StandardScaler().fit(train.flatten(1).double().numpy())
    expected = oracle.transform(test.flatten(1).double().numpy())
    result = module(test).flatten(1).numpy()
    # the float32 mean is off by up to half a unit in the last place of the features: 5e-4 of the third one
    np.testing.assert_allclose(result[:, [0, 1]], expected[:, [0, 1]], rtol=0, atol=2e-6)
    np.testing.assert_allclose(result[:, 2], expected[:, 2], rtol=0, atol=0.5 * 2**-10 / 0.5)
    assert (result[:, 3] == 0).all()


def test_the_statistics_of_features_lose_nothing_to_a_mean_far_from_zero():
    """A variance computed as the mean of squares minus the square of the mean would be wrong in the third digit."""
    values = torch.tensor([8388600.0, 8388601.0, 8388603.0]).repeat(100_000).view(-1, 1, 1, 1)
    module = Standardize()
    module.fit(values)
    assert module.mean.item() == 8388601.5  # the nearest float32 to 8388601 and a third
    assert module.reciprocal_std.item() == pytest.approx(np.sqrt(9 / 14), rel=1e-7)


# --- whitening --------------------------------------------------------------------------------------------


def flat(images_NCHW: torch.Tensor) -> np.ndarray:
    return images_NCHW.flatten(1).double().numpy()


@pytest.mark.proves("preprocessing=pca_whitening", reference="sklearn.decomposition.PCA(whiten=True)", tolerance="1e-4")
@pytest.mark.parametrize("components", [None, 1, 17, 90])
@pytest.mark.parametrize("data", ["pixels", "features"])
def test_pca_whitening_is_scikit_learns(data, components):
    make = natural if data == "pixels" else features
    train, test = (make()[:, :3], make(seed=1)[:, :3]) if data == "features" else (make(), make(seed=1))
    size = train[0].numel()
    components = components and min(components, size)
    module = PCAWhitening(components, epsilon=0.0)
    module.fit(train)
    oracle = PCA(components, whiten=True, svd_solver="full").fit(flat(train))
    peaks = np.abs(oracle.components_).argmax(1)
    signs = np.sign(oracle.components_[np.arange(len(peaks)), peaks])
    for part in (train, test):
        # scikit-learn divides by N - 1
        expected = oracle.transform(flat(part)) * signs * np.sqrt(len(train) / (len(train) - 1))
        result = flat(module(part))
        np.testing.assert_allclose(result[:, : len(peaks)], expected, rtol=0, atol=1e-4)
        assert result.shape[1] == size
        assert (result[:, len(peaks) :] == 0).all(), "what is left of the shape is filled with zeros"


@pytest.mark.parametrize("make", [PCAWhitening, ZCA])
def test_a_sample_of_features_depends_on_its_batch_in_the_last_bit_at_most(make):
    train = torch.randn(500, 60, 1, 1, generator=torch.Generator().manual_seed(0)) * 3 + 1
    module = make()
    module.fit(train)
    whole = module(train)
    for size in (1, 7, 64):
        parts = torch.cat([module(part) for part in train.split(size)])
        assert ((parts - whole).abs() <= whole.abs() * 2**-23).all()


@pytest.mark.proves("preprocessing=zca", reference="the symmetric root by numpy's eigh in float64", tolerance="1e-4")
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("components", [None, 30])
def test_zca_is_the_symmetric_root_of_the_inverse_covariance(components, epsilon):
    train, test = natural(), natural(seed=1)
    module = ZCA(components, epsilon)
    module.fit(train)
    mean, covariance = flat(train).mean(0), np.cov(flat(train), rowvar=False, ddof=0)
    values, vectors = np.linalg.eigh(covariance)
    kept = slice(-components if components else None, None)
    root = vectors[:, kept] / np.sqrt(values[kept] + epsilon) @ vectors[:, kept].T
    np.testing.assert_allclose(flat(module(test)), (flat(test) - mean) @ root, rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [PCAWhitening, ZCA])
def test_whitened_training_images_are_uncorrelated_and_of_variance_one(make):
    train = natural()
    module = make(epsilon=0.0)
    module.fit(train)
    whitened = flat(module(train))
    assert np.abs(whitened.mean(0)).max() < 1e-5
    np.testing.assert_allclose(np.cov(whitened, rowvar=False, ddof=0), np.eye(90), rtol=0, atol=1e-4)


def test_epsilon_holds_small_variances_down():
    train = natural()
    module = PCAWhitening(epsilon=20.0)
    module.fit(train)
    values = np.linalg.eigvalsh(np.cov(flat(train), rowvar=False, ddof=0))[::-1]
    np.testing.assert_allclose(flat(module(train)).var(0), values / (values + 20), rtol=1e-4)
    assert values[0] > 100 > 5 > values[-1]


@pytest.mark.parametrize("make", [PCAWhitening, ZCA])
def test_inputs_that_are_constant_in_training_have_no_part_in_whitening(make):
    train = images((500, 1, 4, 4))
    train[:, 0, 1, 2] = 77
    module = make(epsilon=0.0)
    module.fit(train)
    test = images((50, 1, 4, 4), seed=1)
    changed = test.clone()
    changed[:, 0, 1, 2] = 255 - changed[:, 0, 1, 2]
    assert torch.equal(module(test), module(changed))
    result = module(test)[:, 0]
    assert result.isfinite().all() and result.abs().max() < 10
    assert (result.flatten(1)[:, -1] == 0).all() if make is PCAWhitening else result[:, 1, 2].abs().max() < 1e-12


@pytest.mark.parametrize("make", [PCAWhitening, ZCA])
def test_fewer_samples_than_inputs_and_a_constant_set(make):
    train = images((20, 3, 8, 8))
    module = make(epsilon=0.0)
    module.fit(train)
    covariance = np.cov(flat(module(train)), rowvar=False, ddof=0)
    values = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(values[:19], 1, rtol=1e-4)
    np.testing.assert_allclose(values[19:], 0, atol=1e-9)
    module.fit(torch.full((5, 1, 2, 2), 9, dtype=torch.uint8))
    assert (module(images((3, 1, 2, 2))) == 0).all()


def test_the_covariance_is_exact_whatever_the_order_and_the_number_of_threads():
    train = images((5000, 1, 7, 7))
    train[:, 0, 3] = train[:, 0, 2]  # some eigenvalues are exactly zero
    one, other = PCAWhitening(), PCAWhitening()
    one.fit(train)
    other.fit(train[torch.randperm(5000, generator=torch.Generator().manual_seed(0))])
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_eigenvectors_have_one_sign():
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, rows = principal_axes(mixing @ mixing.T)
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(rows @ mixing @ mixing.T, values[:, None] * rows)
    for row in rows.tolist():
        assert max(row, key=abs) > 0


def test_zca_looks_like_the_image_and_pca_does_not():
    train = natural((400, 1, 9, 9))
    zca, pca = ZCA(epsilon=100.0), PCAWhitening(epsilon=100.0)
    zca.fit(train)
    pca.fit(train)

    def likeness(module):
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(flat(train), flat(module(train)), strict=True)])

    assert likeness(zca) > 0.5 > 0.1 > abs(likeness(pca))


def test_what_whitening_cannot_do_is_said_before():
    assert isinstance(ZCA(), Preprocessing)
    PCAWhitening(192).check((3, 8, 8))
    with pytest.raises(ValueError, match="components=193: must be at most 192, the values of a sample"):
        PCAWhitening(193).check((3, 8, 8))
    ZCA().check((3, 64, 64))
    with pytest.raises(ValueError, match=f"at most {MOST_FEATURES:,} values per sample, not 150,528"):
        ZCA().check((3, 224, 224))
    with pytest.raises(ValueError, match="components=0: must be at least 1, or null"):
        ZCA(components=0)
    for epsilon in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"epsilon={epsilon}: must be at least 0, and finite"):
            ZCA(epsilon=epsilon)


@pytest.mark.slow
def test_whitening_a_set_of_the_size_of_cifar_takes_little_time_and_memory():
    """12 s of CPU time."""
    import resource
    import time

    train = images((50_000, 3, 32, 32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    ZCA().fit(train)
    assert time.process_time() - start < 120
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 8e8
