"""Entry point: dispatches to a sub-command or to Hydra, and turns every error into one line and an exit code.

Nothing heavy is imported here, so `train --help` and most error messages appear without loading torch. What `main`
needs is imported there: a Ctrl-C during imports must not print a traceback.
"""

import os
import signal
import sys


def main() -> None:
    """Entry point of the console script `train`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda signum, frame: os._exit(128 + signum))
    from trainer.base import signals, streams
    from trainer.base.errors import Interrupted

    streams.prepare()
    if "-sc" in sys.argv or "--shell-completion" in sys.argv:
        from trainer.commands import completion

        if (action := completion.asked(sys.argv[1:])) is not None:
            completion.answer(action)
            raise SystemExit(0)
    # before anything is at stake, and after it, a signal ends the program at once: an exception would leave a traceback
    signals.stop_request.leaves = True
    signals.install()
    try:
        raise SystemExit(_main())
    except Interrupted as error:  # raised while another error was reported
        raise SystemExit(error.exit_code) from None
    finally:
        signals.stop_request.leaves = True


def _main() -> int:
    from trainer import launching
    from trainer.base.collector import pausing_collection
    from trainer.base.signals import stop_request
    from trainer.base.streams import check_written
    from trainer.base.trusted_packages import see_trusted_packages
    from trainer.reporting.console import exit_on_error, ignore_deprecations_inside_torch

    ignore_deprecations_inside_torch()
    # by default OpenMP threads spin for milliseconds at each barrier, which makes a run five times slower on a busy
    # machine; spinning for about ten microseconds costs nothing on an idle one
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with pausing_collection(), exit_on_error():
        stop_request.leaves = False
        arguments, is_auto = _own_flags(sys.argv[1:])
        see_trusted_packages()
        launching.see_slurm()
        if launching.is_follower():
            raise SystemExit(launching.follow())
        with launching.followed():
            code = run(arguments, is_auto)
        if code == 0:
            check_written()
    return code


def run(arguments: list[str], is_auto: bool = False) -> int:
    """Run a command line and return its exit code; `is_auto`: continue the run that it began before.

    Raises GearshiftError; any other exception is a bug.
    """
    from trainer.base.errors import ConfigurationError
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
    if is_auto and first in COMMANDS:
        raise ConfigurationError(f"--resume=auto: is for runs and sweeps; train {first} does not train a new one")
    if first in COMMANDS:
        from importlib import import_module

        command = import_module(f"trainer.commands.{first}")
        return int(command.main(arguments[1:]))
    if first and not first.startswith(("-", "+", "~")) and "=" not in first:
        raise ConfigurationError(_no_command(first, COMMANDS))
    if is_auto:
        from trainer.commands.resume_auto import main as resume_or_begin

        return resume_or_begin(arguments)
    from trainer.hydra_entry.hydra import run_hydra

    return run_hydra(arguments)


def _no_command(word: str, commands: dict[str, str]) -> str:
    from trainer.base.text import NAME, nearest
    from trainer.configuration.groups import GROUPS
    from trainer.configuration.rules import PSEUDO_GROUPS
    from trainer.configuration.settings import SETTINGS

    keys = (*GROUPS, *PSEUDO_GROUPS, *SETTINGS, "early_stopping", "every")
    names = (*commands, "help")
    known = {**{name: name for name in names}, "version": "--version", **{key: f"{key}=..." for key in keys}}
    suggestion = f"{word}=..." if word.partition(".")[0] in keys else known.get(nearest(word, known) or "")
    hint = NAME.format(suggestion) if suggestion else ""
    return f"'{word}' is neither a command nor key=value.{hint} Commands: {', '.join(names)}; see train --help"


# --- flags ------------------------------------------------------------------------------------------------


def _own_flags(arguments: list[str]) -> tuple[list[str], bool]:
    """Remove the flags that Hydra would reject from the command line.

    Applies `--debug` and `--trust PACKAGE[,PACKAGE]`; returns the rest, and whether `--resume=auto` was among them.
    """
    from trainer.base.errors import ConfigurationError

    rest, index, is_auto = [], 0, False
    while index < len(arguments):
        argument = arguments[index]
        if argument == "--debug":
            os.environ["GEARSHIFT_DEBUG"] = "1"
        elif argument == "--trust" or argument.startswith("--trust="):
            _, _, packages = argument.partition("=")
            if not packages:
                index += 1
                packages = arguments[index] if index < len(arguments) else ""
            if not all(part.isidentifier() for package in packages.split(",") for part in package.split(".")):
                raise ConfigurationError(f"--trust {packages}: must name packages whose classes may be built: a or a,b")
            os.environ["GEARSHIFT_TRUST"] = f"{os.environ.get('GEARSHIFT_TRUST', '')},{packages}"
        elif argument == "--resume" or argument.startswith("--resume="):
            _, is_given, value = argument.partition("=")
            if not is_given:
                index += 1
                value = arguments[index] if index < len(arguments) else ""
            if value != "auto":
                raise ConfigurationError(f"--resume={value}: must be auto; to name a run: train resume RUN")
            is_auto = True
        else:
            rest.append(argument)
        index += 1
    return rest, is_auto
