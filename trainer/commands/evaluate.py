"""`train evaluate RUN... [tta=...]`: metrics of the best weights of runs on the validation and test split.

`tta=none|flip|ten_crop|multi_scale` averages class probabilities over views of each image and reports images per
second; see `trainer.training.test_time_augmentation`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainer.base.errors import ConfigurationError, one_line
from trainer.commands.arguments import changed_configuration, recorded_configuration, split
from trainer.configuration.recorded import as_trained, same_data
from trainer.configuration.rules import SINGLE
from trainer.reporting.terminal import interactive
from trainer.storage import run_folder
from trainer.storage.records import spelled
from trainer.training.test_time_augmentation import KINDS, TestTime, read_words


def main(arguments: list[str]) -> int:
    """Print a table; if the output is not a terminal, one line of JSON per run."""
    folders, words = split("evaluate", arguments)
    if not folders:
        raise ConfigurationError(
            f"train evaluate takes run folders: train evaluate RUN... [tta={'|'.join(KINDS)}] [key=value ...]"
        )
    test_time, overrides = read_words(words)
    console = Console()
    if not console.is_terminal:
        for folder in folders:
            line = {"run": str(folder), **evaluate_run(folder, overrides, test_time)}
            print(json.dumps(spelled(line), allow_nan=False), flush=True)
        return 0
    rows = {folder: evaluate_run(folder, overrides, test_time) for folder in folders}
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    table = Table("run", *names)
    for folder, metrics in rows.items():
        table.add_row(str(folder), *(f"{metrics[name]:.4f}" if name in metrics else "" for name in names))
    console.print(table)
    return 0


def evaluate_run(folder: Path, overrides: list[str], test_time: TestTime | None = None) -> dict[str, float]:
    """Return validation and test metrics of `best.pt`.

    With `test_time`, probabilities are averaged over views, and the result includes images (not views) per second.
    If the data differ from those of the run although no override but that of their place asks for it, one line on
    stderr says so.

    Raises DataError if `best.pt` is missing or damaged; ConfigurationError if `test_time` is used with data other
    than images of classes.
    """
    recorded = recorded_configuration(folder)
    config = changed_configuration(folder, recorded, overrides)
    import torch

    from trainer.assembly.assemble import build_run
    from trainer.assembly.last_checkpoint import own_best
    from trainer.assembly.run_folder_of import other_data
    from trainer.configuration.resolve import resolve
    from trainer.training.evaluation import evaluate, evaluate_views
    from trainer.training.evaluation_batches import prepared
    from trainer.training.state import restore_weights

    best = folder / run_folder.CHECKPOINTS / "best.pt"
    blueprint = resolve(as_trained(config) | {"compile": False, "parallelism": SINGLE})
    if test_time is not None and (blueprint.facts.task != "classification" or blueprint.facts.kind != "images"):
        facts = blueprint.facts
        other = facts.task if facts.task != "classification" else facts.kind
        raise ConfigurationError(f"tta={test_time.kind}: averages class probabilities of images; the data is {other}")
    state = own_best(folder, recorded)
    run = build_run(blueprint, fit=False)
    try:
        restore_weights(run, state)
        prepared(run, torch.zeros(1, *blueprint.facts.input_shape, device=run.device))
    except (RuntimeError, KeyError) as error:
        raise ConfigurationError(f"{best}: does not fit {' '.join(overrides) or config}: {one_line(error)}") from error
    if same_data(config["data"], recorded["data"]) and state["run"] and state["run"]["data"] != run.splits.checksum():
        print(f"{folder}: {other_data(config)}", file=sys.stderr)
    splits = {"val": run.splits.val, "test": run.splits.test}
    num_samples = sum(len(split) for split in splits.values())
    values: dict[str, float] = {}
    start = time.perf_counter()
    with _progress(str(folder), num_samples) as seen:
        for prefix, split in splits.items():
            if test_time is None:
                values |= evaluate(run, split, prefix, seen)
            else:
                values |= evaluate_views(run, split, prefix, test_time, seen)
    if test_time is not None:
        values["throughput/samples_per_second"] = num_samples / (time.perf_counter() - start)
    return values


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a transient progress bar on stderr if that is a terminal; yields a function that advances it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not interactive(console)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
