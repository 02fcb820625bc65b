"""k-fold cross-validation."""

import math
from pathlib import Path

from trainer.base.checks import check_whole
from trainer.studies.study import Member, Scores, Study


class KFold(Study):
    """One run for each of k folds of the training and validation samples, which is its validation split.

    The test split is held out of all of them, and not evaluated. `folds`: k >= 2; `pool`: also if the data set has a
    validation split of its own. Source: UVic PHYS 555, "Cross-validation". Raises ValueError for other values.
    """

    def __init__(self, folds: int = 5, pool: bool = False) -> None:
        self.folds, self.pool = check_whole("folds", folds, 2), pool

    def members(self, folder: Path) -> list[Member]:
        pool = ("data.pool=true",) if self.pool else ()
        return [
            Member(f"fold={fold}", (f"data.fold={fold}", f"data.folds={self.folds}", *pool))
            for fold in range(self.folds)
        ]

    def summary(self, scores: Scores) -> dict[str, dict[str, float]]:
        """Mean and standard deviation (n - 1) over the folds of each metric."""
        if not scores:
            return {}
        names = [name for name in next(iter(scores.values())) if all(name in values for values in scores.values())]
        columns = {name: [values[name] for values in scores.values()] for name in names}
        mean = {name: math.fsum(column) / len(column) for name, column in columns.items()}
        rows = {"mean": mean}
        if len(scores) > 1:
            squares = {name: math.fsum((v - mean[name]) ** 2 for v in column) for name, column in columns.items()}
            rows["standard deviation"] = {name: math.sqrt(value / (len(scores) - 1)) for name, value in squares.items()}
        return rows
