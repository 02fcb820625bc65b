"""`train evaluate RUN...`: metrics of the best weights of runs, on validation and test part."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer import composition, run_folder
from trainer.commands.arguments import split
from trainer.errors import ConfigurationError


def main(arguments: list[str]) -> int:
    """Print a table; on a pipe, one JSON object a run and line."""
    folders, overrides = split("evaluate", arguments)
    if not folders:
        raise ConfigurationError("train evaluate takes run folders: train evaluate RUN...")
    rows = {folder: evaluate_run(folder, overrides) for folder in folders}
    console = Console()
    if not console.is_terminal:
        for folder, metrics in rows.items():
            print(json.dumps({"run": str(folder), **metrics}))
        return 0
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    table = Table("run", *names)
    for folder, metrics in rows.items():
        table.add_row(str(folder), *(f"{metrics[name]:.4f}" if name in metrics else "" for name in names))
    console.print(table)
    return 0


def evaluate_run(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Validation and test metrics of `best.pt`. Raises DataError when there is none or it is damaged."""
    config = run_folder.read_configuration(folder)
    if overrides:
        config = composition.override(config, overrides)
    composition.check_settings(config)
    from trainer import checkpoint
    from trainer.assembly import put_together
    from trainer.blueprint import draw
    from trainer.evaluation import evaluate
    from trainer.state import restore_weights

    run = put_together(draw(config | {"compile": False, "init_from": None}))
    restore_weights(run, checkpoint.load(folder / run_folder.CHECKPOINTS / "best.pt"))
    return evaluate(run, run.splits.val, "val") | evaluate(run, run.splits.test, "test")
