"""Reading of photographs against torchvision v2, one at a time; every cache and number of workers gives the same
images."""

import errno
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from images import encoded, pixels, write_folder
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from tests.torchvision_reference import functional as v2
from trainer.base.errors import DataError
from trainer.data import ImageFolder, Photographs
from trainer.data.photographs.decoding import decode
from trainer.data.photographs.frames import check_frames, evaluation_frames

SIZE = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = {f"{part}/{label}": 20 if part == "train" else 3 for part in ("train", "val", "test") for label in "ab"}
    return write_folder(tmp_path_factory.mktemp("photographs") / "root", layout)


def train_part(folder: Path, **settings: Any) -> Photographs:
    settings = {"size": SIZE, "cache_dir": str(folder.parent / "cache"), "workers": 0} | settings
    images = ImageFolder(str(folder), **settings).load().train.images_NCHW
    assert isinstance(images, Photographs)
    return images


def whole(images: Photographs, index: int) -> Tensor:
    """A photograph in its stored size, (3, height, width)."""
    return torch.from_numpy(images._all.store.reader(images._all.store.ticket(index))).permute(2, 0, 1)


def random_frames(images: Photographs, size: int, seed: int = 0) -> Tensor:
    """Boxes as drawn by torchvision's RandomResizedCrop."""
    torch.manual_seed(seed)
    boxes = [
        RandomResizedCrop.get_params(torch.empty(3, *hw), [0.08, 1], [3 / 4, 4 / 3]) for hw in images.sizes.tolist()
    ]
    return torch.tensor([[*box, size, size, 0, 0] for box in boxes])


@pytest.mark.parametrize("size", [16, 40, 47, 100])
def test_evaluation_is_v2_resize_and_center_crop(folder: Path, size: int) -> None:
    images = train_part(folder, size=size, evaluation_scale=1.15)
    read = next(images.read([(torch.arange(len(images)), None)]))
    for index in range(len(images)):
        resized = v2.resize(whole(images, index), [round(1.15 * size)], antialias=True)
        assert torch.equal(read[index], v2.center_crop(resized, [size, size])), index


@pytest.mark.parametrize("size", [16, 40, 100])
def test_random_frames_are_v2_resized_crop(folder: Path, size: int) -> None:
    images = train_part(folder, size=size)
    frames = random_frames(images, size)
    read = next(images.read([(torch.arange(len(images)), frames)]))
    for index, frame in enumerate(frames.tolist()):
        expected = v2.resized_crop(whole(images, index), *frame[:4], [size, size], antialias=True)
        assert torch.equal(read[index], expected), index


def test_boxes_at_every_border_and_of_one_pixel(folder: Path) -> None:
    images = train_part(folder)
    height, width = images.sizes[0].tolist()
    boxes = [(0, 0, height, width), (height - 1, width - 1, 1, 1), (0, width - 1, 1, 1), (height - 1, 0, 1, 1),
             (0, 0, 1, width), (0, width - 3, height, 3), (height - 2, 0, 2, width - 1), (1, 1, 40, 40)]  # fmt: skip
    for box in boxes:
        for resized, corner in (((40, 40), (0, 0)), ((47, 61), (7, 21)), ((90, 41), (3, 1))):
            frame = torch.tensor([*box, *resized, *corner])
            frames = torch.stack((frame, frame.clone()))
            frames[1, 5] *= -1
            expected = v2.resize(v2.crop(whole(images, 0), *box), list(resized), antialias=True)
            expected = v2.crop(expected, *corner, SIZE, SIZE)
            read, mirrored = next(images.read([(torch.tensor([0, 0]), frames)]))
            assert torch.equal(read, expected), (box, resized)
            assert torch.equal(mirrored, v2.horizontal_flip(expected)), (box, resized)


def test_a_frame_of_the_same_size_is_cut_out(folder: Path) -> None:
    images = train_part(folder)
    height, width = images.sizes[3].tolist()
    box = [2, 1, height - 2, width - 1]
    frames = torch.tensor([[*box, height - 2, width - 1, 3, 4], [*box, height - 2, 1 - width, 3, 4]])
    read, mirrored = next(images.read([(torch.tensor([3, 3]), frames)]))
    assert torch.equal(read, whole(images, 3)[:, 5:45, 5:45])
    assert torch.equal(mirrored, whole(images, 3)[:, 5:45, 5:45].flip(2))


