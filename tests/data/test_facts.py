"""What data sets say and hand over."""

import subprocess
import sys

import pytest
import torch

from trainer.data import Part, Splits


def tiny_splits() -> Splits:
    pixels = torch.arange(6 * 4, dtype=torch.uint8).view(6, 1, 2, 2)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    whole = Part(pixels, labels)
    return Splits(*(whole.select(torch.tensor(indices)) for indices in ([0, 1, 2], [3, 4], [5])))


def test_select_copies_the_samples_in_the_order_asked_for():
    part = tiny_splits().train
    chosen = part.select(torch.tensor([2, 0]))
    assert chosen.images_NCHW[:, 0, 0, 0].tolist() == [8, 0]
    assert chosen.targets_N.tolist() == [0, 0]
    chosen.images_NCHW.zero_()
    assert part.images_NCHW[2, 0, 0, 0] == 8
    assert len(chosen) == 2


def test_checksum_is_that_of_equal_content():
    assert tiny_splits().checksum() == tiny_splits().checksum()
    assert len(tiny_splits().checksum()) == 64


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("tensor", ["images_NCHW", "targets_N"])
def test_checksum_sees_one_changed_value(part, tensor):
    splits = tiny_splits()
    getattr(getattr(splits, part), tensor).view(-1)[0] += 1
    assert splits.checksum() != tiny_splits().checksum()


def test_checksum_sees_where_a_part_ends():
    a = tiny_splits()
    moved = Splits(
        Part(
            torch.cat((a.train.images_NCHW, a.val.images_NCHW)),
            torch.cat((a.train.targets_N, a.val.targets_N)),
        ),
        Part(a.val.images_NCHW[:0], a.val.targets_N[:0]),
        a.test,
    )
    assert moved.checksum() != a.checksum()


def test_checksum_does_not_depend_on_the_memory_layout():
    a = tiny_splits()
    strided = Part(a.train.images_NCHW.transpose(2, 3).contiguous().transpose(2, 3), a.train.targets_N)
    assert not strided.images_NCHW.is_contiguous()
    assert Splits(strided, a.val, a.test).checksum() == a.checksum()


def test_importing_the_components_imports_no_heavy_library():
    code = (
        "import sys, trainer.data, trainer.preprocessing, trainer.samplers, trainer.augmentation;"
        "print([m for m in ('torchvision', 'sklearn', 'scipy', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
