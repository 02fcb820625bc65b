"""The training loop. It reads top to bottom and is independent of devices and ranks."""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from trainer.base.capabilities import logged_by
from trainer.base.errors import ConfigurationError, Diverged
from trainer.base.signals import stop_request
from trainer.base.turns import turn
from trainer.configuration.from_python import refuse_no_run
from trainer.configuration.probe_steps import check_metrics
from trainer.contracts import Diagnostics
from trainer.reporting.initial_outputs import as_markdown
from trainer.training.batches import Batch
from trainer.training.divergence import check_finite
from trainer.training.evaluation import evaluate
from trainer.training.finish import Result, finish
from trainer.training.progress import Best
from trainer.training.run import Run
from trainer.training.state import best_weights, capture, weights
from trainer.training.step import train_step
from trainer.training.throughput import Throughput


@turn()
def fit(run: Run) -> Result:
    """Train until the run is complete, stops early or receives a signal; then evaluate, report and close.

    Raises ConfigurationError if the run has ended before; Diverged, OutOfMemory or DiskError, after `result.json` has
    been written. A run whose monitored metric was NaN at every evaluation has no best weights, and has diverged.
    """
    if not isinstance(run, Run):
        raise refuse_no_run(run)
    if run.has_ended:  # its files are closed, and its result must not be overwritten
        raise ConfigurationError(
            f"the run has ended; to continue it: trainer.resume('{run.folder}'), with more epochs or steps if it is "
            "complete"
        )
    try:
        run.set_up()
        stop_request.can_wait = True
        status = train(run)
        warn_if_input_bound(run, run.throughput.excessive_wait(at_end=True))
        stop_request.can_wait = False
        require_best(run, status)
        return finish(run, status)
    except BaseException as error:
        error = stop_request.behind(error) or error
        finish(run, "failed", error)
        raise error
    finally:
        stop_request.can_wait, stop_request.advice = False, None  # `finish` has told how to continue
        run.close()
        run.restore_settings()


def train(run: Run) -> str:
    """Run all steps; returns "completed", "early_stopped", "converged" or "interrupted"."""
    run.model.train()
    if (status := has_stopped_early(run)) is not None:
        return status  # but was killed before it wrote the result
    while run.step < run.blueprint.total_steps:
        position = run.progress.epoch, run.progress.samples_seen
        for batch in timed(run.batches.epoch(*position), run.throughput):
            train_step(run, batch)
            run.advance(batch.num_global)
            tick(run)
            due = due_now(run)
            if not any(due):
                continue  # without synchronizing with the device
            outcome = handle(run, due)
            if outcome == "rolled_back":
                break  # continue at the checkpoint's position in the data
            if outcome is not None:
                return outcome
    return "completed"


class Due(NamedTuple):
    """Actions that are due after a step."""

    log: bool
    evaluate: bool
    keep: bool
    save: bool
    interrupted: bool
    converged: bool


def due_now(run: Run) -> Due:
    """Return the actions that are due after the current step, the same on all ranks."""
    plan, step = run.blueprint, run.step
    interrupted = run.strategy.agree(stop_request.signum is not None)
    converged = has_converged(run)
    return Due(
        plan.logs_at(step),
        plan.is_time(step, plan.every_evaluate) or converged,
        run.averaging is not None and any(map(run.averaging.keeps, plan.timeline.reached(step))),
        plan.is_time(step, plan.every_checkpoint) or interrupted,
        interrupted,
        converged,
    )


def handle(run: Run, due: Due) -> str | None:
    """Log, evaluate and save as due. Returns the status if training ends here, "rolled_back", or None to continue."""
    grad_norm, continues = check_finite(run)
    if not continues:
        return "rolled_back"
    if due.keep:
        keep(run)
    # at evaluations, too, so that a row compares numbers of the same steps; evaluation waits for the device anyway
    record = training_metrics(run, grad_norm) if due.log or due.evaluate else {}
    improved = stop = False
    if due.evaluate:
        record |= evaluate(run, run.splits.val, "val")
        improved, stop = judge(run, record)
    write_first_outputs(run)
    report(run, due, record, improved)
    status = "early_stopped" if stop else "interrupted" if due.interrupted else "converged" if due.converged else None
    if status is None and run.step == run.blueprint.total_steps:
        status = "completed"
    if due.save or improved or status is not None:
        save(run, improved=improved, interrupted=due.interrupted, ends=status is not None)
    return status


def report(run: Run, due: Due, record: dict[str, float], improved: bool) -> None:
    """Write the metrics of a step to all outputs."""
    if run.report is None or not record:
        return
    histograms = run.strategy.histograms() if due.log else {}
    run.report.record(run.step, run.epochs_done, record, histograms)
    if due.evaluate:
        run.report.row(run.step, run.epochs_done, record, improved)


