"""The loop of a worker that only makes steps, beside the main rank of an asynchronous strategy."""

from trainer.base.signals import stop_request
from trainer.parallelism.strategy import PeerLost
from trainer.training.run import Run
from trainer.training.step import train_step


def run_worker(run: Run) -> None:
    """What such a worker does in place of `fit`: nothing is logged, evaluated or saved.

    Train from the main rank's position until that rank has ended or all steps are done, then close the run.
    """
    stop_request.can_wait = True  # the main rank decides when to stop; this one ends when it has
    try:
        run.model.train()
        join(run)
        while run.step < run.blueprint.total_steps:
            finish_epoch(run)
    except PeerLost:
        pass  # the main rank has ended, which is no failure of this one
    finally:
        run.close()


def join(run: Run) -> None:
    """Go to the main rank's position in the data."""
    plan, progress = run.blueprint, run.progress
    progress.step = run.strategy.fetch()
    progress.epoch, batches = divmod(progress.step, plan.steps_per_epoch)
    progress.samples_seen = batches * plan.batch_size


def finish_epoch(run: Run) -> None:
    """The steps from here to the end of the epoch, or of the run."""
    for batch in run.batches.epoch(run.progress.epoch, run.progress.samples_seen):
        if len(batch.targets):  # a small last batch may have no samples for this rank
            train_step(run, batch)
        run.advance(batch.num_global)
        run.guard.reset()  # nobody reads what these two collect
        run.meter.reset()
        if run.step == run.blueprint.total_steps:
            return
