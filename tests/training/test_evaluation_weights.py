"""An optimizer that evaluates other weights than it trains: schedule_free_adamw."""

from pathlib import Path

import pytest
import torch

from trainer import assemble, compose
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve
from trainer.storage import checkpoint
from trainer.training.evaluation import evaluate
from trainer.training.finish import finish
from trainer.training.loop import train
from trainer.training.run import Run

SHORT = ["optimizer=schedule_free_adamw", "model=mlp", "model.hidden=[16]", "threads=1", "device=cpu", "epochs=2",
         "limit_batches=8"]  # fmt: skip


def trained(folder: Path, *overrides: str) -> Run:
    run = assemble(compose([*SHORT, *overrides]), folder)
    assert train(run) == "completed"
    assert run.checkpoints is not None
    run.checkpoints.finish()
    return run


def test_the_average_is_evaluated_and_kept_as_best_and_training_does_not_notice(tmp_path: Path) -> None:
    run, rare = trained(tmp_path / "run"), trained(tmp_path / "rare", "every.evaluate=2ep")
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert run.averaged is not None
    averages = {names[id(p)]: value for p, value in run.averaged()}
    last, best = (checkpoint.load(tmp_path / f"run/checkpoints/{name}.pt") for name in ("last", "best"))
    assert best["step"] == last["step"] == 16
    for name, p in run.model.named_parameters():
        assert torch.equal(last["model"][name], p)
        assert torch.equal(best["model"][name], averages[name]) and not torch.equal(p, averages[name])
        assert torch.equal(p, rare.model.get_parameter(name)), "evaluations change training"
    assert run.progress.best is not None
    assert evaluate(run, run.splits.val, "val") == run.progress.best.metrics
    finish(run, "completed")  # loads best.pt, which must not be averaged again
    assert evaluate(run, run.splits.val, "val") == run.progress.best.metrics
    run.close()
    rare.close()


def test_servers_do_not_hold_the_average() -> None:
    with pytest.raises(ConfigurationError, match="evaluates other weights than it trains, which parallelism=downpour"):
        resolve(compose([*SHORT, "parallelism=downpour"]))
