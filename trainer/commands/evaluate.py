"""`train evaluate RUN...`: metrics of the best weights of runs, on validation and test part."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer import composition, run_folder
from trainer.commands.arguments import recorded_configuration, split
from trainer.config import SINGLE
from trainer.errors import ConfigurationError, one_line


def main(arguments: list[str]) -> int:
    """Print a table; on a pipe, one JSON object a run and line."""
    folders, overrides = split("evaluate", arguments)
    if not folders:
        raise ConfigurationError("train evaluate takes run folders: train evaluate RUN... [key=value ...]")
    console = Console()
    if not console.is_terminal:
        for folder in folders:
            print(json.dumps({"run": str(folder), **evaluate_run(folder, overrides)}), flush=True)
        return 0
    rows = {folder: evaluate_run(folder, overrides) for folder in folders}
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    table = Table("run", *names)
    for folder, metrics in rows.items():
        table.add_row(str(folder), *(f"{metrics[name]:.4f}" if name in metrics else "" for name in names))
    console.print(table)
    return 0


def evaluate_run(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Validation and test metrics of `best.pt`. Raises DataError when there is none or it is damaged."""
    config = recorded_configuration(folder)
    if overrides:
        config = composition.override(config, overrides)
    from trainer import checkpoint
    from trainer.assembly import put_together
    from trainer.blueprint import draw
    from trainer.evaluation import evaluate
    from trainer.state import restore_weights

    best = folder / run_folder.CHECKPOINTS / "best.pt"
    blueprint = draw(config | {"compile": False, "init_from": None, "parallelism": SINGLE})
    state = checkpoint.load(best)
    run = put_together(blueprint)
    try:
        restore_weights(run, state)
    except (RuntimeError, KeyError) as error:
        raise ConfigurationError(f"{best}: does not fit {' '.join(overrides) or config}: {one_line(error)}") from error
    return evaluate(run, run.splits.val, "val") | evaluate(run, run.splits.test, "test")
