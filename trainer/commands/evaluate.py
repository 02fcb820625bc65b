"""`train evaluate RUN... [tta=...]`: metrics of the best weights of runs, on validation and test part.

With `tta=none|flip|ten_crop|multi_scale` class probabilities are averaged over views of each image, and the images
a second are told; see `trainer.training.test_time_augmentation`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainer.base.errors import ConfigurationError, one_line
from trainer.commands.arguments import recorded_configuration, split
from trainer.configuration import compose
from trainer.configuration.rules import SINGLE
from trainer.reporting.terminal import interactive
from trainer.storage import run_folder
from trainer.training.test_time_augmentation import KINDS, TestTime, read_words


def main(arguments: list[str]) -> int:
    """Print a table; on a pipe, one JSON object a run and line."""
    folders, words = split("evaluate", arguments)
    if not folders:
        raise ConfigurationError(
            f"train evaluate takes run folders: train evaluate RUN... [tta={'|'.join(KINDS)}] [key=value ...]"
        )
    test_time, overrides = read_words(words)
    console = Console()
    if not console.is_terminal:
        for folder in folders:
            print(json.dumps({"run": str(folder), **evaluate_run(folder, overrides, test_time)}), flush=True)
        return 0
    rows = {folder: evaluate_run(folder, overrides, test_time) for folder in folders}
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    table = Table("run", *names)
    for folder, metrics in rows.items():
        table.add_row(str(folder), *(f"{metrics[name]:.4f}" if name in metrics else "" for name in names))
    console.print(table)
    return 0


def evaluate_run(folder: Path, overrides: list[str], test_time: TestTime | None = None) -> dict[str, float]:
    """Validation and test metrics of `best.pt`; with `test_time` of its views, and how many images (not views) were
    evaluated a second. One line on stderr where the data are not those of the run, though none were asked for.

    Raises DataError when there is no `best.pt` or it is damaged, ConfigurationError where there are no classes to
    average over.
    """
    recorded = config = recorded_configuration(folder)
    if overrides:
        config = compose.override(config, overrides)
    import torch

    from trainer.assembly.assemble import build_run
    from trainer.assembly.run_folder_of import other_data
    from trainer.configuration.resolve import resolve
    from trainer.storage import checkpoint
    from trainer.training.evaluation import evaluate, evaluate_views
    from trainer.training.evaluation_batches import prepared
    from trainer.training.state import restore_weights

    best = folder / run_folder.CHECKPOINTS / "best.pt"
    blueprint = resolve(config | {"compile": False, "init_from": None, "parallelism": SINGLE})
    if test_time is not None and (blueprint.facts.task != "classification" or blueprint.facts.kind != "images"):
        facts = blueprint.facts
        other = facts.task if facts.task != "classification" else facts.kind
        raise ConfigurationError(f"tta={test_time.kind}: averages class probabilities of images; the data is {other}")
    state = checkpoint.load(best)
    run = build_run(blueprint, fit=False)
    try:
        restore_weights(run, state)
        prepared(run, torch.zeros(1, *blueprint.facts.input_shape, device=run.device))
    except (RuntimeError, KeyError) as error:
        raise ConfigurationError(f"{best}: does not fit {' '.join(overrides) or config}: {one_line(error)}") from error
    if config["data"] == recorded["data"] and _are_others(run.splits, folder):
        print(f"{folder}: {other_data(config)}", file=sys.stderr)
    parts = {"val": run.splits.val, "test": run.splits.test}
    num_samples = sum(len(part) for part in parts.values())
    values: dict[str, float] = {}
    start = time.perf_counter()
    with _progress(str(folder), num_samples) as seen:
        for prefix, part in parts.items():
            if test_time is None:
                values |= evaluate(run, part, prefix, seen)
            else:
                values |= evaluate_views(run, part, prefix, test_time, seen)
    if test_time is not None:
        values["throughput/samples_per_second"] = num_samples / (time.perf_counter() - start)
    return values


def _are_others(splits: Any, folder: Path) -> bool:
    """Whether the checksum of the data is another than the one that the run has noted."""
    try:
        noted = json.loads((folder / run_folder.ENVIRONMENT).read_bytes())["data_sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return False  # there is nothing to compare with
    return bool(noted != splits.checksum())


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that is moved on by a call and goes away in the end; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not interactive(console)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
