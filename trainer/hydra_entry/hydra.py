"""Runs Hydra on a checked command line and translates its errors."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import NoReturn

from trainer.base.errors import ConfigurationError, DiskError, NotTrusted, SweepFailed, one_line, unknown


def run_hydra(arguments: list[str]) -> int:
    """Compose and execute a run or a sweep with Hydra, in this process; returns the exit code."""
    import hydra

    from trainer.configuration import compose
    from trainer.configuration.hydra_node import checked_loading
    from trainer.hydra_entry.jobs import Jobs
    from trainer.hydra_entry.preflight import own_grid

    flags, overrides = hydra_flags(arguments)
    # makes Hydra raise errors instead of printing them and exiting with code 1
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *overrides, *flags]  # flags last: --info would consume an override that follows it
    compose.register_resolvers()
    jobs = Jobs()
    entry = hydra.main(version_base="1.3", config_path=str(compose.config_folder()), config_name=compose.NAME)(jobs.run)
    try:
        _check_words(flags, overrides)
        with checked_loading(), own_grid(), _mode_by_words(flags, overrides):
            _enter(entry)
    except NotTrusted:
        raise
    except Exception as error:
        if jobs.count:
            raise
        _explain(error, flags, overrides)
    if jobs.failed:
        raise SweepFailed(f"{len(jobs.failed)} of {jobs.count} trials failed: {', '.join(jobs.failed)}")
    if jobs.error is not None:
        raise jobs.error
    return jobs.exit_code


@contextmanager
def _mode_by_words(flags: list[str], overrides: list[str]) -> Iterator[None]:
    """Hydra composes everything once more for `hydra.mode`, which only words on Hydra's own node, or files of a user,
    can set: without them there is none."""
    from hydra._internal.hydra import Hydra

    from trainer.configuration.compose import NAME

    given = _parser().parse_args(flags)
    by_files = given.config_dir is not None or given.config_name not in (None, NAME)
    get_mode = vars(Hydra).get("get_mode")  # private: another version of Hydra may not have it
    if get_mode is None or by_files or any("hydra" in word for word in overrides):
        yield
        return
    Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


def _enter(entry: Callable[[], object]) -> None:
    """Call Hydra. If `--package` names nothing, Hydra prints a message and exits with code 1: raise it instead."""
    stderr = io.StringIO()
    if not {"--package", "-p"} & {word.partition("=")[0] for word in sys.argv}:
        entry()
        return
    try:
        with redirect_stderr(stderr):
            entry()
    except SystemExit as leaving:
        if leaving.code == 1:
            raise ConfigurationError(f"--package: {stderr.getvalue().strip()}") from None
        raise


def _check_words(flags: list[str], overrides: list[str]) -> None:
    """Raise ConfigurationError for overrides that Hydra would accept, such as a key given twice."""
    from trainer.configuration.compose import read_overrides

    given = _parser().parse_args(flags)
    if not given.shell_completion and (problems := read_overrides(overrides, is_sweep=_is_sweep(given, overrides))[0]):
        raise ConfigurationError(problems)


def _is_sweep(given: argparse.Namespace, overrides: list[str]) -> bool:
    return given.multirun or "hydra.mode=MULTIRUN" in overrides


def _explain(error: Exception, flags: list[str], overrides: list[str]) -> NoReturn:
    """Raise the error for which Hydra started no job, with all other problems of the command line."""
    from hydra.errors import HydraException
    from hydra.types import RunMode

    from trainer.configuration import compose
    from trainer.configuration.hydra_errors import explained

    given = _parser().parse_args(flags)
    if not given.shell_completion:
        with compose.loader_of(given.config_dir) as (loader, search):
            mode = RunMode.MULTIRUN if _is_sweep(given, overrides) else RunMode.RUN
            compose.load(loader, given.config_name or compose.NAME, [*overrides, *search], mode)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        raise DiskError(one_line(error)) from error
    with explained():
        # plug-ins fail on invalid settings with exceptions of any type
        if given.shell_completion or any("hydra" in override for override in overrides):
            raise HydraException(one_line(error)) from error
        raise error


def words_of_run(arguments: list[str]) -> tuple[str | None, str, list[str]] | None:
    """Return the folder of options, the primary configuration and the overrides of a run; None if it is no single run.

    Raises ConfigurationError with every problem of the flags and of the overrides' syntax.
    """
    from trainer.configuration.compose import NAME

    flags, overrides = hydra_flags(arguments)
    given = _parser().parse_args(flags)
    if given.cfg or given.info or given.shell_completion or given.hydra_help or _is_sweep(given, overrides):
        return None
    _check_words(flags, overrides)
    return given.config_dir, given.config_name or NAME, overrides


class _Parser(argparse.ArgumentParser):
    """Parser of Hydra's flags that raises ConfigurationError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message.removeprefix('argument ')}; see train --help")


def _parser() -> argparse.ArgumentParser:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.__class__ = _Parser
    return parser


def hydra_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate Hydra's flags with their values from the overrides; users mix them.

    Raises ConfigurationError with every problem of the flags.
    """
    from trainer.configuration.compose import folder_problems

    parser = _parser()
    given, unread = parser.parse_known_intermixed_args(arguments)
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    problems = [unknown("flag", word.partition("=")[0], [*known, "--debug", "--resume", "--trust"]) for word in unread]
    chosen = {"--run": given.run, "--multirun": given.multirun, "--cfg": given.cfg, "--info": given.info}
    modes = [flag for flag, value in chosen.items() if value] + ["--shell-completion"] * given.shell_completion
    if len(modes) > 1:
        problems.append(f"{', '.join(modes)}: give only one of them")
    problems += [
        f"--{flag}: requires --cfg job" for flag in ("resolve", "package") if getattr(given, flag) and not given.cfg
    ]
    if given.multirun and "hydra.mode=RUN" in given.overrides:
        problems.append("--multirun, hydra.mode=RUN: give only one of them")
    if given.experimental_rerun:
        problems.append("--experimental-rerun: is not supported; train repeat RUN runs a configuration again")
    if given.config_path is not None:
        problems.append("--config-path: is not supported; --config-dir adds a folder of options to ours")
    if given.config_dir is not None:
        problems += folder_problems(Path(given.config_dir))
    if problems:
        raise ConfigurationError(problems)
    return [word for word in arguments if word not in given.overrides], list(given.overrides)
