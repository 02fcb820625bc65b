from typing import Any

import pytest
import torch

from trainer.augmentation import Brightness, Crop, GaussianBlur, HorizontalFlip, Pipeline
from trainer.base.randomness import generator_for
from trainer.contracts import Preprocessing
from trainer.parallelism.single import Single
from trainer.preprocessing import Scale, ToFloat
from trainer.samplers import Sequential, Shuffle
from trainer.training.batches import TrainingBatches


def make(batch_size: int = 16, n: int = 100, **changes: object) -> TrainingBatches:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    settings = {
        "batch_size": batch_size, "micro_batch": batch_size, "limit": None, "seed": 0, "sampler": Shuffle(),
        "augmentation": None, "preprocessing": Scale(), "strategy": Single(), "channels_last": False,
        **changes,
    }  # fmt: skip
    return TrainingBatches(images, torch.arange(n), **settings)  # type: ignore[arg-type]


def test_an_epoch_holds_every_sample_once_the_last_batch_ragged() -> None:
    batches = list(make().epoch(0))
    assert [len(b.targets) for b in batches] == [b.num_global for b in batches] == [16] * 6 + [4]
    assert sorted(torch.cat([b.targets for b in batches]).tolist()) == list(range(100))


def test_images_belong_to_their_targets() -> None:
    source = make()
    for batch in source.epoch(1):
        assert torch.equal(batch.images, source.images[batch.targets].float() / 255)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(source: TrainingBatches, epoch: int) -> list[int]:
        return torch.cat([b.targets for b in source.epoch(epoch)]).tolist()

    assert order(make(), 3) == order(make(), 3)
    assert order(make(), 3) != order(make(), 4)
    assert order(make(), 3) != order(make(seed=1), 3)
    assert order(make(batch_size=7), 3) == order(make(), 3)


@pytest.mark.parametrize("seen", [16, 48, 96])
def test_going_on_in_mid_epoch_gives_the_same_bits(seen: int) -> None:
    augmentation = Pipeline(crop=Crop(padding=2), flip=HorizontalFlip(probability=0.5))
    whole = list(make(augmentation=augmentation).epoch(2))
    rest = list(make(augmentation=augmentation).epoch(2, seen))
    assert len(rest) == len(whole) - seen // 16
    for a, b in zip(whole[seen // 16 :], rest, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


def test_blocks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = Pipeline(crop=Crop(padding=2), flip=HorizontalFlip(probability=0.5))
    whole = list(make(augmentation=augmentation).epoch(0))
    monkeypatch.setattr("trainer.training.batches._BLOCK_BYTES", 1)
    single = list(make(augmentation=augmentation).epoch(0))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole, single, strict=True))


def test_a_sample_looks_the_same_in_any_batch_size() -> None:
    augmentation = Pipeline(crop=Crop(padding=2))

    def by_sample(batch_size: int) -> dict[int, torch.Tensor]:
        batches = make(batch_size, augmentation=augmentation).epoch(0)
        return {int(t): image for b in batches for image, t in zip(b.images, b.targets, strict=True)}

    small, large = by_sample(3), by_sample(64)
    assert all(torch.equal(small[key], large[key]) for key in range(100))


def test_a_limit_keeps_so_many_batches() -> None:
    source = make(limit=2)
    assert [len(b.targets) for b in source.epoch(0)] == [16, 16]
    assert source.num_samples == 32


class Twice:
    """Every sample twice, as a sampler with replacement may draw."""

    repeats = True

    def order(self, targets_N: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(len(targets_N)) // 2


def test_a_sample_that_comes_twice_is_augmented_twice() -> None:
    augmentation = Pipeline(crop=Crop(padding=3))
    batches = list(make(n=64, batch_size=64, sampler=Twice(), augmentation=augmentation).epoch(0))
    images = batches[0].images
    different = [not torch.equal(images[i], images[i + 1]) for i in range(0, 64, 2)]
    assert sum(different) > 24  # 1 in 49 pairs has the same offsets


@pytest.mark.parametrize("side", [16, 600])
def test_batches_that_are_kept_are_not_overwritten(side: int) -> None:
    """Their memory is reused, but not while it is referenced."""
    images = torch.randint(0, 256, (30, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = TrainingBatches(
        images, torch.arange(30), batch_size=10, micro_batch=10, limit=None, seed=0, sampler=Sequential(),
        augmentation=None, preprocessing=Scale(), strategy=Single(), channels_last=False,
    )  # fmt: skip
    kept = [batch.images[5:6] for batch in batches.epoch(0)]  # a view keeps the whole batch
    for number, image in enumerate(kept):
        assert torch.equal(image, images[10 * number + 5 : 10 * number + 6].float() / 255)
    del kept, image
    addresses = [{batch.images.untyped_storage().data_ptr() for batch in batches.epoch(epoch)} for epoch in range(4)]
    assert len(set.union(*addresses)) == (2 if side == 600 else 1), "an epoch of small ones is made in one go"


class AsTheyAre(Preprocessing):
    """A user's preprocessing that returns its input."""

    def fit(self, images: Any) -> None:
        pass

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return images_NCHW


@pytest.mark.parametrize("preprocessing", [ToFloat, AsTheyAre])
@pytest.mark.parametrize("further", [[], [Brightness()], [Brightness(), GaussianBlur(), Brightness()]])
def test_augmented_batches_that_are_kept_are_not_overwritten(further: list[Any], preprocessing: Any) -> None:
    """Nor are intermediate tensors: the images that are read, and copies that an operation changes in place."""
    images = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pipeline = Pipeline(crop=Crop(), flip=HorizontalFlip(), **{f"further_{n}": one for n, one in enumerate(further)})
    batches = TrainingBatches(
        images, torch.arange(2000), batch_size=150, micro_batch=150, limit=None, seed=0, sampler=Sequential(),
        augmentation=pipeline, preprocessing=preprocessing(), strategy=Single(), channels_last=False,
    )  # fmt: skip
    table = pipeline.draw(2000, (3, 32, 32), generator_for(0, "augmentation", 3))
    kept = [batch.images for batch in batches.epoch(3)]
    assert torch.equal(torch.cat(kept).float(), pipeline(images, table).float())
