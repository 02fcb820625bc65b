"""The embedded digits against scikit-learn's, and pinned results."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from trainer.data import Digits, digits


def pixel_rows(*parts) -> np.ndarray:
    """Every image with its label as a row, sorted, for comparison as sets."""
    rows = [torch.cat((p.images_NCHW.flatten(1).long(), p.targets_N[:, None]), 1) for p in parts]
    return np.array(sorted(torch.cat(rows).tolist()))


def test_facts_agree_with_what_is_loaded():
    data = Digits()
    facts, splits = data.facts(), data.load()
    assert (facts.num_train, facts.num_val, facts.num_test) == (1437, 180, 180)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1437, 180, 180)
    for split in (splits.train, splits.val, splits.test):
        assert split.images_NCHW.shape == (len(split), *facts.input_shape)
        assert split.images_NCHW.dtype == torch.uint8
        assert split.targets_N.dtype == torch.int64
        assert split.images_NCHW.is_contiguous()
    assert splits.train.targets_N.unique().tolist() == list(range(facts.num_outputs))
    assert (facts.task, len(facts.class_names)) == ("classification", 10)


def test_the_parts_together_are_scikit_learns_digits():
    splits = Digits().load()
    original = load_digits()
    quotients = {v: v * 255 / 16 for v in range(17)}
    levels = np.array([round(quotients[v]) for v in range(17)])  # 8 gives 127.5, which is rounded to the even 128
    pixels = levels[original.data.astype(int)]
    expected = np.array(sorted(np.column_stack((pixels, original.target)).tolist()))
    assert np.array_equal(pixel_rows(splits.train, splits.val, splits.test), expected)


def test_levels_span_the_bytes():
    images = Digits().load().train.images_NCHW
    assert images.unique().tolist() == [
        0,
        16,
        32,
        48,
        64,
        80,
        96,
        112,
        128,
        143,
        159,
        175,
        191,
        207,
        223,
        239,
        255,
    ]


def test_every_part_holds_the_classes_in_proportion():
    splits = Digits().load()
    totals = np.bincount(load_digits().target)
    for split in (splits.val, splits.test):
        excess = torch.bincount(split.targets_N).numpy() - totals * len(split) / 1797
        assert np.abs(excess).max() < 1.1  # rounding to whole samples in two successive cuts


def test_another_validation_share_leaves_the_test_part_alone():
    a, b = Digits().load(), Digits(val_fraction=0.3).load()
    assert torch.equal(a.test.images_NCHW, b.test.images_NCHW)
    assert len(b.val) == 539


def test_split_seed_changes_the_parts_and_nothing_else_does():
    first = Digits().load().checksum()
    torch.manual_seed(12345)
    assert Digits().load().checksum() == first
    assert Digits(split_seed=1).load().checksum() != first


def test_the_parts_are_the_same_on_every_machine_and_version():
    # pinned with torch 2.15 and scikit-learn 1.9
    assert Digits().load().checksum() == "a0dbb9453a17c51d54b9da87e0a0c14bebfb43cdb94cbb70dff919095f05a130"


def test_nothing_is_missing():
    assert Digits().is_present() is True
    assert Digits().check() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_fraction": 0}, "val_fraction=0: must be between 0 and 1"),
        ({"test_fraction": 1.0}, "test_fraction=1.0: must be between 0 and 1"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "val_fraction=0.6: must be below 1 - test_fraction"),
        ({"split_seed": -1}, "split_seed=-1: must be between 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)


def test_images_and_classes_are_those_of_load_digits_in_its_order():
    bunch = load_digits()
    images_NCHW, targets_N = digits._read()
    assert torch.equal(images_NCHW, torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8).unsqueeze(1))
    assert torch.equal(targets_N, torch.from_numpy(bunch.target).to(torch.int64))
    assert images_NCHW.is_contiguous()
