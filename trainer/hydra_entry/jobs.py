"""The jobs that Hydra starts: one run, or the trials of a sweep."""

from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from trainer import launching
from trainer.base.errors import ConfigurationError
from trainer.base.signals import stop_request
from trainer.base.trusted_packages import see_trusted_packages
from trainer.configuration import compose
from trainer.configuration.recorded import same_but_for_places
from trainer.launching import folder_of_earlier_attempt, train
from trainer.reporting.console import print_failure, say
from trainer.storage import run_folder
from trainer.storage.run_folder import COMPLETE as COMPLETE
from trainer.storage.run_folder import read_result as read_result
from trainer.studies.definition import define, is_study
from trainer.studies.driver import run_study


class Jobs:
    """The task function for Hydra, and the results of the jobs.

    Errors are stored instead of raised: Hydra would print lines of its own and end a sweep.
    """

    def __init__(self) -> None:
        self.is_sweep = False
        self.count = self.exit_code = 0
        self.error: Exception | None = None
        self.failed: list[str] = []

    def run(self, composed: DictConfig) -> float | None:
        """Execute one job; returns the best value of its monitored metric."""
        see_trusted_packages()  # a Hydra launcher may have started another process
        launching.see_slurm()  # a Hydra launcher may have started several Slurm tasks, and each of them calls this
        if launching.is_follower():
            launching.follow()
            return None
        with launching.followed():
            return self._run(composed)

    def _run(self, composed: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        self.count += 1
        self.is_sweep = hydra.mode == RunMode.MULTIRUN
        try:
            if self.is_sweep:
                run_folder.check_inside(folder, Path(hydra.sweep.dir), "sweep")
                return run_trial(composed, folder)
            if is_study(composed):
                run_study(define(composed, _node(), GlobalHydra.instance().config_loader(), folder))
                return None
            restarted = folder_of_earlier_attempt() == folder.absolute()
            result = train(run_folder.read_configuration(folder), folder, resume=restarted)
            self.exit_code = result.exit_code
            value: float | None = result.value
            return value
        except Exception as error:
            if (stop := stop_request.behind(error)) is not None:
                raise stop from None
            self.error = error
            if self.is_sweep:
                self.failed.append(folder.name)
                print_failure(error)
            return None


def _node() -> DictConfig:
    """Hydra's own node."""
    node: DictConfig = HydraConfig.get()  # type: ignore[assignment]  # annotated as its structure
    return node


def run_trial(composed: DictConfig, folder: Path) -> float | None:
    """Run a trial in its folder: a complete one is not run again, an interrupted one is resumed."""
    hydra: Any = HydraConfig.get()
    config = compose.finalize(composed, hydra, GlobalHydra.instance().config_loader())
    before = config
    if (folder / run_folder.CONFIG).is_file():
        before = run_folder.read_configuration(folder)
        if not same_but_for_places(before, config):
            is_named = folder.absolute().parents[1] == Path("outputs/sweeps").absolute()
            new = f"name={folder.parent.name}-2" if is_named else f"hydra.sweep.dir={folder.parent}-2"
            raise ConfigurationError(f"{folder} has a different configuration; give the sweep a new name: {new}")
        if (found := read_result(folder)) and found["status"] in COMPLETE:
            say(f"{folder.name}: {found['status']} already")
            best = found["best"]
            return None if best is None else float(best["metrics"][found["monitor"]])
    else:
        run_folder.write_configuration(folder, config, compose.typed_words(hydra))
    say(f"trial {folder.name}")
    result = train(config, folder, resume=True, is_trial=True)
    if before != config:  # the data have moved, and are the same
        run_folder.write_configuration(folder, config, compose.typed_words(hydra))
    if result.status == "interrupted":
        raise SystemExit(result.exit_code)
    value: float | None = result.value
    return value
