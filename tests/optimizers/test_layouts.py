"""Memory layouts of weights and optimizer state, which torch's fused kernels on the CPU do not compare."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.parallelism.harness import DOUBLE, advance, difference, make, state_of
from trainer.assembly import assemble
from trainer.base.snapshot import snapshot
from trainer.training.run import Run
from trainer.training.state import capture, restore

LENET = ["model=lenet", "model.channels=[4,6]", "model.hidden=[8]", "device=cpu", "threads=1", "batch_size=16",
         "steps=8", "schedule=constant"]  # fmt: skip
# torch's fused kernels and ours, which take the layout of a parameter's tensors for granted
FUSED = ["momentum", "nesterov", "adagrad", "adam", "adam_l2", "adamw", "momentum optimizer.form=ema", "sgdw", "sam",
         "schedule_free_adamw"]  # fmt: skip
OTHERS = ["rmsprop", "adadelta", "radam", "nadam", "adamax", "lion", "rprop", "muon",
          "nesterov optimizer.lookahead=true"]  # fmt: skip
LAYOUTS = ["channels_last=true", "channels_last=false"]


def build(optimizer: str, layout: str) -> Run:
    return make([*LENET, layout, *f"optimizer={optimizer}".split(), "parallelism=single"], double=True)


def found(run: Run) -> dict[str, Any]:
    return {"losses": advance(run, 3), **state_of(run)}


def check_moves(optimizer: str, before: str, after: str) -> None:
    saved = build(optimizer, before)
    advance(saved, 3)
    same, other = build(optimizer, before), build(optimizer, after)
    for run in (same, other):
        kept: Any = snapshot(capture(saved))
        restore(run, kept)
    weights = {p.stride() for p in other.model.parameters() if p.dim() == 4}
    states = {
        value.stride()
        for state in other.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim() == 4
    }
    assert states <= weights
    assert max(difference(found(same), found(other)).values()) < DOUBLE


@pytest.mark.parametrize("optimizer", FUSED)
def test_state_goes_on_in_channels_last_memory(optimizer: str) -> None:
    check_moves(optimizer, "channels_last=false", "channels_last=true")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [*FUSED, *OTHERS])
@pytest.mark.parametrize(("before", "after"), [LAYOUTS, LAYOUTS[::-1]])
def test_state_goes_on_in_another_layout(optimizer: str, before: str, after: str) -> None:
    check_moves(optimizer, before, after)


def in_columns(model: nn.Module) -> nn.Module:
    """Make each matrix a slice of a wider one."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            wide = torch.zeros(len(parameter), 2 * parameter.shape[1])
            parameter.data = wide[:, ::2].copy_(parameter.data)
    return model


def test_a_weight_that_is_a_slice_is_trained_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ["model=mlp", "model.hidden=[8]", "optimizer=momentum", "device=cpu", "threads=1", "steps=4"]
    expected = {"losses": advance(run := make(config), 4), **state_of(run)}
    make_model = assemble.make_model
    monkeypatch.setattr(assemble, "make_model", lambda *given: in_columns(make_model(*given)))
    sliced = {"losses": advance(run := make(config), 4), **state_of(run)}
    assert difference(expected, sliced) == {"losses": 0, "model": 0, "optimizer": 0}
