"""`train resume RUN [epochs=... | steps=...]`, and `resume` of Python: continue where a run stopped, in its folder."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.base.config import Config, ConfigValue, JsonObject
from trainer.base.errors import ConfigurationError, DataError, RunInUse
from trainer.base.signals import stop_request
from trainer.base.text import written
from trainer.base.turns import turn
from trainer.commands.arguments import changed_configuration, recorded_configuration, run_and_overrides
from trainer.commands.sweep_folder import quoted, resume_study, resume_sweep, take_config_dir
from trainer.configuration.from_python import override_list
from trainer.configuration.recorded import MAY_CHANGE, is_place, moved_places, same_but_for_places
from trainer.configuration.rules import SINGLE
from trainer.hydra_entry.jobs import COMPLETE, read_result
from trainer.launching import train
from trainer.reporting.console import ignore_broken_pipe, say
from trainer.storage import identity, run_folder
from trainer.storage.files import disk_errors, read_file, write_atomic

if TYPE_CHECKING:
    from trainer.training.finish import Result


def main(arguments: list[str]) -> int:
    """Continue a run bit-identically; for the folder of a sweep or of a study, run the rest of it."""
    rest, config_dir = take_config_dir(arguments)
    folder, overrides = run_and_overrides("resume", rest)
    if (folder / run_folder.SWEEP).is_file():
        return resume_sweep(folder, overrides, config_dir)
    if (folder / run_folder.LEDGER).is_file():
        return resume_study(folder, overrides, config_dir)
    if config_dir is not None:
        raise ConfigurationError(
            f"--config-dir {config_dir}: is for a sweep or study; the folder of a run holds its options"
        )
    before, config = checked(folder, overrides)
    if (result := complete_result(folder, before, config)) is not None:
        key = "epochs" if config["steps"] is None else "steps"
        words = f"train resume {shlex.quote(str(folder))} {key}={2 * config[key]}"
        if config["schedule_length"] != before["schedule_length"]:  # would change no step that is left
            words += f" schedule_length={written(config['schedule_length'])}"
        print(f"{folder} is complete ({result['status']}); to train it further, such as twice as long: {words}")
        return 0
    ignore_broken_pipe()
    return int(continue_run(folder, before, config, overrides).exit_code)


@turn()
def resume(folder: str | Path, overrides: Sequence[str] = (), **changes: ConfigValue) -> "Result":
    """Continue the run of a folder, as `train resume FOLDER [key=value ...]` does: `resume(folder, epochs=40)`.

    Changes are keywords, or `overrides` as they are typed: `["epochs=40"]`. A complete run is trained further if it
    gets more epochs or steps; otherwise its result is returned. Raises the errors of the command: ConfigurationError,
    DataError, DiskError, RunInUse, and those of `fit`.
    """
    from trainer.training.finish import recorded_result

    words = [*override_list(overrides, "resume"), *(typed(key, value) for key, value in changes.items())]
    path, words = run_and_overrides("resume", [str(folder), *words])
    before, config = checked(path, words)
    if (result := complete_result(path, before, config)) is not None:
        return recorded_result(path, result)
    advice = stop_request.advice
    try:
        return continue_run(path, before, config, words)
    finally:
        stop_request.advice = advice  # what the program is asked later is not about this run


def typed(key: str, value: ConfigValue) -> str:
    """Return an override as it is typed on the command line; text with special characters is quoted."""
    if isinstance(value, Path):
        value = str(value)
    is_special = isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value)
    return f"{key}={quoted(value) if is_special else written(value)}"


def checked(folder: Path, overrides: list[str]) -> tuple[Config, Config]:
    """Return the configuration of a run as it is recorded, and with overrides.

    Raises ConfigurationError if the overrides change more than the run may, or DataError if the record is damaged.
    """
    before = recorded_configuration(folder)
    config = changed_configuration(folder, before, overrides)
    refuse_other(before, config, f"train repeat {' '.join(map(shlex.quote, [str(folder), *overrides]))}")
    return before, config


def complete_result(folder: Path, before: Config, config: Config) -> JsonObject | None:
    """Return the recorded result if the run is complete and is not to be trained further."""
    result = read_result(folder)
    config = config | {"schedule_length": before["schedule_length"]}  # of no use without further steps
    if result is None or result["status"] not in COMPLETE or not same_but_for_places(config, before):
        return None
    return result


def continue_run(folder: Path, before: Config, config: Config, overrides: list[str]) -> "Result":
    """Check the configuration, lock the folder, record the changes and continue training."""
    from trainer.assembly.assemble import assemble
    from trainer.assembly.run_folder_of import for_resuming
    from trainer.configuration.resolve import resolve
    from trainer.training.loop import fit

    if config["parallelism"] == before["parallelism"]:
        config = config | {"threads": config["threads"] or recorded_threads(folder)}
    total = resolve(for_resuming(config, folder)).total_steps
    result = read_result(folder)
    if result is not None and result["steps"] > total:
        raise ConfigurationError(
            f"{' '.join(overrides)}: is {total} steps; the run has taken {result['steps']} already"
        )
    lock = run_folder.Lock(folder)
    stop_request.advice = run_folder.how_to_continue(folder)
    # ranks assemble and train in one call; an error after the assembly belongs to the run and must not undo the files
    refused = (BaseException,) if config["parallelism"] == SINGLE else (ConfigurationError, DataError, RunInUse)
    files = (folder / run_folder.RESULT, folder / run_folder.CONFIG, folder / run_folder.OVERRIDES)
    with restoring(*files, when=refused):
        # first: if this process is killed, a complete result must not stay beside a configuration that asks for more
        with disk_errors(folder / run_folder.RESULT):
            (folder / run_folder.RESULT).unlink(missing_ok=True)
        if changes := list(describe_changes(before, config)):
            say("\n".join(changes))
            run_folder.write_configuration(folder, config, [*run_folder.read_overrides(folder), *overrides])
        run = assemble(config, folder, resume=True, lock=lock) if config["parallelism"] == SINGLE else None
        if run is None:
            return train(config, folder, resume=True, lock=lock)
    return fit(run)


def describe_changes(before: Config, config: Config) -> Iterator[str]:
    """Describe each change in one line."""
    yield from moved_places(before["data"], config["data"])
    for key in MAY_CHANGE:
        if config[key] == before[key]:
            continue
        if key == "parallelism":
            names = before["choices"][key], config["choices"][key]
            keys = [k for k in config[key] if config[key][k] != before[key].get(k) and k != "_target_"]
            settings = ", ".join(f"{k}={config[key][k]}" for k in keys)
            yield f"parallelism: {names[0]} -> {names[1]} ({settings}): the same curve, to rounding"
        else:
            yield f"{key}: {written(before[key])} -> {written(config[key])}"


@contextmanager
def restoring(*files: Path, when: tuple[type[BaseException], ...] = (BaseException,)) -> Iterator[None]:
    """Context manager that restores these files if the body raises an exception of the types `when`."""
    before = {path: read_file(path) if path.exists() else None for path in files}
    try:
        yield
    except when:
        for path, content in before.items():
            if content is not None and not (path.is_file() and path.read_bytes() == content):
                write_atomic(path, content)
        raise


def refuse_other(before: Config, config: Config, again: str) -> None:
    """Raise ConfigurationError if keys change other than MAY_CHANGE and those that say where the data lie.

    `again` is the command line of a new run with these changes.
    """
    problems = [
        f"{line}; resume may only change {', '.join(MAY_CHANGE)} and where the data lie; for a new run: {again}"
        for line in differences(before, config)
    ]
    if problems:
        raise ConfigurationError(problems)


def differences(before: Config, config: Config) -> Iterator[str]:
    """Describe each difference that makes it another run."""
    for key in config:
        if config[key] != before.get(key) and key not in (*MAY_CHANGE, "choices"):
            yield from _differences_of(key, before, config)


def _differences_of(key: str, before: Config, after: Config) -> Iterator[str]:
    """Describe the changes of a top-level key; another option of a group is one, whatever its keys."""
    chosen, had = after["choices"].get(key), before["choices"].get(key)
    if chosen != had:
        yield f"{key}={chosen}: the run has {had}"
    else:
        yield from _differences(key, before.get(key), after[key])


def _differences(key: str, before: ConfigValue, after: ConfigValue) -> Iterator[str]:
    if key.startswith("data.") and is_place(key):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                yield from _differences(f"{key}.{name}", before.get(name), after.get(name))
    else:
        yield f"{key}={written(after)}: the run has {written(before)}"


def recorded_threads(folder: Path) -> int | None:
    """Number of CPU threads that the run started with; a different number changes the last bits."""
    with suppress(DataError):  # the run tells it when it has begun
        if (record := identity.read_record(folder)) is not None:
            return record.threads
    with suppress(DataError):
        if (environment := run_folder.read_environment(folder)) is not None:
            return int(environment["threads"])
    return None
