"""The end of a run, for any reason: restore the best weights, evaluate the test split once, write the results."""

import logging
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from heapq import merge
from itertools import takewhile
from math import isclose
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from trainer.base.config import Config, JsonObject
from trainer.base.errors import DataError, DiskError, Interrupted, understood
from trainer.base.signals import stop_request
from trainer.base.stateful import State
from trainer.reporting.curves import curves_figure, draw_curves
from trainer.reporting.logs import close, open_run_log
from trainer.reporting.metrics_file import read_metrics, stream_metrics
from trainer.reporting.tables import unbroken, without_repetition
from trainer.storage import checkpoint, run_folder
from trainer.storage.files import disk_errors
from trainer.storage.identity import check_run, identity_of
from trainer.storage.records import read_json
from trainer.training.evaluation import confusion_matrix, evaluate
from trainer.training.run import Run
from trainer.training.state import check_content, restore_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


@dataclass
class Result:
    """How a run ended; the content of `result.json`.

    `status` is completed, early_stopped, converged, interrupted, diverged or failed; `best` is the evaluation of the
    weights in `best.pt`; `test` their metrics on the test split (None for a trial of a sweep or an unfinished run).
    """

    status: str
    exit_code: int
    steps: int
    epochs: float
    monitor: str
    best: JsonObject | None
    test: dict[str, float] | None
    wall_seconds: float
    folder: str
    error: str | None = None

    @property
    def value(self) -> float | None:
        """Best value of the monitored metric, which a search optimizes."""
        return None if self.best is None else float(self.best["metrics"][self.monitor])

    @property
    def history(self) -> list[JsonObject]:
        """The records of `metrics.jsonl`: step, epoch and metrics. A relative `folder` is that of where `fit` ran."""
        return read_metrics(Path(self.folder) / run_folder.METRICS)

    def plot(self) -> "Figure | None":
        """Return the learning curves as a matplotlib figure, like `curves.png`; None if there are no metrics."""
        best_step = None if self.best is None else self.best["step"]
        metrics = stream_metrics(Path(self.folder) / run_folder.METRICS)  # may be too many to be kept in memory
        return curves_figure(metrics, Path(self.folder).name, best_step, self.value, self.monitor)


def finish(run: Run, status: str, error: BaseException | None = None) -> Result:
    """Write checkpoints, test metrics, result and curves, and print a summary."""
    status, exit_code = _verdict(status, error)
    known = None if error is None else understood(error)
    test = matrix = None
    if error is None:
        _wait_for_checkpoints(run)
    elif not isinstance(error, Interrupted):
        with suppress(DiskError):  # report the first error only
            _wait_for_checkpoints(run)
    if error is None and status != "interrupted":
        restore_best(run)
        if not run.is_trial:
            test = evaluate(run, run.splits.test, "test")
        if run.blueprint.facts.task == "classification" and "accuracy" in run.blueprint.metrics:
            matrix = confusion_matrix(run, run.splits.val if run.is_trial else run.splits.test)
    best, seconds = run.progress.best, round(run.progress.seconds, 3)
    result = Result(
        status=status, exit_code=exit_code, steps=run.step, epochs=round(run.epochs_done, 6),
        monitor=run.blueprint.monitor, best=None if best is None else asdict(best), test=test,
        wall_seconds=seconds, folder=str(run.folder and run_folder.shown(run.folder)),
        error=None if known is None else str(known),
    )  # fmt: skip
    if run.folder is not None and run.report is not None:
        if error is not None and not isinstance(error, Interrupted):
            log.error("%s", str(known) or type(known).__name__)
        # a signal may have interrupted anything, even an import, so only the result is written then
        reports = partial(_write_reports, matrix=matrix)
        for write in (_write_result,) if isinstance(error, Interrupted) else (reports, _write_result):
            try:
                write(run, result)
            except DiskError as problem:
                if error is None:
                    raise
                log.warning("%s", problem)
    return result


def recorded_result(folder: Path, content: JsonObject) -> Result:
    """Return the result of a run from the content of its `result.json`; its folder may have been moved since."""
    best, test = content["best"], content["test"]
    if best is not None:
        best = best | {"metrics": {name: float(value) for name, value in best["metrics"].items()}}
    if test is not None:
        test = {name: float(value) for name, value in test.items()}
    return Result(**(content | {"best": best, "test": test, "folder": str(run_folder.shown(folder))}))


def record_failure(folder: Path, config: Config, error: BaseException) -> None:
    """Write result and log of a run that failed before its `Run` existed, or whose main rank could not report why.

    Log records buffered so far are written, too. Raises DiskError.
    """
    known = understood(error)
    with suppress(OSError):  # the result is more important
        run_log = open_run_log(folder / run_folder.LOG)
        log.error("%s", str(known) or type(known).__name__)
        close(run_log)
    last, before = {"step": 0, "epoch": 0.0}, None
    with suppress(DataError):  # the first error is the one to report
        before = read_json(folder / run_folder.RESULT)
    with suppress(OSError, ValueError):
        for record in stream_metrics(folder / run_folder.METRICS):
            last |= record
    stopping = config["early_stopping"]
    before = before or {
        "steps": last["step"], "epochs": last["epoch"], "monitor": stopping["monitor"] if stopping else "val/loss",
        "best": None, "test": None, "wall_seconds": 0.0, "folder": str(run_folder.shown(folder)),
    }  # fmt: skip
    failure = {"status": "failed", "exit_code": int(getattr(known, "exit_code", 1)), "error": str(known)}
    run_folder.write_result(folder, failure | before | failure)


