"""Mixup and cutmix against torchvision with the same draws, over whole batches of a run."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision.transforms import v2

from trainer.augmentation import Crop, CutMix, MixUp, Pipeline
from trainer.augmentation.operation import Rows
from trainer.losses import MSE, CrossEntropy
from trainer.metrics import correct, correct_top5
from trainer.parallelism.single import Single
from trainer.preprocessing import Scale
from trainer.samplers import Sequential, Shuffle
from trainer.training.batches import TrainingBatches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator())


def batches(augmentation: Any, sampler: Any = None, strategy: Any = None) -> TrainingBatches:
    return TrainingBatches(
        pixels(), torch.arange(20) % 7, batch_size=8, micro_batch=8, limit=None, seed=3, num_classes=7,
        sampler=sampler or Sequential(), augmentation=augmentation, preprocessing=Scale(),
        strategy=strategy or Single(), channels_last=False,
    )  # fmt: skip


def table_of(augmentation: Pipeline) -> Rows:
    from trainer.base.randomness import generator_for

    return augmentation.draw(20, (3, 32, 32), generator_for(3, "augmentation", 0))


@pytest.mark.proves("MixUp", reference="torchvision v2's MixUp with the same share", tolerance="1e-6")
def test_mixup_is_torchvision_s_with_the_same_share() -> None:
    augmentation = Pipeline(mixup=MixUp(alpha=0.4))
    lams = table_of(augmentation)["mixup.lam"]
    start = 0
    for images, targets, count, indices in batches(augmentation).epoch(0):
        plain, labels = pixels()[indices].float() / 255, indices % 7
        for i in range(count):
            lam = float(lams[start + i])
            params = {"lam": lam, "batch_size": count, "labels": labels}
            transform = v2.MixUp(num_classes=7)
            expected = transform.transform(plain.clone(), params)
            distribution = transform.transform(labels, params)
            torch.testing.assert_close(images[i], expected[i], rtol=0, atol=1e-6)
            torch.testing.assert_close(targets[i], distribution[i].to(torch.float32), rtol=0, atol=1e-6)
        start += count
    assert start == 20


@pytest.mark.proves("CutMix", reference="torchvision v2's CutMix with the same box", tolerance="bitwise; labels 1e-6")
def test_cutmix_is_torchvision_s_with_the_same_box() -> None:
    augmentation = Pipeline(cutmix=CutMix())
    table = table_of(augmentation)
    seen = 0
    for images, targets, count, indices in batches(augmentation).epoch(0):
        plain, labels = pixels()[indices].float() / 255, indices % 7
        for i in range(count):
            x1, x2, y1, y2 = (int(table[f"cutmix.{key}"][indices[i]]) for key in ("x_from", "x_to", "y_from", "y_to"))
            lam = 1 - (x2 - x1) * (y2 - y1) / 1024
            transform = v2.CutMix(num_classes=7)
            params = {"box": (x1, y1, x2, y2), "lam_adjusted": lam, "batch_size": count, "labels": labels}
            assert torch.equal(images[i], transform.transform(plain.clone(), params)[i])
            distribution = transform.transform(labels, params)[i]
            torch.testing.assert_close(targets[i], distribution.to(torch.float32), rtol=0, atol=1e-6)
            seen += int(lam < 1)
    assert seen > 10


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    lams = MixUp(alpha=alpha).draw(4000, (3, 32, 32), generator())["lam"]
    assert stats.kstest(lams.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    """Distribution of the box area against torchvision's own draws."""
    table = CutMix().draw(3000, (3, 32, 32), generator())
    area = (table["y_to"] - table["y_from"]) * (table["x_to"] - table["x_from"])
    torch.manual_seed(0)
    transform = v2.CutMix(num_classes=2)
    theirs = []
    for _ in range(3000):
        x1, y1, x2, y2 = transform.make_params([torch.empty(2, 3, 32, 32)])["box"]
        theirs.append((x2 - x1) * (y2 - y1))
    assert stats.ks_2samp(area.numpy(), theirs).pvalue > 0.01


@pytest.mark.parametrize("operation", [MixUp(probability=0.0), CutMix(probability=0.0)])
def test_what_is_not_mixed_is_the_same(operation: Any) -> None:
    mixed = list(batches(Pipeline(mix=operation)).epoch(0))
    plain = list(batches(None).epoch(0))
    for one, other in zip(mixed, plain, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, F.one_hot(other.targets, 7).float())


@pytest.mark.parametrize("operation", [MixUp(), CutMix()])
def test_ranks_mix_with_samples_of_other_ranks(operation: Any) -> None:
    class Half(Single):
        world_size = 2

        def __init__(self, rank: int) -> None:
            super().__init__()
            self._rank = rank

        def shard(self, count: int) -> slice:
            return slice(0, count // 2) if self._rank == 0 else slice(count // 2, count)

    augmentation = Pipeline(crop=Crop(), mix=operation)
    whole = list(batches(augmentation, Shuffle()).epoch(0))
    halves = [list(batches(augmentation, Shuffle(), Half(rank)).epoch(0)) for rank in (0, 1)]
    for one, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(one.images, torch.cat((first.images, second.images)))
        assert torch.equal(one.targets, torch.cat((first.targets, second.targets)))


def test_cross_entropy_of_mixed_labels_is_the_mixed_cross_entropy() -> None:
    outputs = torch.randn(9, 7, generator=generator(), dtype=torch.float64)
    one, other = torch.arange(9) % 7, torch.arange(9) % 5
    lam = torch.rand(9, generator=generator(1), dtype=torch.float64)
    soft = lam[:, None] * F.one_hot(one, 7) + (1 - lam[:, None]) * F.one_hot(other, 7)
    each = CrossEntropy().each(outputs, soft)
    mixed = lam * CrossEntropy().each(outputs, one) + (1 - lam) * CrossEntropy().each(outputs, other)
    torch.testing.assert_close(each, mixed)
    torch.testing.assert_close(CrossEntropy()(outputs, soft), each.sum())
    torch.testing.assert_close(MSE()(outputs, soft), (outputs - soft).square().mean(1).sum())


def test_accuracy_counts_the_class_that_a_mixed_sample_has_most_of() -> None:
    outputs = torch.eye(7)[[0, 1, 2]]
    soft = torch.tensor([[0.6, 0.4, 0, 0, 0, 0, 0], [0.6, 0.4, 0, 0, 0, 0, 0], [0, 0.1, 0.9, 0, 0, 0, 0]])
    assert int(correct(outputs, soft)) == 2
    assert int(correct_top5(outputs, soft)) == 3


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": -1.0}, {"probability": 1.5}])
@pytest.mark.parametrize("operation", [MixUp, CutMix])
def test_bad_arguments(operation: Any, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        operation(**settings)


def test_one_operation_mixes() -> None:
    with pytest.raises(ValueError, match=r"^a, b: only one operation can mix"):
        Pipeline(a=MixUp(), b=CutMix())
