"""`train --resume=auto [overrides]`: continue the run that the same command began before, or begin it.

For jobs that a scheduler starts again: `sbatch --requeue` repeats the same command.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from omegaconf import OmegaConf

from trainer.base.config import Config, JsonObject
from trainer.base.errors import ConfigurationError, DataError
from trainer.commands.arguments import check_recorded, recorded_configuration
from trainer.commands.resume import continue_run, differences
from trainer.configuration import compose
from trainer.configuration.recorded import MAY_CHANGE, configuration_hash, with_changes
from trainer.hydra_entry.hydra import run_hydra, words_of_run
from trainer.hydra_entry.jobs import COMPLETE, read_result
from trainer.launching import folder_of_earlier_attempt
from trainer.reporting.console import ignore_broken_pipe, say
from trainer.storage import earlier_runs, run_folder
from trainer.studies.definition import is_study


def main(arguments: list[str]) -> int:
    """Continue, print the result of a run that is complete, or begin; a sweep continues whenever it is typed again."""
    words = words_of_run(arguments)
    if words is None or folder_of_earlier_attempt() is not None:
        return run_hydra(arguments)
    config_dir, name, overrides = words
    with compose.loader_of(config_dir) as (loader, search):
        composed = compose.load(loader, name, [*overrides, *search])
        several = is_study(composed)  # continues whenever it is typed again
        config = {} if several else compose.finalize(composed, composed.hydra, loader)
        pattern = OmegaConf.to_container(composed.hydra.run, resolve=False)
    if several:
        return run_hydra(arguments)
    assert isinstance(pattern, dict)
    root, is_named = earlier_runs.root_of(str(pattern["dir"]))
    job = None if is_named else run_folder.batch_job()
    found = next(_candidates(root, config, job, is_named), None)
    if found is None and is_named and (root / run_folder.CONFIG).is_file():
        lines = list(differences(recorded_configuration(root), config))
        which = f" ({', '.join(lines[:3])}{', ...' if len(lines) > 3 else ''})" if lines else ""
        raise ConfigurationError(
            f"{run_folder.shown(root)}: holds a run of another configuration{which}; name another folder with "
            "hydra.run.dir"
        )
    if found is None:
        whose = f"job {job} has not begun a run" if job else "there is no unfinished run"
        say(f"{whose} of this configuration in {run_folder.shown(root)}: a new one begins")
        return run_hydra(arguments)
    folder, before = found
    if (result := read_result(folder)) is not None and result["status"] in COMPLETE:
        say("\n".join(_summary(folder, result)))
        return 0
    check_recorded(folder, before)
    say(f"continues {run_folder.shown(folder)}")
    changed = [
        word for word in overrides if word.lstrip("+").partition("=")[0].partition(".")[0] in (*MAY_CHANGE, "data")
    ]
    ignore_broken_pipe()
    return int(continue_run(folder, before, with_changes(before, config), changed).exit_code)


def _candidates(root: Path, config: Config, job: str | None, is_named: bool) -> Iterator[tuple[Path, Config]]:
    """Runs of the same configuration, newest first: the one in the folder that the user named, those that a job has
    made, or those that are not complete."""
    wanted = configuration_hash(config)
    for folder in earlier_runs.runs_below(root):
        if job is not None and earlier_runs.made_by(folder) != job:
            continue
        with suppress(DataError, ConfigurationError):  # damaged, or of another version: not known to be the same
            before = recorded_configuration(folder)
            if configuration_hash(before) == wanted and (is_named or job or not _is_complete(folder)):
                yield folder, before


def _is_complete(folder: Path) -> bool:
    try:
        result = read_result(folder)
    except DataError:  # resuming reports it
        return False
    return result is not None and result["status"] in COMPLETE


def _summary(folder: Path, result: JsonObject) -> Iterator[str]:
    yield f"{run_folder.shown(folder)} is complete: {result['status']} after {result['steps']} steps"
    for name, values in (("best", (result["best"] or {}).get("metrics")), ("test (best weights)", result["test"])):
        if values:
            yield f"{name}: " + "  ".join(f"{key} {float(value):.4f}" for key, value in values.items())
