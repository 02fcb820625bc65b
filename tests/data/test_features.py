"""Blobs and linear regression against closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer import assemble, compose, fit
from trainer.configuration.resolve import resolve
from trainer.data import Blobs, LinearRegression
from trainer.data.features import random_rotation
from trainer.planning.estimate import estimate


def flat(split) -> np.ndarray:
    return split.images_NCHW.flatten(1).double().numpy()


@pytest.mark.parametrize("data", [Blobs(num_features=5, num_train=300), LinearRegression(num_features=5)])
def test_facts_and_data_agree_and_come_again(data):
    facts, splits = data.facts(), data.load()
    assert facts.kind == "features"
    for split, count in ((splits.train, facts.num_train), (splits.val, facts.num_val), (splits.test, facts.num_test)):
        assert split.images_NCHW.shape == (count, *facts.input_shape) == (count, 5, 1, 1)
        assert split.images_NCHW.dtype == torch.float32
        if facts.task == "regression":
            assert split.targets_N.shape == (count, facts.num_outputs)
            assert split.targets_N.dtype == torch.float32
        else:
            assert split.targets_N.unique().tolist() == list(range(facts.num_outputs))
    assert splits.checksum() == data.load().checksum()
    assert splits.checksum() != type(data)(num_features=5, split_seed=1).load().checksum()


# --- blobs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_features", "num_classes"), [(1, 2), (2, 3), (7, 3), (4, 5), (30, 10)])
def test_centres_have_the_distance_asked_for_and_lie_around_zero(num_features, num_classes):
    centres = Blobs(num_features, num_classes, separation=6.0).centres()
    distances = torch.cdist(centres, centres)
    expected = 6.0 * (1 - torch.eye(num_classes, dtype=torch.float64))
    torch.testing.assert_close(distances, expected, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(centres.mean(0), torch.zeros(num_features, dtype=torch.float64))


def test_clusters_have_their_centres_and_unit_covariance():
    data = Blobs(num_features=3, num_classes=4, separation=5.0, num_train=40_000)
    train = data.load().train
    for label, centre in enumerate(data.centres().numpy()):
        cluster = flat(train)[train.targets_N.numpy() == label]
        assert len(cluster) == 10_000
        np.testing.assert_allclose(cluster.mean(0), centre, atol=0.04)
        np.testing.assert_allclose(np.cov(cluster, rowvar=False), np.eye(3), atol=0.05)


def test_the_best_accuracy_of_two_classes_is_that_of_the_normal_distribution():
    splits = Blobs(num_features=3, num_classes=2, separation=2.0, num_train=20_000, num_test=20_000).load()
    model = LinearDiscriminantAnalysis().fit(flat(splits.train), splits.train.targets_N)
    assert model.score(flat(splits.test), splits.test.targets_N) == pytest.approx(norm.cdf(1.0), abs=0.01)


def test_rotations_are_uniformly_distributed():
    turns = torch.stack([random_rotation(3, torch.Generator().manual_seed(seed)) for seed in range(1000)])
    eye = torch.eye(3, dtype=torch.float64).expand(1000, 3, 3)
    torch.testing.assert_close(turns @ turns.mT, eye)
    # entries of a unit vector of random direction: mean 0, variance 1/3
    assert turns.mean(0).abs().max() < 0.08
    torch.testing.assert_close(turns.square().mean(0), torch.full((3, 3), 1 / 3).double(), atol=0.04, rtol=0)


# --- linear regression ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("num_features", "condition"), [(1, 1.0), (2, 1e10), (8, 100.0), (20, 1e6), (3, 1.0)])
def test_the_condition_number_is_the_one_asked_for(num_features, condition, rotated):
    data = LinearRegression(num_features, condition, rotated=rotated, num_train=200)
    inputs = flat(data.load().train)
    values = np.linalg.eigvalsh(inputs.T @ inputs / 200)
    # rounding error of float32
    assert values[-1] / values[0] == pytest.approx(condition, rel=1e-3 if rotated and condition > 1e8 else 1e-6)
    assert values[0] == pytest.approx(1, rel=1e-3)
    deviations = inputs.std(0)
    if rotated and num_features > 1 and condition > 1:
        correlation = np.corrcoef(inputs, rowvar=False) - np.eye(num_features)
        assert np.abs(correlation).max() > 0.1
    else:
        expected = np.geomspace(np.sqrt(condition), 1, num_features)
        np.testing.assert_allclose(deviations, expected, rtol=1e-6)
    np.testing.assert_allclose(inputs.mean(0), 0, atol=1e-6 * np.sqrt(condition))


@pytest.mark.parametrize("rotated", [False, True])
def test_the_weights_are_found_by_least_squares(rotated):
    data = LinearRegression(6, 1e4, rotated=rotated, noise=0.0)
    splits = data.load()
    for split in (splits.train, splits.val, splits.test):
        found, *_ = np.linalg.lstsq(flat(split), split.targets_N[:, 0].double().numpy(), rcond=None)
        np.testing.assert_allclose(found, data.weights().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rotated", [False, True])
def test_signal_and_noise_have_their_size(rotated):
    data = LinearRegression(5, 1e6, rotated=rotated, noise=0.3, num_train=20_000, num_test=20_000)
    splits = data.load()
    signal = flat(splits.train) @ data.weights().numpy()
    assert signal.std() == pytest.approx(1, rel=1e-4 if rotated else 1e-6)
    if not rotated:
        shares = np.square(flat(splits.train).std(0) * data.weights().numpy())
        np.testing.assert_allclose(shares, 1 / 5, rtol=1e-6)
    residual = splits.test.targets_N[:, 0].numpy() - flat(splits.test) @ data.weights().numpy()
    assert residual.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(residual, flat(splits.test)[:, 0])[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [(Blobs, {"num_features": 0}, "num_features=0: must be from 1 to 4096"),
     (LinearRegression, {"num_features": 10**6}, "num_features=1000000: must be from 1 to 4096"),
     (Blobs, {"num_classes": 4}, r"num_classes=4: must be between 2 and num_features \+ 1 \(3\)"),
     (Blobs, {"num_classes": 1}, "num_classes=1"), (Blobs, {"separation": -1.0}, "separation=-1.0: must be at least 0"),
     (Blobs, {"num_train": 0}, "num_train=0: must be from 1 to 10000000"), (Blobs, {"split_seed": -1}, "split_seed=-1"),
     (LinearRegression, {"num_features": 0}, "num_features=0"),
     (LinearRegression, {"condition_number": 0.5}, r"condition_number=0.5: must be between 1 and 1e\+12"),
     (LinearRegression, {"condition_number": float("nan")}, "condition_number=nan"),
     (LinearRegression, {"num_features": 1}, "must be 1 with a single feature"),
     (LinearRegression, {"noise": -0.1}, "noise=-0.1: must be at least 0"),
     (LinearRegression, {"num_features": 10, "num_train": 10}, "num_train=10: must be above num_features=10")],
)  # fmt: skip
def test_bad_settings_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


# --- whole runs -------------------------------------------------------------------------------------------

QUICK = ["threads=1", "early_stopping=null", "every.evaluate=100%", "schedule=constant"]


def test_a_linear_model_reaches_the_best_accuracy_on_blobs(tmp_path):
    overrides = [
        "data=blobs",
        "model=linear",
        "data.num_classes=2",
        "data.separation=2",
        "data.num_test=5000",
        "epochs=20",
    ]
    result = fit(assemble(compose([*overrides, *QUICK, "optimizer.lr=0.01"]), tmp_path))
    assert result.test["test/accuracy"] == pytest.approx(norm.cdf(1.0), abs=0.02)
    assert (tmp_path / "curves.png").is_file()
    shown = EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
    assert shown == ["test/confusion_matrix"], "features are not drawn as images"


REGRESSION = ["data=linear_regression", "model=linear", "loss=mse", "optimizer=sgd", "epochs=30", "data.num_features=4"]


@pytest.mark.parametrize(
    ("overrides", "reaches"),
    [(["optimizer.lr=0.1"], True), (["optimizer.lr=0.1", "data.rotated=true", "preprocessing=pca_whitening"], True),
     (["optimizer.lr=0.1", "data.rotated=true"], False), (["optimizer.lr=1e-11", "preprocessing=none"], False)],
)  # fmt: skip
def test_gradient_descent_needs_a_condition_number_near_one(overrides, reaches, tmp_path):
    """Standardization fixes different scales; correlated features need whitening (CS7150; CUHK ELEG 5491, "Normalizing
    input")."""
    found = fit(assemble(compose([*REGRESSION, *QUICK, *overrides]), tmp_path)).test["test/loss"]
    assert (found < 0.02) == reaches, found
    assert found > 0.009
    assert "test/mae" in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(
    ("overrides", "target"),
    [(["data=blobs"], 8), (["data=linear_regression", "loss=mse"], 4)],
    ids=["blobs", "regression"],
)
def test_a_run_on_features_can_be_planned(overrides, target):
    found = estimate(resolve(compose([*overrides, "model=mlp", "data.num_features=7", "threads=1"])), seconds=0.01)
    assert found.data == 2000 * (4 * 7 + target)
    assert found.step_seconds > 0
