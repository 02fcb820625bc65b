"""A job, and its execution on one rank."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from trainer.base.config import Config
from trainer.base.rank import take
from trainer.storage import run_folder

if TYPE_CHECKING:
    from trainer.training.finish import Result


@dataclass(frozen=True)
class Job:
    """A job as it is sent to ranks; plain values."""

    config: Config
    folder: str
    resume: bool
    is_trial: bool


def work(job: Job, lock: run_folder.Lock | None = None) -> "Result | None":
    """Execute a job on this rank; returns the Result, or None on a rank that only trains."""
    from trainer.assembly.assemble import assemble
    from trainer.training.loop import fit
    from trainer.training.worker_loop import run_worker

    run = assemble(job.config, Path(job.folder), resume=job.resume, is_trial=job.is_trial, lock=lock)
    if run.strategy.steps_only:
        run_worker(run)
        return None
    return fit(run)


def work_as_main(job: Job, lock: run_folder.Lock | None = None) -> "Result":
    """The part of the main rank, or of a run that has no other."""
    result = work(job, lock)
    assert result is not None
    return result


def leave() -> None:
    """Leave the process group; ranks that still wait for this one fail immediately."""
    take(None, None)
    dist = distributed()
    if dist.is_initialized():
        with suppress(Exception):  # destroying a broken group may fail
            dist.destroy_process_group()


def distributed() -> ModuleType:
    """torch.distributed, whose stores its type hints do not know; loaded when a job needs it."""
    import torch.distributed as dist

    return dist
