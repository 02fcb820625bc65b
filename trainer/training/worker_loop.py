"""Training loop of the workers other than the main rank of an asynchronous strategy."""

from trainer.base.signals import stop_request
from trainer.parallelism.strategy import PeerLost
from trainer.training.run import Run
from trainer.training.step import train_step


def run_worker(run: Run) -> None:
    """Train, in place of `fit`, without logging, evaluating or saving.

    Starts at the main rank's position and ends with that rank or after all steps; then closes the run.
    """
    stop_request.can_wait = True  # the main rank decides when to stop; this one ends when it has
    try:
        run.model.train()
        join(run)
        while run.step < run.blueprint.total_steps:
            finish_epoch(run)
    except PeerLost:
        pass  # the main rank has ended, which is not an error here
    finally:
        run.close()


def join(run: Run) -> None:
    """Move to the main rank's position in the data."""
    plan, progress = run.blueprint, run.progress
    progress.step = run.strategy.fetch()
    progress.epoch, batches = divmod(progress.step, plan.steps_per_epoch)
    progress.samples_seen = batches * plan.batch_size


def finish_epoch(run: Run) -> None:
    """Train to the end of the epoch, or of the run."""
    for batch in run.batches.epoch(run.progress.epoch, run.progress.samples_seen):
        if len(batch.targets):  # a small last batch may have no samples for this rank
            train_step(run, batch)
        run.advance(batch.num_global)
        run.guard.reset()  # nothing reads the guard and the meter here
        run.meter.reset()
        if run.step == run.blueprint.total_steps:
            return