@pytest.mark.parametrize("sizes", [(224, 256), (32, 32), (5, 9)])
def test_evaluation_frames_at_sizes_that_round(sizes: tuple[int, int]) -> None:
    size, short_side = sizes
    for height, width in ((300, 451), (451, 300), (333, 500), (1, 1), (7, 7), (50, 49), (1, 30)):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        frame = evaluation_frames(torch.tensor([[height, width]]), size, short_side)
        expected = v2.center_crop(v2.resize(image, [short_side], antialias=True), [size, size])
        resized = v2.resize(image, frame[0, 4:6].tolist(), antialias=True)
        assert torch.equal(v2.crop(resized, *frame[0, 6:].tolist(), size, size), expected)
        check_frames(frame, torch.tensor([[height, width]]), size)


WAYS: dict[str, dict[str, Any]] = {
    "decoded": {},
    "encoded": {"memory_limit": "300kB"},
    "encoded, workers": {"memory_limit": "300kB", "workers": 2},
    "files": {"cache": "none"},
    "files, a worker": {"cache": "none", "workers": 1},
    "files, workers": {"cache": "none", "workers": 2},
    "disk": {"cache": "disk", "workers": 2},
}


def requests(images: Photographs, frames: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of several sizes, including an empty one and some without frames, in a shuffled order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    for indices in (order[:17], order[17:20], order[:0], order[20:], order.repeat(2)):
        yield indices, frames[indices]
    yield order[:18], None


def test_every_way_gives_the_same_bits(folder: Path) -> None:
    results, layouts = {}, {}
    for name, settings in WAYS.items():
        images = train_part(folder, **settings)
        layouts[name] = images._all.store.layout
        frames = random_frames(images, SIZE)
        frames[::3, 5] *= -1
        results[name] = list(images.read(requests(images, frames)))
        assert [len(batch) for batch in results[name]] == [17, 3, 0, 20, 80, 18]
        assert all(batch.shape[1:] == (3, SIZE, SIZE) and batch.is_contiguous() for batch in results[name])
    for name, batches in results.items():
        assert name.startswith(layouts[name].split()[0]) or layouts[name] in ("decoded on disk", "in files")
        for batch, expected in zip(batches, results["decoded"], strict=True):
            assert torch.equal(batch, expected), name
    assert set(layouts.values()) == {"decoded in memory", "encoded in memory", "in files", "decoded on disk"}


def test_an_image_does_not_depend_on_its_batch(folder: Path) -> None:
    images = train_part(folder)
    frames = random_frames(images, SIZE)
    together = next(images.read([(torch.arange(len(images)), frames)]))
    for index in range(len(images)):
        assert torch.equal(next(images.read([(torch.tensor([index]), frames[index : index + 1])]))[0], together[index])


def test_threads_change_nothing(folder: Path) -> None:
    images = train_part(folder)
    alone = images[:]
    torch.set_num_threads(3)
    try:
        assert torch.equal(images[:], alone)
    finally:
        torch.set_num_threads(1)


def test_photographs_are_indexed_as_a_tensor_is(folder: Path) -> None:
    images = train_part(folder)
    everything = images[:]
    assert images.shape == everything.shape == (40, 3, SIZE, SIZE)
    assert images.dtype is everything.dtype is torch.uint8
    assert len(images) == 40
    for index in (slice(3, 9), slice(0, 0), slice(38, 99), torch.tensor([5, 2, 5]), 7, -1):
        assert torch.equal(images[index], everything[index])


def test_sizes_are_those_of_the_files(folder: Path) -> None:
    images = train_part(folder, cache="none")
    names = [images._all.names[n] for n in images._numbers_N]
    expected = []
    for name in names:
        with Image.open(folder / name) as image:
            expected.append([image.height, image.width])
    assert images.sizes.tolist() == expected
    assert images.sizes.dtype == torch.int64


def test_max_side_is_what_is_stored(folder: Path) -> None:
    for settings in ({}, {"cache": "none"}):
        images = train_part(folder, max_side=20, **settings)
        assert images.sizes.min(1).values.tolist() == [20] * 40
        expected = decode((folder / images._all.names[5]).read_bytes(), 20)
        assert torch.equal(whole(images, 5), torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize(
    "frame",
    [
        [-1, 0, 9, 9, 40, 40, 0, 0],
        [0, 0, 999, 9, 40, 40, 0, 0],
        [0, 60, 9, 99, 40, 40, 0, 0],
        [0, 0, 0, 9, 40, 40, 0, 0],
        [0, 0, 9, 9, 39, 40, 0, 0],
        [0, 0, 9, 9, 50, 50, 0, 11],
        [0, 0, 9, 9, 50, 50, -1, 0],
        [0, 0, 9, 9, 50, -50, 0, 11],
        [0, 0, 9, 9, -50, 50, 0, 0],
    ],
)
def test_frames_that_do_not_fit_are_refused(folder: Path, frame: list[int]) -> None:
    images = train_part(folder)
    good = [0, 0, 9, 9, 40, 40, 0, 0]
    with pytest.raises(ValueError, match=r"^frame .* does not fit a photograph of \["):
        list(images.read([(torch.tensor([0, 1]), torch.tensor([good, frame]))]))
    with pytest.raises(ValueError, match="must be int64"):
        list(images.read([(torch.tensor([0]), torch.tensor([good]).float())]))


def test_requests_are_taken_as_they_are_needed(folder: Path) -> None:
    taken = []

    def endless(images: Photographs) -> Iterator[tuple[Tensor, None]]:
        while True:
            taken.append(1)
            yield torch.arange(10), None

    for settings, most in (({}, 1), ({"cache": "none", "workers": 1}, 4)):
        images = train_part(folder, **settings)
        taken.clear()
        batches = images.read(endless(images))
        next(batches)
        assert len(taken) <= most
        batches.close()  # type: ignore[attr-defined]
        assert not [p for p in multiprocessing.active_children() if p.name == "photographs"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_changes_is_named(tmp_path: Path, workers: int) -> None:
    folder = write_folder(tmp_path / "root", {"train/a": 9, "train/b": 9})
    images = train_part(folder, cache="none", workers=workers)
    name = images._all.names[int(images._numbers_N[4])]
    (folder / name).write_bytes(encoded(Image.fromarray(pixels(48, 64, seed=99))))
    changed, advice = "has changed since its checksum was taken", "restore it and resume, or start a new run"
    with pytest.raises(DataError, match=rf"^data: {name}: {changed}; {advice}$"):
        list(images.read([(torch.arange(len(images)), None)]))
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"^data: {name}: {changed}: it cannot be read: no such file.*; {advice}$"):
        list(images.read([(torch.arange(len(images)), None)]))


def test_without_shared_memory_this_process_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    images = train_part(folder, cache="none", workers=2)
    expected = images[:]
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert torch.equal(next(images.read([(torch.arange(40), None)])), expected)
    assert [r.message for r in caplog.records] == [
        "photographs are read without workers: [Errno 28] No space left on device"
    ]
    caplog.clear()
    streaming = train_part(folder, memory_limit="300kB")
    assert streaming._all.store.layout == "in files"
    assert "not enough memory for the encoded photographs" in caplog.text
    assert torch.equal(streaming[:], expected)


def test_flowers_are_read_as_torchvision_does(data_root: Path) -> None:
    images = train_part(data_root / "flowers", size=224, cache="none")
    frames = random_frames(images, 224)
    indices = torch.arange(0, len(images), 40)
    read, evaluated = images.read([(indices, frames[indices]), (indices, None)])
    for row, index in enumerate(indices.tolist()):
        photograph = whole(images, int(images._numbers_N[index]))
        expected = v2.resized_crop(photograph, *frames[index, :4].tolist(), [224, 224], antialias=True)
        assert torch.equal(read[row], expected)
        resized = v2.resize(photograph, [256], antialias=True)
        assert torch.equal(evaluated[row], v2.center_crop(resized, [224, 224]))
