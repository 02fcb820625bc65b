"""`train resume RUN [epochs=... | steps=...]`: continue where a run stopped, in the same folder."""

import json
from pathlib import Path

import yaml

from trainer import composition, run_folder
from trainer.commands.arguments import run_and_overrides
from trainer.config import Config
from trainer.errors import ConfigurationError
from trainer.job import COMPLETE, read_result

# more training, and another way to spread it, are the only changes under which a run is still the same run
MAY_CHANGE = ("epochs", "steps", "parallelism")


def main(arguments: list[str]) -> int:
    """Continue with the same bits; on the folder of a sweep, run what is left of it."""
    folder, overrides = run_and_overrides("resume", arguments)
    if (folder / "multirun.yaml").is_file():
        return resume_sweep(folder, overrides)
    before = run_folder.read_configuration(folder)
    config = changed(before, overrides)
    result = read_result(folder)
    if result is not None and result["status"] in COMPLETE and config == before:
        print(f"{folder} is complete ({result['status']}); to train it further: train resume {folder} epochs=...")
        return 0
    return resume(folder, before, config, overrides)


def resume(folder: Path, before: Config, config: Config, overrides: list[str]) -> int:
    """Check, lock, write down what changes, and go on."""
    from trainer.assembly import assemble
    from trainer.blueprint import draw
    from trainer.loop import fit

    config = config | {"threads": config["threads"] or recorded_threads(folder)}
    draw(config)
    lock = run_folder.Lock(folder)
    # first of all: a complete result beside a configuration that asks for more would end the run here
    (folder / run_folder.RESULT).unlink(missing_ok=True)
    changes = [f"{key}: {before[key]} -> {config[key]}" for key in MAY_CHANGE if config[key] != before[key]]
    if changes:
        print("\n".join(changes))
        run_folder.write_configuration(folder, config, [*recorded_overrides(folder), *overrides])
    return fit(assemble(config, folder, resume=True, lock=lock)).exit_code


def resume_sweep(folder: Path, overrides: list[str]) -> int:
    """The rest of a sweep: finished trials are passed over."""
    from trainer.app import run_hydra

    if overrides:
        raise ConfigurationError(f"a sweep is resumed as it is; start another one for {' '.join(overrides)}")
    hydra = yaml.safe_load((folder / "multirun.yaml").read_text())["hydra"]
    return run_hydra(["--multirun", *hydra["overrides"]["task"], f"hydra.sweep.dir={folder}"])


def changed(before: Config, overrides: list[str]) -> Config:
    """The configuration with `overrides`, of which only those of MAY_CHANGE are accepted."""
    config = composition.override(before, overrides) if overrides else before
    composition.check_settings(config)
    different = [key for key in config if config[key] != before.get(key) and key not in (*MAY_CHANGE, "choices")]
    if different:
        raise ConfigurationError(
            f"{key}={config[key]}: the run has {before[key]}; resume may change {', '.join(MAY_CHANGE)} only "
            "(a new run: train repeat)"
            for key in different
        )
    return config


def recorded_threads(folder: Path) -> int | None:
    """The number of CPU threads that the run began with: another one would give other last bits."""
    path = folder / run_folder.ENVIRONMENT
    return json.loads(path.read_text())["threads"] if path.is_file() else None


def recorded_overrides(folder: Path) -> list[str]:
    """What was typed when the run began."""
    path = folder / run_folder.OVERRIDES
    return list(yaml.safe_load(path.read_text()) or []) if path.is_file() else []
