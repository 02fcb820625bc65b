"""A run that is cut after a step and resumed, beside one that is not."""

from pathlib import Path

import pytest
import torch

from trainer import assemble, compose, fit
from trainer.storage import checkpoint


def check_cut_run(overrides: list[str], step: int, folder: Path) -> int:
    """Compare the checkpoints of both bit by bit; returns the number of steps."""
    whole, cut = folder / "whole", folder / "cut"
    fit(assemble(compose(overrides), whole))
    run = assemble(compose(overrides), cut)
    advance = run.advance

    def stop(count: int) -> None:
        if run.step == step:
            raise KeyboardInterrupt
        advance(count)

    run.advance = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(run)
    (cut / "result.json").unlink(missing_ok=True)
    fit(assemble(compose(overrides), cut, resume=True))
    for name in ("best.pt", "last.pt"):
        one, other = (checkpoint.load(each / "checkpoints" / name) for each in (whole, cut))
        assert one["step"] == other["step"]
        assert one["model"].keys() == other["model"].keys()
        assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items()), name
    return int(one["step"])
