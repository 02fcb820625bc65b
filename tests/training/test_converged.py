"""What optimizers declare about their progress: a run ends when they have converged, and stays ended; their counts."""

from pathlib import Path

from tests.parallelism.harness import advance, make
from trainer import assemble, compose, fit
from trainer.hydra_entry.jobs import COMPLETE
from trainer.storage import checkpoint
from trainer.training.loop import training_metrics

SHORT = ["optimizer=gd", "optimizer.tolerance=1000", "optimizer.patience=4", "model=linear", "threads=1", "device=cpu",
         "every.evaluate=100ep", "every.checkpoint=100ep"]  # fmt: skip


def test_a_run_whose_optimizer_has_converged_is_evaluated_saved_and_complete(tmp_path: Path) -> None:
    config = compose(SHORT)
    result = fit(assemble(config, tmp_path / "run"))
    assert (result.status, result.steps, result.exit_code) == ("converged", 4, 0)
    assert result.status in COMPLETE and result.test is not None and result.best is not None
    assert checkpoint.load(tmp_path / "run/checkpoints/last.pt")["stateful"]["progress"]["step"] == 4
    (tmp_path / "run/result.json").unlink()  # as if it was killed before
    again = fit(assemble(config, tmp_path / "run", resume=True))
    assert (again.status, again.steps, again.test) == ("converged", 4, result.test)


def test_what_an_optimizer_counts_is_logged() -> None:
    run = make(["optimizer=bfgs", "model=linear", "device=cpu", "threads=1"])
    advance(run, 1)
    assert training_metrics(run, None)["optimizer/num_skipped"] == 0
    run.optimizer.param_groups[0]["skipped"] = 3
    assert training_metrics(run, None)["optimizer/num_skipped"] == 3
