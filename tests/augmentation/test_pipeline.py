"""The parameter table of an epoch, and the order of operations."""

from pathlib import Path

import pytest
import torch
import torchvision.transforms.v2.functional as reference
import yaml

from trainer.augmentation import Crop, Erasing, HorizontalFlip, Pipeline
from trainer.augmentation.colour import Brightness, Contrast, Saturation, Sharpen
from trainer.augmentation.warp import Rotate

CONFIGS = Path(__file__).parents[2] / "configs" / "augmentation"


def images(num: int, shape: tuple[int, int, int] = (3, 32, 32)) -> torch.Tensor:
    return torch.randint(1, 256, (num, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flip_crop() -> Pipeline:
    return Pipeline(flip=HorizontalFlip(probability=0.5), crop=Crop(padding=4, probability=0.9))


class Add:
    """A user's operation: adds a drawn number to every pixel."""

    def draw(self, num_samples, input_shape, generator):
        return {"amount": torch.randint(3, 5, (num_samples,), generator=generator)}

    def __call__(self, images_NCHW, rows):
        return images_NCHW + rows["amount"].to(images_NCHW.dtype).view(-1, 1, 1, 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_the_whole_is_torchvision_step_by_step(shape):
    pixels = images(64, shape)
    pipeline = flip_crop()
    table = pipeline.draw(64, shape, generator())
    result = pipeline(pixels, table)
    for i in range(64):
        one = reference.horizontal_flip(pixels[i]) if table["flip.applied"][i] else pixels[i]
        y, x = int(table["crop.offset_y"][i]), int(table["crop.offset_x"][i])
        assert torch.equal(result[i], reference.crop(reference.pad(one, [4] * 4), y, x, *shape[1:]))


def test_operations_apply_in_the_order_in_which_they_are_written():
    pixels = images(8)
    table = {
        "crop.offset_y": torch.zeros(8, dtype=torch.int64),
        # the image moves 4 to the right; its left edge becomes black
        "crop.offset_x": torch.zeros(8, dtype=torch.int64),
        "flip.applied": torch.ones(8, dtype=torch.bool),
    }
    crop_first = Pipeline(crop=Crop(padding=4), flip=HorizontalFlip())(pixels, table)
    flip_first = Pipeline(flip=HorizontalFlip(), crop=Crop(padding=4))(pixels, table)
    assert (crop_first[..., -4:] == 0).all()
    assert (flip_first[..., :4] == 0).all()
    assert not (flip_first[..., 4:, 4:] == 0).any()


def test_a_table_has_one_row_a_sample_on_the_cpu():
    table = flip_crop().draw(100, (3, 32, 32), generator())
    assert sorted(table) == ["crop.offset_x", "crop.offset_y", "flip.applied"]
    assert {column.shape for column in table.values()} == {(100,)}
    assert {column.device.type for column in table.values()} == {"cpu"}


def test_the_generator_alone_decides():
    torch.manual_seed(1)
    first = flip_crop().draw(100, (3, 32, 32), generator(5))
    torch.manual_seed(2)
    again, other = (flip_crop().draw(100, (3, 32, 32), generator(seed)) for seed in (5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_an_image_does_not_depend_on_the_batch_it_is_in():
    pixels, pipeline = images(300), flip_crop()
    table = pipeline.draw(300, (3, 32, 32), generator())
    whole = pipeline(pixels, table)
    order = torch.randperm(300, generator=generator(1))
    for indices in (*order.split(64), torch.tensor([17]), torch.tensor([17, 17])):
        part = pipeline(pixels[indices], {name: column[indices] for name, column in table.items()})
        assert torch.equal(part, whole[indices])


def test_the_given_images_are_left_as_they_are():
    pixels, pipeline = images(50), flip_crop()
    pipeline(pixels, pipeline.draw(50, (3, 32, 32), generator()))
    assert torch.equal(pixels, images(50))


def test_one_operation_twice_under_two_names_draws_twice():
    pipeline = Pipeline(a=Crop(padding=4), b=Crop(padding=4))
    table = pipeline.draw(100, (3, 32, 32), generator())
    assert not torch.equal(table["a.offset_y"], table["b.offset_y"])


def test_another_operation_is_one_class():
    pixels = images(10) // 2
    pipeline = Pipeline(add=Add(), flip=HorizontalFlip(probability=0.0))
    table = pipeline.draw(10, (3, 32, 32), generator())
    difference = pipeline(pixels, table) - pixels
    assert torch.equal(difference, table["add.amount"].to(torch.uint8).view(-1, 1, 1, 1).expand_as(pixels))


def test_an_empty_batch_stays_empty():
    pipeline = flip_crop()
    table = pipeline.draw(0, (3, 32, 32), generator())
    assert pipeline(images(0), table).shape == (0, 3, 32, 32)


class Upside(Add):
    """Turns images upside down by a matrix."""

    def matrix(self, rows, height, width):
        return torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)).expand(len(rows["amount"]), 3, 3)


class Prepared(Add):
    """Adds to a chunk of images in place."""

    probability = 0.25

    def prepare(self, images_NCHW, rows):
        return lambda some, chunk: some.add_(rows["amount"][chunk].view(-1, 1, 1, 1))

    def __call__(self, images_NCHW, rows):
        raise AssertionError("it is prepared")


class Halves(Add):
    """Mixes two samples half and half."""

    def mix(self, images_NCHW, partners_NCHW, rows):
        return (images_NCHW + partners_NCHW) / 2, torch.full((len(images_NCHW),), 0.5)


class Framed(Add):
    """The upper left corner of a photograph."""

    def frames(self, rows, sizes_N2, output_hw):
        return torch.tensor([0, 0, 4, 4, 4, 4, 0, 0]).repeat(len(sizes_N2), 1)


def test_the_matrix_of_another_class_is_composed_with_its_neighbours():
    pixels = images(10)
    pipeline = Pipeline(first=Upside(), second=Upside(), rotate=Rotate(probability=0.0))
    assert torch.equal(pipeline(pixels, pipeline.draw(10, (3, 32, 32), generator())), pixels.float())
    once = Pipeline(upside=Upside())
    assert torch.equal(once(pixels, once.draw(10, (3, 32, 32), generator())), pixels.flip(2).float())


def test_what_another_class_prepares_takes_the_place_of_a_call():
    pixels = images(10)
    pipeline = Pipeline(add=Prepared(), erase=Erasing())
    table = pipeline.draw(10, (3, 32, 32), generator())
    added = pixels.float() + table["add.amount"].view(-1, 1, 1, 1)
    erase = Pipeline(erase=Erasing())
    assert torch.equal(pipeline(pixels, table), erase(added, table))


def test_another_class_may_mix():
    pipeline = Pipeline(halves=Halves(), flip=HorizontalFlip())
    assert pipeline.mixing == "halves"
    ones, threes = torch.ones(2, 1, 4, 4), torch.full((2, 1, 4, 4), 3.0)
    mixed, lam_N = pipeline.mix(ones, threes, pipeline.draw(2, (1, 4, 4), generator()))
    assert torch.equal(mixed, 2 * ones) and lam_N.tolist() == [0.5, 0.5]


def test_another_class_may_frame_photographs():
    pipeline, sizes = Pipeline(frame=Framed(), flip=HorizontalFlip(probability=1.0)), torch.tensor([[8, 9], [7, 6]])
    table = pipeline.draw(2, (3, 4, 4), generator())
    assert pipeline.frames(table, sizes, (4, 4)).tolist() == [[0, 0, 4, 4, 4, -4, 0, 0]] * 2
    pipeline = Pipeline(add=Add())
    assert pipeline.frames(pipeline.draw(2, (3, 4, 4), generator()), sizes, (4, 4)) is None


def test_a_copy_that_changes_all_images_leaves_the_operation_as_it_is():
    theirs = Prepared()
    (operation,) = Pipeline(add=theirs).operations.values()
    assert (operation.probability, operation.always().probability, theirs.probability) == (0.25, 1.0, 0.25)
    (operation,) = Pipeline(add=Add()).operations.values()
    assert operation.always().probability == 1.0


@pytest.mark.parametrize("operation", [None, 3])
def test_what_is_no_operation_is_refused(operation):
    with pytest.raises(ValueError, match=r"^crop=.*: must be an operation .*~augmentation\.crop"):
        Pipeline(flip=HorizontalFlip(), crop=operation)


def test_what_an_operation_lacks_is_named():
    with pytest.raises(ValueError, match=r"^crop=.*: must be an operation \(it has no draw; remove it by ~"):
        Pipeline(crop=torch.nn.ReLU())


def test_an_unknown_fill_of_another_class_is_refused():
    upside = Upside()
    upside.fill = "white"
    with pytest.raises(ValueError, match=r"^upside\.fill=white: must be black, edge or mirror$"):
        Pipeline(upside=upside)


def test_no_operation_at_all_is_refused():
    with pytest.raises(ValueError, match="must name at least one"):
        Pipeline()


@pytest.mark.parametrize("option", ["crop", "flip_crop"])
def test_the_options_say_what_the_classes_default_to(option):
    node = yaml.safe_load((CONFIGS / f"{option}.yaml").read_text())
    assert node.pop("_target_") == "trainer.augmentation.Pipeline"
    assert "_".join(node) == option  # the operations, in the order in which they are applied
    classes = {"trainer.augmentation.Crop": Crop, "trainer.augmentation.HorizontalFlip": HorizontalFlip}
    for operation in node.values():
        target = classes[operation.pop("_target_")]
        assert vars(target(**operation)) == vars(target())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 300, 300)])
def test_some_images_after_the_other_give_what_all_at_once_give(shape):
    operations = {
        "rotate": Rotate(), "brightness": Brightness(), "flip": HorizontalFlip(), "contrast": Contrast(),
        "saturation": Saturation(), "sharpen": Sharpen(), "erase": Erasing(), "again": Brightness(probability=0.1),
        "last": Erasing(probability=1.0),
    }  # fmt: skip
    pipeline, num = Pipeline(**operations), 150 if shape[1] < 100 else 3
    images = torch.randint(256, (num, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = pipeline.draw(num, shape, torch.Generator().manual_seed(1))
    expected = images.float()
    for name, operation in operations.items():
        own = {key.partition(".")[2]: values for key, values in rows.items() if key.startswith(f"{name}.")}
        expected = operation(expected, own)
    given = images.clone()
    assert torch.equal(pipeline(given, rows), expected)
    assert torch.equal(given, images)
