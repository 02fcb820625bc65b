"""`train repeat RUN [overrides]`: run the configuration of a run again in a new folder."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from trainer.base.errors import DataError
from trainer.commands.arguments import changed_configuration, recorded_configuration, run_and_overrides
from trainer.commands.resume import recorded_threads
from trainer.configuration.recorded import same_data
from trainer.hydra_entry.preflight import check_parts
from trainer.launching import train
from trainer.reporting.console import say
from trainer.storage import run_folder


def main(arguments: list[str]) -> int:
    """Run it. Without overrides, on the same machine, the metrics are bit-identical."""
    folder, overrides = run_and_overrides("repeat", arguments)
    before = recorded_configuration(folder)
    config = changed_configuration(folder, before, overrides)
    config["threads"] = config["threads"] or recorded_threads(folder)
    check_parts(config)
    now = datetime.now()
    wanted = Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}-{run_folder.default_name(config)}")
    made = run_folder.create(wanted, config, [*run_folder.read_overrides(folder), *overrides])
    code = int(train(config, made).exit_code)
    if same_data(config["data"], before["data"]) and _checksum(folder) not in (None, _checksum(made)):
        say(f"the data are not those of {folder} (different checksum)")
    return code


def _checksum(folder: Path) -> str | None:
    """Return the recorded checksum of a run's data, or None if there is none."""
    with suppress(DataError):
        if (environment := run_folder.read_environment(folder)) is not None:
            return str(environment["data_sha256"])
    return None
