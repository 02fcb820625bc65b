"""Synthetic feature data sets with a known best solution: float32 features (D, 1, 1) instead of images."""

import math

import torch
from torch import Tensor

from trainer.base.checks import check_number, check_that, check_whole
from trainer.base.randomness import generator_for
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.split import check_split_seed
from trainer.data.synthetic import check_counts, shuffled_classes

_MOST_FEATURES = 4096
_MOST_CONDITION = 1e12  # float32 features cannot represent a larger one


class Blobs(DataSet):
    """Gaussian clusters: x ~ N(m_c, I), one for each class, in `num_features` dimensions.

    The centres m_c are at distance `separation` from one another (a regular simplex around 0, rotated at random), in
    units of a cluster's standard deviation. The best classifier is linear; with two classes its accuracy is
    Phi(separation / 2). Every split has equally many samples of each class (plus or minus one).

    Raises ValueError for features other than 1 to 4096, fewer than 2 classes or more than num_features + 1, a negative
    separation, splits other than of 1 to 10^7 samples.
    """

    def __init__(
        self,
        num_features: int = 2,
        num_classes: int = 3,
        separation: float = 4.0,
        num_train: int = 1000,
        num_val: int = 500,
        num_test: int = 500,
        split_seed: int = 0,
    ) -> None:
        check_whole("num_features", num_features, 1, _MOST_FEATURES)
        most = f"num_features + 1 ({num_features + 1}), for equidistant centres"
        check_whole("num_classes", num_classes, 2, num_features + 1, must=f"between 2 and {most}")
        check_number("separation", separation, 0, must="at least 0, and finite")
        check_counts(num_train=num_train, num_val=num_val, num_test=num_test)
        check_split_seed(split_seed)
        self.num_features, self.num_classes, self.separation = num_features, num_classes, separation
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        self.split_seed = split_seed

    def facts(self) -> DataFacts:
        return DataFacts(
            "classification", (self.num_features, 1, 1), self.num_classes,
            self.counts["train"], self.counts["val"], self.counts["test"], kind="features",
        )  # fmt: skip

    def centres(self) -> Tensor:
        """The cluster centres, float64 (C, D)."""
        # coordinates of the simplex's corners, e_c - mean, in the C - 1 dimensions that they span
        corners_CC = torch.eye(self.num_classes, dtype=torch.float64) - 1 / self.num_classes
        left, values, _ = torch.linalg.svd(corners_CC)
        corners = left[:, : self.num_classes - 1] * values[: self.num_classes - 1]
        turn_DD = random_rotation(self.num_features, generator_for(self.split_seed, "blobs/centres"))
        centres_CD: Tensor = self.separation / math.sqrt(2) * corners @ turn_DD[: self.num_classes - 1]
        return centres_CD

    def load(self) -> Splits:
        return Splits(*(self._part(name, count) for name, count in self.counts.items()))

    def _part(self, name: str, count: int) -> Part:
        generator = generator_for(self.split_seed, f"blobs/{name}")
        targets_N = shuffled_classes(count, self.num_classes, generator)
        noise_ND = torch.randn(count, self.num_features, generator=generator, dtype=torch.float64)
        return Part(as_features(self.centres()[targets_N] + noise_ND), targets_N)


class LinearRegression(DataSet):
    """y = X w + noise, with a given condition number lambda_max / lambda_min of X^T X / N over the training split.

    The training split's features have mean 0, are uncorrelated, and have standard deviations in a geometric sequence
    from sqrt(condition_number) down to 1: for 1e10, from 1e5 to 1. This is exact for the training split and holds in
    expectation for the others. `rotated` rotates the features at random, which preserves the condition number but
    leaves no feature that standardizing could help. Each original feature contributes equally to the variance of X w,
    which is 1; `noise` is the standard deviation of the noise, so that the best mean squared error is noise^2.

    Source: CS7150, "The effect of unnormalized feature". Raises ValueError for features other than 1 to 4096, a
    condition number outside 1..1e12 (or other than 1 with one feature), negative noise, splits other than of 1 to 10^7
    samples, num_train not above num_features.
    """

    def __init__(
        self,
        num_features: int = 2,
        condition_number: float = 1e10,
        rotated: bool = False,
        noise: float = 0.1,
        num_train: int = 1000,
        num_val: int = 500,
        num_test: int = 500,
        split_seed: int = 0,
    ) -> None:
        check_whole("num_features", num_features, 1, _MOST_FEATURES)
        must = f"between 1 and {_MOST_CONDITION:g}"
        check_number("condition_number", condition_number, 1, _MOST_CONDITION, must=must)
        is_possible = num_features > 1 or condition_number == 1
        check_that(is_possible, "condition_number", condition_number, "1 with a single feature")
        check_number("noise", noise, 0, must="at least 0, and finite")
        check_counts(num_train=num_train, num_val=num_val, num_test=num_test)
        check_that(num_train > num_features, "num_train", num_train, f"above num_features={num_features}")
        check_split_seed(split_seed)
        self.num_features, self.condition_number, self.rotated = num_features, condition_number, rotated
        self.noise, self.split_seed = noise, split_seed
        self.counts = {"train": num_train, "val": num_val, "test": num_test}

    def facts(self) -> DataFacts:
        return DataFacts(
            "regression", (self.num_features, 1, 1), 1,
            self.counts["train"], self.counts["val"], self.counts["test"], kind="features",
        )  # fmt: skip

    def weights(self) -> Tensor:
        """The true weights w, float64 (D,)."""
        generator = generator_for(self.split_seed, "linear_regression/weights")
        signs_D = 2 * torch.randint(2, (self.num_features,), generator=generator).double() - 1
        return self._turn() @ (signs_D / math.sqrt(self.num_features) / self._deviations())

    def load(self) -> Splits:
        return Splits(*(self._part(name, count) for name, count in self.counts.items()))

    def _part(self, name: str, count: int) -> Part:
        generator = generator_for(self.split_seed, f"linear_regression/{name}")
        plain_ND = torch.randn(count, self.num_features, generator=generator, dtype=torch.float64)
        if name == "train":
            plain_ND = torch.linalg.qr(plain_ND - plain_ND.mean(0)).Q * math.sqrt(count)
        images = as_features(plain_ND * self._deviations() @ self._turn().T)
        noise_N = self.noise * torch.randn(count, generator=generator, dtype=torch.float64)
        values_N = images.flatten(1).double() @ self.weights() + noise_N
        return Part(images, values_N.float().unsqueeze(1))

    def _deviations(self) -> Tensor:
        exponents_D = torch.linspace(0.5, 0, self.num_features, dtype=torch.float64)
        return torch.tensor(self.condition_number, dtype=torch.float64) ** exponents_D

    def _turn(self) -> Tensor:
        if not self.rotated:
            return torch.eye(self.num_features, dtype=torch.float64)
        return random_rotation(self.num_features, generator_for(self.split_seed, "linear_regression/turn"))


def as_features(values_ND: Tensor) -> Tensor:
    """float32 (N, D, 1, 1)."""
    return values_ND.float()[:, :, None, None].contiguous()


def random_rotation(size: int, generator: torch.Generator) -> Tensor:
    """A uniformly distributed orthogonal matrix (Mezzadri 2007), float64 (size, size)."""
    orthogonal, triangle = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    rotation: Tensor = orthogonal * triangle.diagonal().sign()
    return rotation
