"""Runs on real photographs and clothes with every preset: read by workers in each epoch, and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallelism.harness import advance, difference, make, state_of
from tests.training.test_input import IN_TURN
from trainer.storage import checkpoint
from trainer.training.evaluation import evaluate
from trainer.training.state import capture, restore

pytestmark = pytest.mark.slow
NET = ["model=lenet", "model.channels=[4,8]", "model.hidden=[16]", "batch_size=32", "threads=1", "epochs=3"]


def photographs(root: Path, *more: str) -> list[str]:
    flowers = ["data=image_folder", f"data.root={root / 'flowers'}", "data.size=64", "data.cache=none"]
    return [*flowers, *NET, "limit_batches=3", *more]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return max(difference(one, other).values()) == 0.0


@pytest.mark.parametrize("preset", IN_TURN["augmentation"])
def test_photographs_through_workers_or_not_interrupted_or_not_are_the_same(
    preset: str, data_root: Path, tmp_path: Path
) -> None:
    whole = make(photographs(data_root, f"augmentation={preset}", "data.workers=2"))
    wanted = {"losses": advance(whole, 7), **state_of(whole)}
    assert all(torch.isfinite(p).all() for p in whole.model.parameters())
    first = make(photographs(data_root, f"augmentation={preset}", "data.workers=0"))
    losses = advance(first, 4)  # in the second epoch
    checkpoint.save(tmp_path / "last.pt", capture(first))
    again = make(photographs(data_root, f"augmentation={preset}", "data.workers=2"))
    restore(again, checkpoint.load(tmp_path / "last.pt"))
    assert same(wanted, {"losses": losses + advance(again, 3), **state_of(again)})


@pytest.mark.parametrize("sampler", IN_TURN["sampler"])
def test_every_sampler_reads_photographs(sampler: str, data_root: Path) -> None:
    runs = [make(photographs(data_root, f"sampler={sampler}", f"data.workers={count}")) for count in (0, 2)]
    one, other = ({"losses": advance(run, 7), **state_of(run)} for run in runs)
    assert same(one, other)
    first, second = (evaluate(run, run.splits.val, "val") for run in runs)
    assert first == second


@pytest.mark.parametrize("preset", IN_TURN["augmentation"])
def test_every_preset_trains_on_clothes(preset: str, data_root: Path) -> None:
    run = make(["data=fashion_mnist", f"data.root={data_root}", *NET, f"augmentation={preset}", "limit_batches=20"])
    losses = advance(run, 60)
    assert sum(losses[-10:]) < sum(losses[:10])
