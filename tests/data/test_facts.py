"""Facts of data sets, and the splits that they load."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.data import Part, Splits


def tiny_splits() -> Splits:
    pixels = torch.arange(6 * 4, dtype=torch.uint8).view(6, 1, 2, 2)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    whole = Part(pixels, labels)
    return Splits(*(whole.select(torch.tensor(indices)) for indices in ([0, 1, 2], [3, 4], [5])))


def test_select_copies_the_samples_in_the_order_asked_for():
    split = tiny_splits().train
    chosen = split.select(torch.tensor([2, 0]))
    assert chosen.images_NCHW[:, 0, 0, 0].tolist() == [8, 0]
    assert chosen.targets_N.tolist() == [0, 0]
    chosen.images_NCHW.zero_()
    assert split.images_NCHW[2, 0, 0, 0] == 8
    assert len(chosen) == 2


def test_checksum_is_that_of_equal_content():
    assert tiny_splits().checksum() == "c629bdd1c4045e2e4b65788b7794faa17ddcd599f0249a138d1238a595fa7492"
    assert tiny_splits().checksum() == tiny_splits().checksum()


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("tensor", ["images_NCHW", "targets_N"])
def test_checksum_sees_one_changed_value(split, tensor):
    splits = tiny_splits()
    getattr(getattr(splits, split), tensor).view(-1)[0] += 1
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


class Copies(TorchDispatchMode):
    """Records the most bytes that one operation has allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if tensor.untyped_storage().data_ptr() not in given:
                self.most = max(self.most, tensor.untyped_storage().nbytes())
        return made


def test_checksum_copies_a_little_at_a_time_of_images_that_lie_apart():
    pixels = (torch.arange(3000 * 3 * 32 * 32) % 251).to(torch.uint8).view(3000, 3, 32, 32)
    apart = torch.zeros(3000, 3, 36, 36, dtype=torch.uint8)[..., :32, 2:34].copy_(pixels)
    others = Part(pixels[:5], torch.arange(5)), Part(pixels[:0], torch.arange(0))
    with Copies() as copies:
        found = Splits(Part(apart, torch.arange(3000)), *others).checksum()
    # the checksum of earlier versions, which environment.json of existing runs contains
    assert found == "db386bea44b171fa5ff03b8c10af9828b649ccbc7a2153a189e093c8a76723f4"
    assert Splits(Part(pixels, torch.arange(3000)), *others).checksum() == found
    assert 1 << 20 < copies.most <= 4 << 20 < pixels.nbytes


def test_importing_the_components_imports_no_heavy_library():
    code = (
        "import sys, trainer.data, trainer.preprocessing, trainer.samplers, trainer.augmentation;"
        "print([m for m in ('torchvision', 'sklearn', 'scipy', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
