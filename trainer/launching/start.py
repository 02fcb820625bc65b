"""Training in as many processes as the strategy needs."""

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.base.config import Config
from trainer.base.rank import RankInfo, given_rank_info, take
from trainer.base.signals import stop_request
from trainer.configuration.from_python import check_configuration
from trainer.configuration.rules import SINGLE
from trainer.launching.given import with_others
from trainer.launching.job import Job, distributed, leave, work_as_main
from trainer.launching.local import LocalRanks
from trainer.reporting.console import ignore_broken_pipe
from trainer.storage import run_folder

if TYPE_CHECKING:
    from trainer.training.finish import Result


def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    is_trial: bool = False,
    lock: run_folder.Lock | None = None,
) -> "Result":
    """Assemble and fit, in as many processes as the strategy needs; returns the Result.

    Raises the error of a rank, or RankLost (71) if a rank was lost and no restarts are left.
    """
    ignore_broken_pipe()
    stop_request.advice = run_folder.how_to_continue(folder)
    job = Job(config, str(folder.absolute()), resume, is_trial)
    if config["parallelism"]["_target_"] == SINGLE["_target_"]:
        return work_as_main(job, lock)
    from trainer.assembly.run_folder_of import for_resuming
    from trainer.configuration.resolve import resolve

    strategy = resolve(for_resuming(config, folder) if resume else config).strategy
    if given_rank_info() is not None:
        return with_others(job, int(strategy.devices), lock)
    if strategy.devices == 1:
        return _alone(job, lock)
    lock = lock or run_folder.Lock(folder)
    try:
        return LocalRanks(job, strategy).run()
    finally:
        lock.release()


def launch(config: Config, folder: str | Path | None = None) -> "Result":
    """Train in a new run folder under `outputs/`, or resume the run in `folder`; returns the Result.

    With several ranks, scripts must call it below `if __name__ == "__main__":`, as for every use of multiprocessing.
    """
    check_configuration(config, "launch")
    if folder is None:
        return train(config, run_folder.new(config))
    run_folder.claim(Path(folder), config)
    return train(config, Path(folder), resume=True)


def _alone(job: Job, lock: run_folder.Lock | None) -> "Result":
    """Execute a job whose strategy has only one rank, in this process."""
    store = distributed().HashStore()
    take(RankInfo(0, 1, 0, 1), lambda: store)
    try:
        return work_as_main(job, lock)
    finally:
        leave()
