"""`train repeat RUN [overrides]`: run the configuration of a run again in a new folder."""

from datetime import datetime
from pathlib import Path

from trainer.commands.arguments import recorded_configuration, run_and_overrides
from trainer.commands.resume import recorded_overrides, recorded_threads
from trainer.configuration import compose
from trainer.hydra_entry.preflight import check_parts
from trainer.launching import train
from trainer.storage import run_folder


def main(arguments: list[str]) -> int:
    """Run it. Without overrides, on the same machine, the metrics are bit-identical."""
    folder, overrides = run_and_overrides("repeat", arguments)
    config = recorded_configuration(folder)
    if overrides:
        config = compose.override(config, overrides)
    config["threads"] = config["threads"] or recorded_threads(folder)
    check_parts(config)
    now = datetime.now()
    wanted = Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}-{run_folder.default_name(config)}")
    made = run_folder.create(wanted, config, [*recorded_overrides(folder), *overrides])
    return int(train(config, made).exit_code)
