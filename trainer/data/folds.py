"""Folds of the training and validation samples of any data set, for cross-validation."""

from dataclasses import replace

import torch
from torch import Tensor

from trainer.base.checks import check_seed, check_that, check_whole
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.photographs.reading import Photographs


def fold_of(targets_N: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """Return the fold of each sample, int64 (N,) in 0..folds - 1.

    The samples, shuffled and then sorted by class, are dealt to the folds in turn. The sizes of the folds differ by at
    most one, and so do the numbers of samples of a class, as in scikit-learn's StratifiedKFold. Values (float targets)
    have no classes. Uses `torch.randperm` on the CPU and integers, so that the folds are the same everywhere.
    """
    order_N = torch.randperm(len(targets_N), generator=generator)
    if not targets_N.is_floating_point():
        order_N = order_N[targets_N.flatten()[order_N].argsort(stable=True)]
    fold_N = torch.empty_like(order_N)
    fold_N[order_N] = torch.arange(len(order_N)) % folds
    return fold_N


class Folded(DataSet):
    """A data set whose training and validation samples are divided into folds; one fold is the validation split.

    The test split is held out. `fold` in 0..folds - 1; `folds` >= 2, at most the number of samples; `pool`: also if
    the data set has a validation split of its own. `seed` draws the folds. Raises ValueError for other values.
    """

    def __init__(self, data: DataSet, fold: int, folds: int, pool: bool, seed: int) -> None:
        check_whole("folds", folds, 2)
        check_whole("fold", fold, 0, folds - 1)
        check_seed("split_seed", seed)
        must = "joined with the training split (study.pool=true, data.pool=true): it is a set of its own"
        check_that(pool or not data.fixed_validation, "fold", fold, f"of a data set whose validation split is {must}")
        self.data, self.fold, self.folds, self.seed = data, fold, folds, seed
        self.workers, self.short_side = data.workers, data.short_side

    def facts(self) -> DataFacts:
        facts = self.data.facts()
        pooled = facts.num_train + facts.num_val
        check_that(self.folds <= pooled, "folds", self.folds, f"at most {pooled}, the samples outside the test split")
        num_val = len(range(self.fold, pooled, self.folds))
        return replace(facts, num_train=pooled - num_val, num_val=num_val)

    def load(self) -> Splits:
        splits = self.data.load()
        targets_N = torch.cat((splits.train.targets_N, splits.val.targets_N))
        fold_N = fold_of(targets_N, self.folds, torch.Generator().manual_seed(self.seed))
        train, val = (self._part(splits, targets_N, chosen) for chosen in (fold_N != self.fold, fold_N == self.fold))
        return Splits(train, val, splits.test)

    def _part(self, splits: Splits, targets_N: Tensor, is_chosen_N: Tensor) -> Part:
        indices = is_chosen_N.nonzero().flatten()
        one, other = splits.train.images_NCHW, splits.val.images_NCHW
        if isinstance(one, Photographs) or isinstance(other, Photographs):
            assert isinstance(one, Photographs) and isinstance(other, Photographs)
            return Part(one.joined(other).subset(indices), targets_N[indices])
        return Part(torch.cat((one, other))[indices], targets_N[indices])

    def is_present(self) -> bool:
        return self.data.is_present()

    def check(self) -> None:
        self.data.check()

    def storage(self) -> dict[str, str]:
        return self.data.storage()

    def room(self) -> float | None:
        return self.data.room()

    def memory_taken(self) -> int | None:
        return self.data.memory_taken()

    def seconds_to_read(self) -> float | None:
        return self.data.seconds_to_read()
