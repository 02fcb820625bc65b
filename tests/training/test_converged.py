"""A run ends when its optimizer has converged, and stays ended."""

from pathlib import Path

from trainer import assemble, compose, fit
from trainer.hydra_entry.jobs import COMPLETE
from trainer.storage import checkpoint

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
