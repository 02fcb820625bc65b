"""The entry: a sub-command, or Hydra. Every error becomes one line and an exit code.

Nothing heavy is imported here: `train --help` and most mistakes are answered without torch.
"""

import os
import sys
from pathlib import Path

from trainer import signals
from trainer.console import exit_on_error
from trainer.errors import ConfigurationError, SweepFailed, nearest


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
        code = run(arguments)
    raise SystemExit(code)


def run(arguments: list[str]) -> int:
    """Run a command line; returns the exit code. Raises GearshiftError and whatever is a bug."""
    from trainer.commands import COMMANDS

    first = arguments[0] if arguments else ""
    if "--help" in arguments or "-h" in arguments:
        from trainer.commands.help import print_help

        print_help(arguments)
        return 0
    if first in COMMANDS:
        from importlib import import_module

        command = import_module(f"trainer.commands.{first}")
        return int(command.main(arguments[1:]))
    if first and not first.startswith(("-", "+", "~")) and "=" not in first:
        suggestion = nearest(first, COMMANDS)
        hint = f" Did you mean '{suggestion}'?" if suggestion else ""
        raise ConfigurationError(f"'{first}' is neither a command nor key=value.{hint} Commands: {', '.join(COMMANDS)}")
    return run_hydra(arguments)


def run_hydra(arguments: list[str]) -> int:
    """A run or a sweep, composed by Hydra in this process."""
    import hydra

    from trainer import composition
    from trainer.job import Jobs

    # with it Hydra lets errors through instead of printing them and leaving with code 1
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments]
    composition.register_resolvers()
    jobs = Jobs()
    entry = hydra.main(version_base="1.3", config_path=str(composition.config_folder()), config_name=composition.NAME)(
        jobs.run
    )
    with composition.explained():
        entry()
    if jobs.failed:
        raise SweepFailed(f"{len(jobs.failed)} of {jobs.count} trials failed: {', '.join(jobs.failed)}")
    if jobs.error is not None:
        raise jobs.error
    return jobs.exit_code


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
            if not package.replace(".", "").replace("_", "").isalnum():
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
