"""Optimizer state that was saved in one memory layout goes on in another."""

from typing import Any

import pytest
import torch

from tests.parallelism.harness import DOUBLE, advance, difference, make, state_of
from trainer.base.snapshot import snapshot
from trainer.training.run import Run
from trainer.training.state import capture, restore

LENET = ["model=lenet", "model.channels=[4,6]", "model.hidden=[8]", "device=cpu", "threads=1", "batch_size=16",
         "steps=8", "schedule=constant"]  # fmt: skip
# torch's fused kernels and ours, which take the layout of a parameter's tensors for granted
FUSED = ["momentum", "nesterov", "adagrad", "adam", "adam_l2", "adamw", "momentum optimizer.form=ema", "sgdw", "sam",
         "schedule_free_adamw"]  # fmt: skip
OTHERS = [
    "rmsprop",
    "adadelta",
    "radam",
    "nadam optimizer.eps=1e-3",
    "adamax",
    "lion",
    "rprop",
    "muon",
    "nesterov optimizer.lookahead=true",
]
LAYOUTS = ["channels_last=true", "channels_last=false"]


def build(optimizer: str, layout: str) -> Run:
    return make([*LENET, layout, *f"optimizer={optimizer}".split(), "parallelism=single"], double=True)


def found(run: Run) -> dict[str, Any]:
    return {"losses": advance(run, 3), **state_of(run)}


def check_moves(optimizer: str, before: str, after: str) -> None:
    saved = build(optimizer, before)
    advance(saved, 3)
    other = build(optimizer, after)
    kept: Any = snapshot(capture(saved))
    restore(other, kept)
    weights = {p.stride() for p in other.model.parameters() if p.dim() == 4}
    states = {
        value.stride()
        for state in other.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim() == 4
    }
    assert states <= weights
    assert max(difference(found(saved), found(other)).values()) < DOUBLE


@pytest.mark.parametrize("optimizer", FUSED)
def test_state_goes_on_in_channels_last_memory(optimizer: str) -> None:
    check_moves(optimizer, "channels_last=false", "channels_last=true")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [*FUSED, *OTHERS])
@pytest.mark.parametrize(("before", "after"), [LAYOUTS, LAYOUTS[::-1]])
def test_state_goes_on_in_another_layout(optimizer: str, before: str, after: str) -> None:
    check_moves(optimizer, before, after)