def _verdict(status: str, error: BaseException | None) -> tuple[str, int]:
    if status == "interrupted":
        return status, 128 + (stop_request.signum or 2)
    if error is None:
        return status, 0
    code = 130 if isinstance(error, KeyboardInterrupt) else int(getattr(understood(error), "exit_code", 1))
    return {70: "diverged"}.get(code, "interrupted" if code >= 128 else "failed"), code


def _wait_for_checkpoints(run: Run) -> None:
    if run.checkpoints is not None:
        run.checkpoints.finish()


def restore_best(run: Run) -> None:
    """Load the best weights into the model, if there was an evaluation. Training is over: gradients are freed."""
    if run.progress.best is not None and run.folder is not None:
        for parameter in run.model.parameters():
            parameter.grad = None
        path = run.folder / run_folder.CHECKPOINTS / "best.pt"
        state = run.strategy.distribute(_own_best(run, path) if run.strategy.is_main else None, run.model)
        assert state is not None  # the main rank's
        restore_weights(run, state)
        run.holds_best = True


def _own_best(run: Run, path: Path) -> State:
    state = checkpoint.load(path)
    check_content(state, path, is_last=False)
    assert run.folder is not None
    check_run(run.folder, path, identity_of(state, path), run.identity)
    return state


def _write_reports(run: Run, result: Result, matrix: Tensor | None) -> None:
    assert run.folder is not None and run.report is not None
    with disk_errors(run.folder):
        if result.test is not None:
            run.report.record(run.step, run.epochs_done, result.test)
        if matrix is not None:
            names = run.blueprint.facts.class_names or [str(k) for k in range(run.blueprint.facts.num_outputs)]
            split = "val" if run.is_trial else "test"
            run.report.tensorboard.confusion_matrix(matrix, names, run.step, f"{split}/confusion_matrix")
        run.report.tensorboard.finish_hparams(result.status)
        _draw(run, result, run.folder)
        run.report.sync()


def _draw(run: Run, result: Result, folder: Path) -> None:
    path = folder / run_folder.METRICS
    best_step = None if run.progress.best is None else run.progress.best.step
    try:
        records = merge(stream_metrics(path), _warm_up(run, path), key=itemgetter("step"))
        draw_curves(records, folder / run_folder.CURVES, folder.name, best_step, result.value, result.monitor)
    except ValueError as error:  # the file was damaged while the run went on
        run.say(f"{error}; there is no {run_folder.CURVES}")


_WARM_UP_POINTS = 20


def _warm_up(run: Run, path: Path) -> list[JsonObject]:
    """Return records with the learning rates of the warm-up, which may be shorter than the interval between logs.

    Empty if the logged rates are others: the run was continued with another length, or rolled back.
    """
    plan, base = run.blueprint, run.base_lrs[0]
    last = min(plan.schedule.warmup, run.step)

    def rate(step: int) -> float:
        return base * plan.factor(step - 1)

    for record in takewhile(lambda record: record["step"] <= last, stream_metrics(path)):
        if "lr" in record and not isclose(record["lr"], rate(record["step"])):
            return []
    steps = sorted({1, *range(last, 0, -max(1, last // _WARM_UP_POINTS))}) if last > 0 else []
    return [{"step": step, "lr": rate(step)} for step in steps]


def _write_result(run: Run, result: Result) -> None:
    """Write `result.json`, the very last file: once it is complete, the run cannot be resumed."""
    assert run.folder is not None and run.report is not None
    run_folder.write_result(run.folder, asdict(result))
    run.report.terminal.finish(_summary(run, result))


def _epochs(number: float) -> str:
    return f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def _summary(run: Run, result: Result) -> list[str]:
    """Lines with status, best and test metrics, and the next commands."""
    steps = f"{result.steps} step{'' if result.steps == 1 else 's'}"
    lines = [f"{result.status} after {steps}, {_epochs(result.epochs)} epochs, {result.wall_seconds:.1f} s"]
    if run.progress.best is not None:
        lines.append(f"best (epoch {_epochs(run.progress.best.epoch)}): {_in_words(run, run.progress.best.metrics)}")
    if result.test is not None:
        lines.append(f"test (best weights): {_in_words(run, result.test)}")
    lines.append(f"run folder: {result.folder}")
    if result.status == "interrupted":
        assert run.folder is not None
        resume = f"train resume {shlex.quote(str(run_folder.to_resume(run.folder)))}"
        lines.append(f"to continue: {unbroken(resume)}")
    elif result.error is None and not run.is_trial:
        lines.append("in it: curves.png, metrics.jsonl (all metrics), checkpoints/best.pt (weights to use)")
        view = f"tensorboard --logdir {shlex.quote(str(Path(result.folder).parent))}"
        lines.append(f"to view it: {unbroken(view)}")
        lines.append("there: Custom Scalars has training and validation in one chart, HParams compares runs")
    return lines


def _in_words(run: Run, metrics: Mapping[str, float]) -> str:
    shown = without_repetition(metrics, run.blueprint.monitor)
    return "  ".join(unbroken(f"{name} {value:.4f}") for name, value in shown.items())
