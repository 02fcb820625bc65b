"""Drawn shapes, verified from their pixels."""

import pytest
import torch

from trainer.data import Shapes
from trainer.data.synthetic import NAMES

COUNTS = {"num_train": 400, "num_val": 70, "num_test": 50}


def test_facts_and_data_agree_and_come_again():
    data = Shapes(size=20, channels=2, num_classes=8, **COUNTS, split_seed=3)
    facts, splits = data.facts(), data.load()
    assert facts.class_names == NAMES
    assert (facts.task, facts.kind) == ("classification", "images")
    for split, count in ((splits.train, facts.num_train), (splits.val, facts.num_val), (splits.test, facts.num_test)):
        assert split.images_NCHW.shape == (count, *facts.input_shape) == (count, 2, 20, 20)
        assert (split.images_NCHW.dtype, split.targets_N.dtype) == (torch.uint8, torch.int64)
        counts = torch.bincount(split.targets_N, minlength=8)
        assert counts.max() - counts.min() <= 1
    again = Shapes(size=20, channels=2, num_classes=8, **COUNTS, split_seed=3)
    assert splits.checksum() == again.load().checksum()
    other = Shapes(size=20, channels=2, num_classes=8, **COUNTS, split_seed=4)
    assert splits.checksum() != other.load().checksum()


def test_a_part_does_not_depend_on_the_size_of_the_others():
    one = Shapes(num_train=100, num_val=30, num_test=20).load()
    other = Shapes(num_train=50, num_val=30, num_test=20).load()
    assert torch.equal(one.val.images_NCHW, other.val.images_NCHW)
    assert torch.equal(one.test.targets_N, other.test.targets_N)
    assert not torch.equal(one.train.images_NCHW[:20], one.test.images_NCHW)


def masks(size: int, count: int = 800) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask of each shape (without noise): the pixels that differ from the colour of most corners."""
    train = Shapes(size=size, channels=1, num_classes=8, num_train=count, noise=0.0).load().train
    images = train.images_NCHW[:, 0]
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    background = corners.mode(1).values
    return images != background[:, None, None], train.targets_N


def test_shapes_are_whole_and_of_the_size_asked_for():
    inside, _ = masks(64)
    rows, columns = inside.any(2).sum(1), inside.any(1).sum(1)
    longest = torch.maximum(rows, columns) / 64
    assert 0.4 < longest.min() < 0.45  # the base of a triangle and a saltire are shorter than two radii
    assert 0.85 < longest.max() <= 0.92


# the fraction that a shape fills of its bounding box and of the box's diagonal quarter lines and centre, by its formula
AREA = {
    "circle": 3.1416 / 4, "square": 1.0, "triangle": 0.5, "cross": 1 - 0.7**2, "ring": 3.1416 * (1 - 0.36) / 4,
    "diamond": 0.5, "bar": 1.0, "saltire": None,
}  # fmt: skip


def test_each_shape_fills_what_it_should_of_its_box():
    inside, targets = masks(128, 400)
    rows, columns = inside.any(2).sum(1), inside.any(1).sum(1)
    fraction = inside.sum((1, 2)) / (rows * columns)
    for label, name in enumerate(NAMES):
        if AREA[name] is not None:
            assert fraction[targets == label].mean().item() == pytest.approx(AREA[name], rel=0.03), name
    assert ((columns / rows)[targets == NAMES.index("bar")] > 2).all()
    triangle = targets == NAMES.index("triangle")  # 1.1 times as wide as high, standing on its base
    assert (columns / rows)[triangle].mean().item() == pytest.approx(1.1, abs=0.02)
    for mask in inside[triangle]:
        widths = mask.sum(1)[mask.any(1)]
        assert widths[-2] > 5 * widths[1]
    square = [NAMES.index(name) for name in ("circle", "square", "cross", "ring", "diamond", "saltire")]
    assert ((columns - rows).abs()[torch.isin(targets, torch.tensor(square))] <= 2).all()
    # the saltire is the cross rotated: both diagonals, no centres of edges
    for mask in inside[targets == NAMES.index("saltire")]:
        box = mask[mask.any(1)][:, mask.any(0)]
        middle = box.shape[0] // 2
        assert box[middle, middle] and box[2, 2] and box[-3, 2]
        assert not box[0, middle] and not box[middle, 0]


def test_a_shape_stands_out_in_every_channel_by_64_levels_at_least():
    train = Shapes(size=32, channels=3, num_classes=2, num_train=200, noise=0.0).load().train
    for image in train.images_NCHW.int():
        for channel in image:
            assert channel.max() - channel.min() >= 63


def test_the_noise_has_its_deviation():
    def images(noise):
        return Shapes(channels=1, num_classes=2, num_train=400, noise=noise).load().train.images_NCHW.double()

    plain, noisy = images(0.0), images(8.0)
    middle = (plain > 40) & (plain < 215)  # far enough from 0 and 255
    assert (noisy - plain)[middle].std().item() == pytest.approx(8.0, rel=0.02)
    assert (noisy - plain)[middle].mean().abs() < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 15}, "size=15: must be from 16 to 512"), ({"size": 10**6}, "size=1000000: must be"),
     ({"channels": 0}, "channels=0: must be between 1 and 4"),
     ({"channels": 5}, "channels=5"), ({"num_classes": 1}, "num_classes=1: must be between 2 and 8"),
     ({"num_classes": 9}, "num_classes=9"), ({"num_val": 0}, "num_val=0: must be from 1 to"),
     ({"num_train": 10**9}, "num_train=1000000000: must be from 1 to 10000000"),
     ({"noise": -1.0}, "noise=-1.0: must be at least 0"), ({"split_seed": -1}, "split_seed=-1")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**settings)
