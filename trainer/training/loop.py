"""The training loop. It reads top to bottom, and knows nothing of devices or ranks."""

from collections.abc import Iterable, Iterator

from trainer.base.duration import is_time
from trainer.base.signals import stop_request
from trainer.training.batches import Batch
from trainer.training.divergence import survives
from trainer.training.evaluation import evaluate
from trainer.training.finish import Result, finish
from trainer.training.run import Best, Run
from trainer.training.state import capture, weights
from trainer.training.step import train_step
from trainer.training.throughput import Throughput


def fit(run: Run) -> Result:
    """Train until the run is complete, stops early or is asked to; then evaluate, report and close.

    Raises Diverged, OutOfMemory or DiskError after `result.json` has been written.
    """
    try:
        stop_request.can_wait = True
        status = train(run)
        tell_of_waiting(run, run.throughput.too_long(at_end=True))
        stop_request.can_wait = False
        return finish(run, status)
    except BaseException as error:
        finish(run, "failed", error)
        raise
    finally:
        stop_request.can_wait = False
        run.close()


def train(run: Run) -> str:
    """The steps themselves; returns "completed", "early_stopped" or "interrupted"."""
    plan, total = run.blueprint, run.blueprint.total_steps
    run.model.train()
    if plan.early_stopping is not None and plan.early_stopping.has_stopped:
        return "early_stopped"  # and was killed before the result was written
    while run.step < total:
        for batch in timed(run.batches.epoch(run.epoch, run.samples_seen), run.throughput):
            train_step(run, batch)
            run.advance(batch.num_global)
            if run.report is not None:
                run.report.tick(run.step)
            if run.profiler is not None:
                run.profiler.step()

            interrupted = run.strategy.agree(stop_request.signum is not None)
            log_now = is_time(run.step, plan.every_log, total)
            evaluate_now = is_time(run.step, plan.every_evaluate, total)
            save_now = is_time(run.step, plan.every_checkpoint, total) or interrupted
            if not (log_now or evaluate_now or save_now):
                continue  # the device is not waited for

            grad_norm, goes_on = survives(run)
            if not goes_on:
                break  # rolled back: the data start again at the place of the checkpoint
            record: dict[str, float] = {}
            improved = stop = False
            if log_now:
                record |= training_metrics(run, grad_norm)
            if evaluate_now:
                record |= evaluate(run, run.splits.val, "val")
                improved, stop = judge(run, record)
            if record and run.report is not None:
                run.report.record(run.step, run.epochs_done, record, run.strategy.histograms() if log_now else {})
                if evaluate_now:
                    run.report.row(run.step, run.epochs_done, record, improved)
            ends = stop or interrupted or run.step == total
            at_once = ends or plan.config["on_nonfinite"] == "rollback"  # a place to go back to hangs on no clock
            if (save_now or improved or ends) and run.checkpoints is not None:
                if interrupted:
                    run.checkpoints.finish()  # a place to go back to that still waits is not passed over
                run.checkpoints.put(lambda: capture(run), (lambda: weights(run)) if improved else None, at_once)
            if stop or interrupted:
                return "early_stopped" if stop else "interrupted"
            if run.step == total:
                break
    return "completed"


def training_metrics(run: Run, grad_norm: float | None) -> dict[str, float]:
    """What is known of the steps since the last logged one."""
    values = {f"train/{name}": value for name, value in run.meter.read(run.strategy.sum).items()}
    values |= {"lr": run.lr} | run.strategy.metrics()
    if run.diagnostics is not None:
        values |= run.diagnostics.at_log(grad_norm)
        if run.initial_loss is not None:
            untrained = run.blueprint.loss.initial_value(run.blueprint.facts.num_outputs)
            more, warning = run.diagnostics.at_start(run.initial_loss.item(), untrained)
            values |= more
            if warning is not None and run.report is not None:
                run.report.message(warning)
    run.initial_loss = None
    values |= run.throughput.read()
    tell_of_waiting(run, run.throughput.too_long())
    return values


def tell_of_waiting(run: Run, share: float | None) -> None:
    """What helps, when this share of the time went into waiting."""
    if run.report is not None and share is not None:
        run.report.message(f"{share:.0%} of the time went into waiting for data: {run.batches.advice()}")


def judge(run: Run, metrics: dict[str, float]) -> tuple[bool, bool]:
    """What an evaluation means: whether it is the best so far, and whether to stop early."""
    plan, value = run.blueprint, metrics[run.blueprint.monitor]
    improved = plan.best.observe(value)
    if improved:
        validation = {name: v for name, v in metrics.items() if name.startswith("val/")}
        run.best = Best(run.step, run.epochs_done, validation)
    if hasattr(plan.schedule, "observe"):
        plan.schedule.observe(metrics)
    stop = plan.early_stopping is not None and plan.early_stopping.should_stop(value, run.step)
    return improved, stop


def timed(batches: Iterable[Batch], throughput: Throughput) -> Iterator[Batch]:
    """The same batches, while the time spent waiting for them is added up."""
    source = iter(batches)
    while (batch := throughput.await_next(source)) is not None:
        yield batch
