"""Accuracies that the README states for real data."""

from pathlib import Path

import pytest

from trainer import assemble, compose, fit


def test_the_default_run_reads_digits_almost_without_error(tmp_path: Path) -> None:
    result = fit(assemble(compose(["threads=1"]), tmp_path))
    assert result.best is not None
    assert result.test is not None
    assert result.best["metrics"]["val/accuracy"] >= 0.98
    assert result.test["test/accuracy"] >= 0.98


@pytest.mark.slow
def test_lenet_reads_clothes_within_five_epochs(data_root: Path, tmp_path: Path) -> None:
    overrides = ["optimizer=adamw", "schedule=cosine_warmup", "data=fashion_mnist", "model=lenet"]
    result = fit(assemble(compose([*overrides, f"data.root={data_root}"]), tmp_path))
    assert result.epochs <= 5
    assert result.test is not None
    assert result.test["test/accuracy"] >= 0.90
