"""Folds against the properties of scikit-learn's StratifiedKFold."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold

from trainer.data import Digits
from trainer.data.features import LinearRegression
from trainer.data.folds import Folded, fold_of


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
@pytest.mark.parametrize("sizes", [(50, 50), (7, 31, 12), (10, 11, 12, 13), (100, 1, 2)])
def test_folds_are_stratified_as_scikit_learns(folds: int, sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    targets = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    targets = targets[torch.randperm(len(targets), generator=generator)]
    found = fold_of(targets, folds, generator)
    counts = np.array([torch.bincount(targets[found == fold], minlength=len(sizes)).tolist() for fold in range(folds)])
    assert counts.sum(0).tolist() == list(sizes)  # a partition
    assert (np.ptp(counts, 0) <= 1).all() and np.ptp(counts.sum(1)) <= 1
    if max(sizes) >= folds and min(sizes) >= folds:
        theirs = StratifiedKFold(folds, shuffle=True, random_state=0)
        expected = np.array([np.bincount(targets[test]) for _, test in theirs.split(targets, targets)])
        assert (np.sort(counts, 0) == np.sort(expected, 0)).all()


@pytest.mark.parametrize("make", [lambda: Digits(0.2), lambda: LinearRegression(num_train=50, num_val=9, num_test=5)])
def test_the_test_split_is_held_out_and_every_other_sample_validates_once(make: Callable[[], Digits]) -> None:
    whole = make().load()
    parts = [Folded(make(), fold, 4, False, 0) for fold in range(4)]
    loaded = [part.load() for part in parts]
    for part, splits in zip(parts, loaded, strict=True):
        facts = part.facts()
        assert (len(splits.train), len(splits.val)) == (facts.num_train, facts.num_val)
        assert torch.equal(splits.test.images_NCHW, whole.test.images_NCHW)  # type: ignore[arg-type]
        pooled = torch.cat((splits.train.images_NCHW, splits.val.images_NCHW))  # type: ignore[arg-type]
        both = torch.cat((whole.train.images_NCHW, whole.val.images_NCHW))  # type: ignore[arg-type]
        assert torch.equal(*(x.flatten(1).double().sum(1).sort().values for x in (pooled, both)))
    validated = torch.cat([splits.val.images_NCHW for splits in loaded])  # type: ignore[misc]
    assert torch.equal(*(x.flatten(1).double().sum(1).sort().values for x in (validated, both)))


def test_another_seed_draws_other_folds() -> None:
    targets = torch.arange(40) % 4
    one, same, other = (fold_of(targets, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_validation_set_of_its_own_must_be_pooled_on_purpose() -> None:
    data = Digits()
    data.fixed_validation = True
    with pytest.raises(ValueError, match=r"study\.pool=true, data\.pool=true"):
        Folded(data, 0, 5, False, 0)
    assert Folded(data, 0, 5, True, 0).facts().num_val == 324
