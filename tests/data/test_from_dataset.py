"""Map-style datasets of other libraries as the data of a run."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import FakeData

from trainer import compose
from trainer.configuration.resolve import resolve
from trainer.data import FromDataset
from trainer.examples.map_style import Bars


def pixels(count: int = 60, shape: tuple[int, ...] = (3, 6, 5), seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(60) % 3


class Listed:
    """Neither a torch Dataset nor a list, but has `__len__` and `__getitem__`."""

    def __init__(self, samples: list, classes: list | None = None) -> None:
        self._samples = samples
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> object:
        return self._samples[index]


def test_what_is_cut_from_train_is_stratified_and_nothing_is_lost_or_changed():
    data = FromDataset(TensorDataset(pixels(), LABELS), num_classes=3, val_fraction=0.2, test_fraction=0.1)
    facts, splits = data.facts(), data.load()
    assert (facts.num_train, facts.num_val, facts.num_test) == (42, 12, 6)
    assert (facts.input_shape, facts.num_outputs, facts.kind) == ((3, 6, 5), 3, "images")
    parts = (splits.train, splits.val, splits.test)
    for split, count in zip(parts, (14, 4, 2), strict=True):
        assert torch.bincount(split.targets_N).tolist() == [count] * 3
    expected = {image.numpy().tobytes(): int(label) for image, label in zip(pixels(), LABELS, strict=True)}
    found = {
        image.numpy().tobytes(): int(label)
        for split in parts
        for image, label in zip(split.images_NCHW, split.targets_N, strict=True)
    }
    assert found == expected
    assert splits.checksum() == data.load().checksum()
    other = FromDataset(TensorDataset(pixels(), LABELS), None, None, 3, 0.2, 0.1, split_seed=1)
    assert other.load().checksum() != splits.checksum()


def test_parts_that_are_given_stay_as_they_are():
    train, val = TensorDataset(pixels(), LABELS), TensorDataset(pixels(9, seed=1), LABELS[:9])
    data = FromDataset(train, val, num_classes=3, test_fraction=0.5)
    facts, splits = data.facts(), data.load()
    assert (facts.num_train, facts.num_val, facts.num_test) == (30, 9, 30)
    assert torch.equal(splits.val.images_NCHW, pixels(9, seed=1))
    assert (len(splits.train), len(splits.test)) == (30, 30)
    splits = FromDataset(train, val, Subset(train, range(6)), num_classes=3).load()
    assert torch.equal(splits.train.images_NCHW, pixels())
    assert torch.equal(splits.test.images_NCHW, pixels()[:6])


KINDS = {
    "tensor": lambda array: torch.from_numpy(array).permute(2, 0, 1),
    "array": lambda array: array,
    "view": lambda array: np.frombuffer(array[::-1].tobytes(), np.uint8).reshape(array.shape)[::-1],  # read-only
    "PIL": Image.fromarray,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", [int, np.int64, torch.tensor, float, np.asarray], ids=lambda kind: kind.__name__)
def test_images_and_labels_of_every_kind(kind, label):
    arrays = pixels(20, (7, 4, 3)).numpy()
    data = FromDataset(Listed([(KINDS[kind](array), label(n % 2)) for n, array in enumerate(arrays)]), num_classes=2)
    assert data.facts().input_shape == (3, 7, 4)
    splits = data.load()
    found = {image.numpy().tobytes() for split in vars(splits).values() for image in split.images_NCHW}
    assert found == {array.transpose(2, 0, 1).tobytes() for array in arrays}


@pytest.mark.parametrize("kind", ["tensor", "array", "PIL"])
def test_grey_images_without_a_channel_get_one(kind):
    arrays = pixels(20, (7, 4)).numpy()
    make = {"tensor": torch.from_numpy, "array": lambda a: a, "PIL": Image.fromarray}[kind]
    data = FromDataset(Listed([(make(array), 0) for array in arrays]), num_classes=1)
    assert data.facts().input_shape == (1, 7, 4)
    assert torch.isin(data.load().test.images_NCHW[0], torch.from_numpy(arrays)).all()


@pytest.mark.parametrize(("mode", "channels"), [("1", 3), ("P", 3), ("CMYK", 3), ("RGBA", 3), ("YCbCr", 3), ("LA", 3)])
def test_other_images_of_pil_become_rgb(mode, channels):
    picture = Image.fromarray(pixels(1, (8, 8, 3))[0].numpy()).convert(mode)
    data = FromDataset(Listed([(picture, 0)] * 20), num_classes=1)
    assert data.facts().input_shape == (channels, 8, 8)
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(data.load().val.images_NCHW[0].numpy(), expected)


def test_torchvisions_own_and_joined_datasets():
    fake = FakeData(size=40, image_size=(3, 9, 8), num_classes=4)
    data = FromDataset(ConcatDataset([fake, FakeData(size=10, image_size=(3, 9, 8), num_classes=4)]), num_classes=4)
    facts = data.facts()
    assert (facts.input_shape, facts.num_train + facts.num_val + facts.num_test) == ((3, 9, 8), 50)
    assert len(data.load().train) == facts.num_train


def test_names_of_classes_are_taken_from_the_dataset():
    assert FromDataset(Bars()).facts().class_names == ("row", "column")
    assert FromDataset(Bars()).facts().num_outputs == 2
    assert FromDataset(Bars(), num_classes=3).facts().class_names == ()


def sample(image: object = None, label: object = 0) -> tuple:
    return (pixels(1)[0] if image is None else image, label)


@pytest.mark.parametrize(
    ("train", "message"),
    [(None, "train=null: must be a dataset"), (3, "train=int: must be a dataset with __len__ and __getitem__"),
     (Listed([]), "train=Listed: has no samples"),
     (Listed([sample()]), "val_fraction=0.1: must be between 0 and 1"),
     (Listed([sample()] * 9 + [5]), None),
     (Listed([7] * 20), "sample 0 of train cannot be read as .image, class.: cannot unpack"),
     (Listed([sample(label="cat")] * 20), "sample 0 of train has the class str: must be a whole number"),
     (Listed([sample(label=1.5)] * 20), "has the class 1.5: must be a whole number in 0..1"),
     (Listed([sample(label=2)] * 20), "has the class 2: must be a whole number in 0..1"),
     (Listed([sample(label=-1)] * 20), "has the class -1"),
     (Listed([sample(pixels(1)[0] / 255)] * 20), "has the type float32: must be uint8"),
     (Listed([sample(np.zeros((4, 4), np.uint16))] * 20), "type uint16: must be uint8 .0..255.; a transform .* 8 bits"),
     (Listed([sample(Image.new("F", (4, 4)))] * 20), "sample 0 of train is a PIL image of mode F, more than 8 bits"),
     (Listed([sample(Image.new("I", (4, 4)))] * 20), "sample 0 of train is a PIL image of mode I, more than 8 bits"),
     (Listed([sample(Image.new("I;16", (4, 4)))] * 20), "mode I;16, more than 8 bits per value; a transform .* 8 bits"),
     (Listed([sample(pixels(1, (5, 4, 4))[0])] * 20), r"has the shape \(5, 4, 4\): must be \(1 to 4 channels"),
     (Listed([sample(pixels(2))] * 20), r"has the shape \(2, 3, 6, 5\)"),
     (Listed([sample("text")] * 20), "sample 0 of train is str: must be a tensor, an array or a PIL image")],
)  # fmt: skip
def test_what_is_no_such_dataset_is_told_in_one_line(train, message):
    if message is None:
        with pytest.raises(ValueError, match="sample 9 of train cannot be read as"):
            FromDataset(train, num_classes=2).load()
        return
    with pytest.raises(ValueError, match=message) as caught:
        FromDataset(train, num_classes=2)
    assert "\n" not in str(caught.value)


def test_other_bad_arguments():
    train = TensorDataset(pixels(), LABELS)
    with pytest.raises(
        ValueError, match="num_classes=null: must be given, because TensorDataset has no list `classes`"
    ):
        FromDataset(train)
    with pytest.raises(ValueError, match="num_classes=0: must be from 1 to 1000000"):
        FromDataset(train, num_classes=0)
    with pytest.raises(ValueError, match="num_classes=1000000000: must be from 1 to 1000000"):
        FromDataset(train, num_classes=10**9)
    with pytest.raises(ValueError, match="test=int: must be a dataset"):
        FromDataset(train, test=3, num_classes=3)
    with pytest.raises(ValueError, match=r"test_fraction=1\.0: must be between 0 and 1"):
        FromDataset(train, num_classes=3, test_fraction=1.0)
    with pytest.raises(ValueError, match=r"val_fraction=0\.5: must leave samples for training"):
        FromDataset(train, num_classes=3, val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match="split_seed=-1"):
        FromDataset(train, num_classes=3, split_seed=-1)


def test_images_of_another_size_are_named():
    train = Listed([sample()] * 12 + [sample(pixels(1, (3, 7, 5))[0])] + [sample()] * 7)
    with pytest.raises(ValueError, match=r"sample 12 of train has the shape \(3, 7, 5\), the first one .* \(3, 6, 5\)"):
        FromDataset(train, num_classes=1).load()


OTHERS = {
    "L": lambda image: image.convert("L"),
    "array": lambda image: np.asarray(image.convert("L")),
    "tensor": lambda image: torch.from_numpy(np.asarray(image.convert("L")).copy()),
    "RGBA": lambda image: np.asarray(image.convert("RGBA")),
    "LA": lambda image: np.asarray(image.convert("LA")),
}


@pytest.mark.parametrize(
    ("kind", "found"),
    [("L", "grey (1 channel)"), ("array", "grey (1 channel)"), ("tensor", "grey (1 channel)"),
     ("LA", "grey with alpha (2 channels)"), ("RGBA", "in colour with alpha (4 channels)")],
)  # fmt: skip
def test_grey_or_alpha_among_colour_is_told_as_such(kind, found):
    colour = Image.fromarray(pixels(1, (6, 5, 3))[0].numpy())
    other = OTHERS[kind](colour)
    for images, first, later in (
        ([colour] * 12 + [other] * 8, "in colour (3 channels)", found),
        ([other] * 12 + [colour] * 8, found, "in colour (3 channels)"),
    ):
        with pytest.raises(ValueError) as caught:
            FromDataset(Listed([sample(image) for image in images]), num_classes=1).load()
        assert str(caught.value) == (
            f"sample 12 of train is {later}, the first one of train {first}; a transform of the dataset has to make"
            " them alike, for PIL images with image.convert('RGB')"
        )


def test_nested_nodes_of_the_configuration_are_built():
    overrides = ["data=map_style", "data.train.num_images=100", "+data.test._target_=trainer.examples.map_style.Bars"]
    blueprint = resolve(compose([*overrides, "+data.test.num_images=30"]))
    assert (blueprint.facts.num_train, blueprint.facts.num_val, blueprint.facts.num_test) == (90, 10, 30)
    assert blueprint.facts.class_names == ("row", "column")
