"""`train evaluate RUN... [tta=...]`: metrics of the best weights of runs on the validation and test split.

`tta=none|flip|ten_crop|multi_scale` averages class probabilities over views of each image and reports images per
second; see `trainer.training.test_time_augmentation`. The metrics of the images as they are stand beside them, and one
line says so if the views make the accuracy worse.

`ensemble=mean|snapshots` averages class probabilities over the runs, or over the snapshots of each run; see
`trainer.studies.ensemble`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trainer.base.config import JsonObject
from trainer.base.errors import ConfigurationError, one_line
from trainer.commands.arguments import changed_configuration, recorded_configuration, split
from trainer.configuration.recorded import as_trained, same_data
from trainer.configuration.rules import SINGLE
from trainer.reporting.tables import make_table, without_repetition, wrap
from trainer.reporting.terminal import interactive
from trainer.storage import run_folder
from trainer.storage.records import spelled
from trainer.studies import ensemble
from trainer.training.test_time_augmentation import KINDS, TestTime, read_words

if TYPE_CHECKING:
    from trainer.training.run import Run

PLAIN = "plain/"  # before the names of metrics without test-time augmentation


def main(arguments: list[str]) -> int:
    """Print a table; if the output is not a terminal, one line of JSON per run."""
    folders, words = split("evaluate", arguments)
    if not folders:
        raise ConfigurationError(
            f"train evaluate takes run folders: train evaluate RUN... [tta={'|'.join(KINDS)}] "
            f"[ensemble={'|'.join(ensemble.KINDS)}] [key=value ...]"
        )
    test_time, words = read_words(words)
    kind, overrides = ensemble.read_words(words)
    if kind is not None:
        return print_ensemble(folders, overrides, kind, test_time)
    console = Console()
    if not console.is_terminal:
        for folder in folders:
            line = {"run": str(folder), **evaluate_run(folder, overrides, test_time)}
            print(json.dumps(spelled(line), allow_nan=False), flush=True)
        return 0
    for folder in folders:
        print_metrics(console, folder, evaluate_run(folder, overrides, test_time), test_time)
    return 0


def print_ensemble(folders: list[Path], overrides: list[str], kind: str, test_time: TestTime | None) -> int:
    """Print the metrics of each member and of the ensemble: a table, or a line of JSON for each."""
    console, runs = Console(), []
    for folder in folders:
        recorded = recorded_configuration(folder)
        runs.append(ensemble.Trained(folder, recorded, changed_configuration(folder, recorded, overrides)))
    scores: list[ensemble.Score] = []
    with _progress(f"ensemble={kind}", None) as seen:
        for score in ensemble.evaluate_ensemble(runs, kind, test_time, seen):
            scores.append(score)
            if not console.is_terminal:
                line = {**_member(score, kind, folders), **score.values}
                print(json.dumps(spelled(line), allow_nan=False), flush=True)
    if console.is_terminal:
        names = without_repetition(scores[-1].values)
        table = make_table("", *names, left=())
        for score in scores:
            title = " ".join(str(value) for value in _member(score, kind, []).values() if value != [])
            table.add_row(title, *(f"{score.values[name]:.4f}" for name in names))
        console.print(table)
    return 0


def _member(score: ensemble.Score, kind: str, folders: list[Path]) -> JsonObject:
    """What a line is about: a run, one of its snapshots, or the ensemble."""
    if score.folder is None:
        return {"ensemble": kind, "runs": [str(folder) for folder in folders]}
    return {"run": str(score.folder)} | ({} if score.snapshot is None else {"snapshot": score.snapshot})


def print_metrics(console: Console, folder: Path, values: dict[str, float], test_time: TestTime | None) -> None:
    """Print a row per metric: of the images as they are, and averaged over views if there are any."""
    kinds = ["plain"] if test_time is None or test_time.kind == "none" else ["plain", test_time.kind]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=len(kinds) > 1)
    for title in ("", *kinds):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for name in without_repetition(values):
        if not name.startswith((PLAIN, "throughput/")):
            names = [f"{PLAIN}{name}", name] if len(kinds) > 1 else [name]
            table.add_row(name, *(f"{values[key]:.4f}" for key in names))
    console.print(Text("\n".join(wrap(str(folder), console.width))), table, sep="\n")
    if test_time is not None:
        console.print(f"{values['throughput/samples_per_second']:,.0f} images/s with tta={test_time.kind}")
    console.print()


def evaluate_run(folder: Path, overrides: list[str], test_time: TestTime | None = None) -> dict[str, float]:
    """Return validation and test metrics of `best.pt`.

    With `test_time`, probabilities are averaged over views, the metrics of the images as they are follow with `PLAIN`
    before their names, and the result includes images (not views) per second.
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
    if test_time is None:
        return _evaluate(run, folder, evaluate)
    start = time.perf_counter()
    values = _evaluate(run, folder, partial(evaluate_views, test_time=test_time))
    seconds = time.perf_counter() - start
    plain = _evaluate(run, folder, evaluate) if test_time.kind != "none" else {}
    _warn_if_worse(folder, test_time.kind, recorded["choices"]["augmentation"], values, plain)
    rate = (len(run.splits.val) + len(run.splits.test)) / seconds
    return values | {f"{PLAIN}{name}": v for name, v in plain.items()} | {"throughput/samples_per_second": rate}


def _warn_if_worse(
    folder: Path, kind: str, augmentation: str, values: dict[str, float], plain: dict[str, float]
) -> None:
    accuracies = [name for name in plain if name.endswith("/accuracy") and name in values]
    if worse := [name for name in accuracies if values[name] < plain[name]]:
        told = ", ".join(f"{name} {values[name]:.4f} instead of {plain[name]:.4f}" for name in worse)
        line = (
            f"{folder}: tta={kind} makes it worse: {told}; the network was trained with augmentation={augmentation} "
            "and may not have seen such views"
        )
        console = Console(stderr=True)
        print("\n".join(wrap(line, console.width) if console.is_terminal else [line]), file=sys.stderr)


def _evaluate(run: "Run", folder: Path, measure: Callable[..., dict[str, float]]) -> dict[str, float]:
    splits = {"val": run.splits.val, "test": run.splits.test}
    values: dict[str, float] = {}
    with _progress(str(folder), sum(len(split) for split in splits.values())) as seen:
        for prefix, split in splits.items():
            values |= measure(run, split, prefix, seen=seen)
    return values


@contextmanager
def _progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a transient progress bar on stderr if that is a terminal; yields a function that advances it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not interactive(console)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
