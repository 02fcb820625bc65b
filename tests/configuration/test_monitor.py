"""The monitored metric: which of its values are better is known, said or asked for; a guess keeps bad weights."""

import json
from pathlib import Path

import pytest

from trainer import assemble, compose, fit
from trainer.base.config import Config
from trainer.base.errors import ConfigurationError, Diverged
from trainer.base.improvement import direction
from trainer.configuration.resolve import resolve
from trainer.metrics import SUMS
from trainer.schedules import Plateau

LOSS = """
import torch
from trainer.losses import CrossEntropy

def named(name):
    def metric(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="sum") * (VALUE if name == "nan" else 1)
    metric.__name__ = name
    return metric

VALUE = float("nan")

class Own(CrossEntropy):
    def __init__(self, metric, directions=None):
        super().__init__()
        self.metrics = {"classification": ("accuracy", named(metric))}
        self.directions = directions or {}
"""
UNKNOWN = ["top1_error", "mean_loss", "nll", "perplexity", "error", "rmse", "loss_free", "f1", "auc", "Accuracy"]


@pytest.fixture(autouse=True)
def own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loss_of_monitor.py").write_text(LOSS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GEARSHIFT_TRUST", "own_loss_of_monitor")


def configuration(
    metric: str, *overrides: str, monitor: str | None = None, directions: dict[str, str] | None = None
) -> Config:
    config = compose(["model=linear", f"early_stopping.monitor=val/{monitor or metric}", *overrides])
    config["loss"] = {"_target_": "own_loss_of_monitor.Own", "metric": metric, "directions": directions}
    return config


def test_nothing_is_guessed_from_a_name() -> None:
    for metric in UNKNOWN:
        with pytest.raises(ValueError, match="is not known; set mode=min or mode=max, or declare"):
            direction(f"val/{metric}", "auto")
        assert direction(f"val/{metric}", "auto", {metric: "max"}) == direction(f"val/{metric}", "max") == "max"


@pytest.mark.parametrize("metric", ["top1_error", "loss_free"])
def test_a_direction_that_is_not_known_is_asked_for(metric: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(configuration(metric))
    (line,) = caught.value.problems
    assert line.startswith(f"early_stopping.mode=auto: whether a lower or a higher val/{metric} is better is not known")
    for mode in ("min", "max"):
        assert f"early_stopping.mode={mode}" in line
        blueprint = resolve(configuration(metric, f"early_stopping.mode={mode}"))
        assert blueprint.early_stopping is not None
        assert [blueprint.best.mode, blueprint.early_stopping.improvement.mode] == [mode, mode]
        assert resolve(configuration(metric, directions={metric: mode})).best.mode == mode


def test_the_plateau_schedule_asks_too() -> None:
    plateau = ["schedule=plateau", "schedule.monitor=val/nll"]
    with pytest.raises(ConfigurationError, match=r"^schedule\.mode=auto: .*; set schedule\.mode=min or") as caught:
        resolve(configuration("nll", *plateau, monitor="loss"))
    assert len(caught.value.problems) == 1
    for found in (
        resolve(configuration("nll", *plateau, "schedule.mode=max", monitor="loss")),
        resolve(configuration("nll", *plateau, monitor="loss", directions={"nll": "max"})),
    ):
        assert isinstance(found.schedule, Plateau) and found.schedule.improvement.mode == "max"


def test_ways_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^loss: directions = {'nll': 'down'}: must be 'min' .* or 'max'$"):
        resolve(configuration("nll", directions={"nll": "down"}))
    with pytest.raises(ValueError, match="mode=most: must be min, max or auto"):
        direction("val/loss", "most")


def test_all_metrics_of_ours_have_a_direction() -> None:
    assert {name: direction(f"val/{name}", "auto") for name in ("loss", *SUMS)} == {
        "loss": "min", "accuracy": "max", "accuracy_top5": "max", "cross_entropy": "min", "mae": "min",
    }  # fmt: skip


@pytest.mark.parametrize("ends", ["completed", "early_stopped"])
def test_a_metric_that_is_never_a_number_selects_no_weights(
    tmp_path: Path, ends: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stops = ends == "early_stopped"
    words = ["early_stopping.mode=min", "steps=6", "every.evaluate=2step", "every.log=1step"]
    config = configuration("nan", *words, f"early_stopping.patience={2 if stops else 9}")
    run = tmp_path / "run"
    run.mkdir()
    for resume in (False, True):
        with pytest.raises(Diverged, match=r"^val/nan was NaN at every evaluation, so there are no best weights"):
            fit(assemble(config, run, resume=resume))
        result = json.loads((run / "result.json").read_text())
        assert (result["status"], result["exit_code"], result["steps"]) == ("diverged", 70, 4 if stops else 6)
        assert (result["best"], result["test"]) == (None, None)
    shown = capsys.readouterr().out
    assert "monitor: val/nan, lower is better" in shown and "val/nan is NaN at step 2" in shown
    assert "best weights)" not in shown and "completed" not in shown
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if "best" in path.name) == []
