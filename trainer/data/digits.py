"""The 1,797 handwritten digits that ship with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.split import check_split_seed, cut_size, stratified_cut

NUM_IMAGES = 1797


class Digits(DataSet):
    """8x8 grey digits, 10 classes; nothing to download. The values 0..16 become round(v * 255 / 16).

    The test split (`test_fraction` of all samples) is cut first, the validation split (`val_fraction` of all samples)
    from the rest, both stratified, so that `val_fraction` does not affect the test split.

    Source: Optical Recognition of Handwritten Digits, UCI (test set), as in sklearn.datasets.load_digits.
    """

    def __init__(self, val_fraction: float = 0.1, test_fraction: float = 0.1, split_seed: int = 0) -> None:
        check_split_seed(split_seed)
        self.split_seed = split_seed
        self.num_val = cut_size("val_fraction", val_fraction, NUM_IMAGES)
        self.num_test = cut_size("test_fraction", test_fraction, NUM_IMAGES)
        if self.num_val + self.num_test >= NUM_IMAGES:
            raise ValueError(
                f"val_fraction={val_fraction}: must be below 1 - test_fraction ({1 - test_fraction:g}),"
                " to leave samples for training"
            )

    def facts(self) -> DataFacts:
        return DataFacts(
            task="classification",
            input_shape=(1, 8, 8),
            num_outputs=10,
            num_train=NUM_IMAGES - self.num_val - self.num_test,
            num_val=self.num_val,
            num_test=self.num_test,
            class_names=tuple("0123456789"),
        )

    def load(self) -> Splits:
        whole = Part(*_read())
        generator = torch.Generator().manual_seed(self.split_seed)
        rest_indices, test_indices = stratified_cut(whole.targets_N, self.num_test, generator)
        rest = whole.select(rest_indices)
        train_indices, val_indices = stratified_cut(rest.targets_N, self.num_val, generator)
        return Splits(rest.select(train_indices), rest.select(val_indices), whole.select(test_indices))


def _read() -> tuple[Tensor, Tensor]:
    """uint8 images (N, 1, 8, 8) and int64 classes (N,), from the file that `load_digits` reads.

    Each line is 64 pixels and the class. The file is read directly because importing scikit-learn takes half a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise FileNotFoundError("scikit-learn, which contains the digits, is not installed")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(path, dtype=np.int64, delimiter=","))
    images_NCHW = (rows[:, :64].double() * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    return images_NCHW, rows[:, 64].clone()