def write_first_outputs(run: Run) -> None:
    """Write the outputs of layers in the first step, once: before the first checkpoint."""
    if run.first_outputs is not None and run.report is not None:
        run.report.text("initial outputs of layers", as_markdown(run.first_outputs.read()))
        run.first_outputs = None


def save(run: Run, *, improved: bool, interrupted: bool, ends: bool) -> None:
    """Pass a checkpoint to the writer, and the weights as `best.pt` if they improved."""
    if run.checkpoints is None:
        return
    if interrupted:
        run.checkpoints.finish()  # write a pending checkpoint first: a rollback may need it
    elif ends:
        run.checkpoints.wait()  # two at a time would need twice the memory
    # which checkpoint a rollback returns to must not depend on timing
    at_once = ends or run.blueprint.config["on_nonfinite"] == "rollback"
    best = partial(best_weights, run) if improved else None
    run.checkpoints.put(lambda: capture(run), best, at_once)


def keep(run: Run) -> None:
    """Keep the weights of this step in a file of their own. A collective call."""
    if run.checkpoints is None or run.averaging is None:
        return
    run.checkpoints.keep(run.step, weights(run))
    run.averaging.kept(run.step)


def tick(run: Run) -> None:
    """Advance the progress bar and the profiler."""
    if run.report is not None:
        run.report.tick(run.step)
    if run.profiler is not None:
        run.profiler.step()


def training_metrics(run: Run, grad_norm: float | None) -> dict[str, float]:
    """Return the training metrics since they were last read, at a log or an evaluation."""
    values = {f"train/{name}": value for name, value in run.meter.read(run.strategy.sum).items()}
    if run.regularizer is not None:
        with torch.no_grad():
            values["train/penalty"] = run.strategy.sum_over_weights(run.regularizer.terms())
    values |= run.lrs | run.strategy.metrics() | logged_by(run.optimizer)
    if run.diagnostics is not None:
        own = run.diagnostics.at_log(grad_norm)
        check_metrics("diagnostics", "at_log()", own)
        values |= own
        values |= first_metrics(run, run.diagnostics)
    run.progress.initial_loss = None
    values |= run.throughput.read()
    warn_if_input_bound(run, run.throughput.excessive_wait())
    return values


def first_metrics(run: Run, diagnostics: Diagnostics) -> dict[str, float]:
    """Return metrics that compare the first loss with that of an untrained model, once."""
    if run.progress.initial_loss is None:
        return {}
    untrained = run.objective.untrained_loss(run.blueprint.facts.num_outputs)
    values, warning = diagnostics.at_start(run.progress.initial_loss.item(), untrained)
    if run.report is not None:
        run.report.once(values)
    if warning is not None:
        run.say(warning)
    return values


def warn_if_input_bound(run: Run, fraction: float | None) -> None:
    """Warn that this fraction of the time was spent waiting for data, and say what helps."""
    if fraction is not None:
        run.say(f"{fraction:.0%} of the time was spent waiting for data: {run.batches.advice()}")


def has_stopped_early(run: Run) -> str | None:
    """Return the status of a run that early stopping or its optimizer has already ended, else None."""
    stopping = run.blueprint.early_stopping
    if stopping is not None and stopping.has_stopped:
        return "early_stopped"
    return "converged" if has_converged(run) else None


def has_converged(run: Run) -> bool:
    """Whether the optimizer says that further steps would change nothing; the same on all ranks."""
    return run.converges is not None and run.strategy.broadcast(run.converges())


def require_best(run: Run, status: str) -> None:
    """Raise Diverged if a run has ended without best weights: every evaluation of the monitored metric gave NaN."""
    if status != "interrupted" and run.progress.best is None:
        raise Diverged(
            f"{run.blueprint.monitor} was NaN at every evaluation, so there are no best weights; checkpoints/last.pt "
            f"holds the last ones; monitor another metric, or see on_nonfinite and the learning rate"
        )


def judge(run: Run, metrics: dict[str, float]) -> tuple[bool, bool]:
    """Return whether an evaluation is the best so far, and whether to stop early."""
    plan, value = run.blueprint, metrics[run.blueprint.monitor]
    improved = plan.best.observe(value)
    if math.isnan(value) and run.progress.best is None:
        run.say(f"{plan.monitor} is NaN at step {run.step}: there are no best weights so far")
    if improved:
        validation = {name: v for name, v in metrics.items() if name.startswith("val/")}
        run.progress.best = Best(run.step, run.epochs_done, validation)
    if plan.schedule.listens:
        plan.schedule.observe(metrics)
    stop = plan.early_stopping is not None and plan.early_stopping.should_stop(value, run.step)
    return improved, stop


def timed(batches: Iterable[Batch], throughput: Throughput) -> Iterator[Batch]:
    """Yield the same batches and record the time spent waiting for them."""
    source = iter(batches)
    while (batch := throughput.await_next(source)) is not None:
        yield batch
