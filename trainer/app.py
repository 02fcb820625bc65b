"""The entry: a sub-command, or Hydra. Every error becomes one line and an exit code.

Nothing heavy is imported here: `train --help` and most mistakes are answered without torch.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

from trainer import launching, signals
from trainer.base.text import NAME
from trainer.console import exit_on_error
from trainer.errors import ConfigurationError, DiskError, SweepFailed, nearest, one_line, unknown


def main() -> None:
    """The console script `train`."""
    signals.install()
    # OpenMP threads that spin for milliseconds at each barrier make a run five times slower on a busy machine;
    # spinning for about ten microseconds costs nothing on a quiet one
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with exit_on_error():
        arguments = _own_flags(sys.argv[1:])
        _see_trusted_packages()
        launching.see_slurm()
        if launching.is_follower():
            raise SystemExit(launching.follow())
        with launching.followed():
            code = run(arguments)
        sys.stdout.flush()
    raise SystemExit(code)


def run(arguments: list[str]) -> int:
    """Run a command line; returns the exit code. Raises GearshiftError and whatever is a bug."""
    from trainer.commands import COMMANDS

    first = arguments[0] if arguments else ""
    if "--help" in arguments or "-h" in arguments or first == "help":
        from trainer.commands.help import print_help

        print_help(arguments)
        return 0
    if "--version" in arguments:
        from importlib.metadata import version

        print(f"gearshift {version('gearshift')}")
        return 0
    if first in COMMANDS:
        from importlib import import_module

        command = import_module(f"trainer.commands.{first}")
        return int(command.main(arguments[1:]))
    if first and not first.startswith(("-", "+", "~")) and "=" not in first:
        raise ConfigurationError(_no_command(first, COMMANDS))
    return run_hydra(arguments)


def _no_command(word: str, commands: dict[str, str]) -> str:
    from trainer.config import GROUPS, PSEUDO_GROUPS, SETTINGS

    keys = (*GROUPS, *PSEUDO_GROUPS, *SETTINGS, "early_stopping", "every")
    known = {**{name: name for name in commands}, **{key: f"{key}=..." for key in keys}}
    suggestion = f"{word}=..." if word.partition(".")[0] in keys else known.get(nearest(word, known) or "")
    hint = NAME.format(suggestion) if suggestion else ""
    return f"'{word}' is neither a command nor key=value.{hint} Commands: {', '.join(commands)}; see train --help"


def run_hydra(arguments: list[str]) -> int:
    """A run or a sweep, composed by Hydra in this process."""
    import hydra

    from trainer import composition
    from trainer.job import Jobs

    flags, overrides = hydra_flags(arguments)
    # with it Hydra lets errors through instead of printing them and leaving with code 1
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *overrides, *flags]  # in this order: --info would take what follows it
    composition.register_resolvers()
    jobs = Jobs()
    entry = hydra.main(version_base="1.3", config_path=str(composition.config_folder()), config_name=composition.NAME)(
        jobs.run
    )
    try:
        _check_words(flags, overrides)
        _check_hydra(flags, overrides)
        _enter(entry)
    except Exception as error:
        if jobs.count:
            raise
        _explain(error, flags, overrides)
    if jobs.failed:
        raise SweepFailed(f"{len(jobs.failed)} of {jobs.count} trials failed: {', '.join(jobs.failed)}")
    if jobs.error is not None:
        raise jobs.error
    return jobs.exit_code


def _enter(entry: Callable[[], Any]) -> None:
    """Hydra leaves with code 1 where it cannot show a package, after a line of its own on stderr."""
    said = io.StringIO()
    if not {"--package", "-p"} & {word.partition("=")[0] for word in sys.argv}:
        entry()
        return
    try:
        with redirect_stderr(said):
            entry()
    except SystemExit as leaving:
        if leaving.code == 1:
            raise ConfigurationError(f"--package: {said.getvalue().strip()}") from None
        raise


def _check_words(flags: list[str], overrides: list[str]) -> None:
    """Refuse what Hydra would take, such as a key given twice. Raises ConfigurationError."""
    from trainer.composition import read_overrides

    given = _parser().parse_args(flags)
    if not given.shell_completion and (problems := read_overrides(overrides, is_sweep=_is_sweep(given, overrides))[0]):
        raise ConfigurationError(problems)


def _check_hydra(flags: list[str], overrides: list[str]) -> None:
    """Look at Hydra's own node before Hydra acts on it, where a folder of the user's may have put something there.

    Raises ConfigurationError.
    """
    given = _parser().parse_args(flags)
    searches = any(word.lstrip("+").startswith("hydra.searchpath") for word in overrides)
    if given.shell_completion or (given.config_dir is None and not searches):
        return
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.types import RunMode

    from trainer import composition

    with composition.loader_of() as (loader, _):
        path = loader.get_search_path()
        if given.config_dir is not None:  # as Hydra does it, so that the primary configuration may lie there, too
            path.prepend("command-line", f"file://{Path(given.config_dir).resolve()}", anchor="schema")
        mode = RunMode.MULTIRUN if _is_sweep(given, overrides) else RunMode.RUN
        name = given.config_name or composition.NAME
        composed = composition.load(ConfigLoaderImpl(path), name, overrides, mode)
        if problems := composition.hydra_problems(composed.hydra):
            raise ConfigurationError(problems)


def _is_sweep(given: argparse.Namespace, overrides: list[str]) -> bool:
    return given.multirun or "hydra.mode=MULTIRUN" in overrides


def _explain(error: Exception, flags: list[str], overrides: list[str]) -> NoReturn:
    """Say why Hydra did not come as far as a job, with everything else that is wrong with the command line."""
    from hydra.errors import HydraException
    from hydra.types import RunMode

    from trainer import composition

    given = _parser().parse_args(flags)
    if not given.shell_completion:
        with composition.loader_of(given.config_dir) as (loader, search):
            mode = RunMode.MULTIRUN if _is_sweep(given, overrides) else RunMode.RUN
            composition.load(loader, given.config_name or composition.NAME, [*overrides, *search], mode)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        raise DiskError(one_line(error)) from error
    with composition.explained():
        # plug-ins stumble over their settings in many ways
        if given.shell_completion or any("hydra" in override for override in overrides):
            raise HydraException(one_line(error)) from error
        raise error


# --- flags ------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Hydra's own flags; mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message.removeprefix('argument ')}; see train --help")


def _parser() -> argparse.ArgumentParser:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.__class__ = _Parser
    return parser


def hydra_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the overrides: argparse wants them apart, users mix them.

    Raises ConfigurationError with every problem of the flags.
    """
    from trainer.composition import folder_problems

    parser = _parser()
    given, unread = parser.parse_known_intermixed_args(arguments)
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    problems = [unknown("flag", word.partition("=")[0], [*known, "--debug", "--trust"]) for word in unread]
    what = {"--run": given.run, "--multirun": given.multirun, "--cfg": given.cfg, "--info": given.info}
    modes = [flag for flag, value in what.items() if value] + ["--shell-completion"] * given.shell_completion
    if len(modes) > 1:
        problems.append(f"{', '.join(modes)}: give one of them")
    problems += [
        f"--{flag}: goes with --cfg job" for flag in ("resolve", "package") if getattr(given, flag) and not given.cfg
    ]
    if given.multirun and "hydra.mode=RUN" in given.overrides:
        problems.append("--multirun, hydra.mode=RUN: give one of them")
    if given.experimental_rerun:
        problems.append("--experimental-rerun: is not supported; train repeat RUN runs a configuration again")
    if given.config_path is not None:
        problems.append("--config-path: is not supported; --config-dir adds a folder of options to ours")
    if given.config_dir is not None:
        problems += folder_problems(Path(given.config_dir))
    if problems:
        raise ConfigurationError(problems)
    return [word for word in arguments if word not in given.overrides], list(given.overrides)


def _own_flags(arguments: list[str]) -> list[str]:
    """Take `--debug` and `--trust PACKAGE` out of the command line; Hydra does not know them."""
    rest, index = [], 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == "--debug":
            os.environ["GEARSHIFT_DEBUG"] = "1"
        elif argument == "--trust" or argument.startswith("--trust="):
            _, _, package = argument.partition("=")
            if not package:
                index += 1
                package = arguments[index] if index < len(arguments) else ""
            if not all(part.isidentifier() for part in package.split(".")):
                raise ConfigurationError(f"--trust {package}: must name a package whose classes may be built")
            os.environ["GEARSHIFT_TRUST"] = f"{os.environ.get('GEARSHIFT_TRUST', '')},{package}"
        else:
            rest.append(argument)
        index += 1
    return rest


def _see_trusted_packages() -> None:
    """Make trusted packages that lie in the current folder importable: a console script does not look there."""
    for package in os.environ.get("GEARSHIFT_TRUST", "").split(","):
        top = package.strip().partition(".")[0]
        if top and (Path(top).is_dir() or Path(f"{top}.py").is_file()) and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # first, where `python -m trainer` has it
