"""Batches in which batch norm would have a single sample, and so no variance, are found before a run."""

from pathlib import Path

import pytest

from trainer import assemble, compose, fit
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve

DATA = ["data=synthetic", "data.size=16", "data.num_val=10", "data.num_test=10"]
ALONE = {
    "the last batch": ["data.num_train=65", "batch_size=64"],
    "every batch": ["data.num_train=30", "batch_size=1"],
    "the last part of the last batch": ["data.num_train=37", "batch_size=20", "micro_batch=4"],
    "the last part of every batch": ["data.num_train=50", "batch_size=10", "accumulate=4"],
}
TOGETHER = {
    "steps end before it": ["model=lenet", "data.num_train=65", "steps=1"],
    "a limit leaves it out": ["model=lenet", "data.num_train=65", "epochs=1", "limit_batches=1"],
    "a model without batch norm": ["model=linear", "data.num_train=65", "epochs=1"],
    "batch norm over places": ["model=resnet20", "data.num_train=17", "batch_size=16", "epochs=1"],
}


@pytest.mark.parametrize("name", ALONE)
def test_a_sample_alone_is_found_before_the_run(name: str) -> None:
    overrides = [*DATA, "model=lenet", "epochs=1"]
    with pytest.raises(ConfigurationError, match=r"computed alone.*; batch_size=\d+ avoids this") as caught:
        resolve(compose([*overrides, *ALONE[name]]))
    advised = str(caught.value).rpartition("batch_size=")[2].split()[0]
    others = [override for override in ALONE[name] if not override.startswith("batch_size=")]
    resolve(compose([*overrides, *others, f"batch_size={advised}"]))


@pytest.mark.parametrize("name", TOGETHER)
def test_what_is_computed_together_runs(name: str, tmp_path: Path) -> None:
    assert fit(assemble(compose([*DATA, *TOGETHER[name]]), tmp_path)).status == "completed"
