"""Ensembles: the mean of the class probabilities of several trained weights.

The members are the best weights of several runs, or the snapshots of each run (`averaging=snapshots`). Does not import
torch at the top, because `train evaluate` parses its arguments first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.base.config import Config
from trainer.base.errors import ConfigurationError, DataError, one_line, unknown
from trainer.configuration.recorded import as_trained, differences, same_data
from trainer.configuration.rules import SINGLE
from trainer.storage import run_folder
from trainer.storage.identity import read_record
from trainer.training.test_time_augmentation import TestTime

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.base.stateful import State
    from trainer.configuration.blueprint import Blueprint
    from trainer.data.facts import Part, Splits
    from trainer.training.run import Run

KINDS = ("mean", "snapshots")
Seen = Callable[[int], object]


@dataclass(frozen=True)
class Trained:
    """A run of an ensemble: its folder, its recorded configuration, and that with the overrides of the evaluation."""

    folder: Path
    recorded: Config
    config: Config


@dataclass(frozen=True)
class Score:
    """Metrics of a member, or of the ensemble (`folder` is None). `snapshot`: the step, None for the best weights."""

    folder: Path | None
    snapshot: int | None
    values: dict[str, float]


def read_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Parse `ensemble=...` (None if absent); also return the other words. Raises ConfigurationError."""
    own = [word for word in words if word.partition("=")[0].partition(".")[0] == "ensemble"]
    rest = [word for word in words if word not in own]
    if not own:
        return None, rest
    if len(own) > 1:
        raise ConfigurationError(f"{' '.join(own)}: may be given once")
    key, _, kind = own[0].partition("=")
    if key != "ensemble":
        raise ConfigurationError(f"{own[0]}: has no further keys; ensemble={'|'.join(KINDS)}")
    if kind not in KINDS:
        raise ConfigurationError(unknown("option", kind, KINDS, "ensemble="))
    return kind, rest


def evaluate_ensemble(
    runs: Sequence[Trained], kind: str, test_time: TestTime | None, seen: Seen = lambda count: None
) -> Iterator[Score]:
    """Yield the score of each member, and at last that of the ensemble, on the validation and test split.

    Everything is computed from class probabilities; the loss is that of the first run. Raises ConfigurationError if the
    runs have different data, classes or splits, or are too few; DataError if weights are missing or damaged.
    """
    _check_distinct(runs, kind)
    members = _members(runs, kind)
    blueprints = [_blueprint(run, kind, test_time) for run in runs]
    _check_alike(runs, blueprints, kind)
    splits: Splits | None = None
    totals: dict[str, Tensor] = {}
    first: Run | None = None
    for (run, step), blueprint in ((member, blueprints[runs.index(member[0])]) for member in members):
        assembled = _assembled(run, step, blueprint, splits)
        splits, first = assembled.splits if splits is None else splits, first or assembled
        values: dict[str, float] = {}
        for prefix, part in _parts(splits):
            found = split_probabilities(assembled, part, test_time or TestTime(), seen)
            values |= metrics_of(first, found, part, prefix)
            totals[prefix] = totals[prefix].logaddexp(found) if prefix in totals else found
        yield Score(run.folder, step, values)
    assert splits is not None and first is not None
    values = {}
    for prefix, part in _parts(splits):
        values |= metrics_of(first, totals[prefix] - _log(len(members)), part, prefix)
    yield Score(None, None, values)


def _parts(splits: "Splits") -> tuple[tuple[str, "Part"], tuple[str, "Part"]]:
    return ("val", splits.val), ("test", splits.test)


def _log(count: int) -> float:
    import math

    return math.log(count)


def split_probabilities(run: "Run", split: "Part", test_time: TestTime, seen: Seen) -> "Tensor":
    """Return float32 (N, K) on the CPU: the logarithm of the class probabilities, averaged over views of each image."""
    import torch

    from trainer.training.evaluation import batches_of_views, log_probabilities
    from trainer.training.evaluation_weights import at_evaluation_weights

    found = []
    run.model.eval()
    with at_evaluation_weights(run), torch.inference_mode():
        for views, targets in batches_of_views(run, split, test_time):
            found.append(log_probabilities(run, views).cpu())
            seen(len(targets))
    return torch.cat(found)


def metrics_of(run: "Run", log_probabilities_NK: "Tensor", split: "Part", prefix: str) -> dict[str, float]:
    """Return loss and metrics of class probabilities; without the loss if it is defined on outputs only."""
    import torch

    from trainer.metrics import Meter

    meter, targets_N = Meter(run.blueprint.metrics), split.targets_N
    with torch.inference_mode():
        loss = run.blueprint.loss.of_probabilities(log_probabilities_NK, targets_N)
        meter.add(log_probabilities_NK.new_zeros(()) if loss is None else loss, log_probabilities_NK, targets_N)
        values = meter.read()
    return {f"{prefix}/{name}": value for name, value in values.items() if loss is not None or name != "loss"}


# --- members ----------------------------------------------------------------------------------------------


def _check_distinct(runs: Sequence[Trained], kind: str) -> None:
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ConfigurationError(f"ensemble={kind}: a run is named twice")
    if kind == "mean" and len(runs) < 2:
        raise ConfigurationError(
            "ensemble=mean: averages over runs, and one is given; name more runs, or use ensemble=snapshots"
        )


def _members(runs: Sequence[Trained], kind: str) -> list[tuple[Trained, int | None]]:
    """Return each run with the step of each of its members."""
    if kind == "mean":
        return [(run, None) for run in runs]
    return [(run, step) for run in runs for step in _snapshots(run)]


def _snapshots(run: Trained) -> list[int]:
    """Return the steps of a run's snapshots. Raises ConfigurationError if there are none."""
    from trainer.assembly.last_checkpoint import find_last

    steps: list[int] = []
    if (run.recorded["averaging"] or {}).get("_target_") == "trainer.averaging.Snapshots":
        found = find_last(run.folder)
        steps = [] if found is None else list(found[1]["stateful"]["averaging"]["snapshots"])
    if not steps:
        raise ConfigurationError(
            f"ensemble=snapshots: {run.folder} has no snapshots; they are kept with averaging=snapshots"
        )
    return steps


def _blueprint(run: Trained, kind: str, test_time: TestTime | None) -> "Blueprint":
    from trainer.configuration.resolve import resolve

    blueprint = resolve(as_trained(run.config) | {"compile": False, "parallelism": SINGLE})
    facts = blueprint.facts
    if facts.task != "classification":
        raise ConfigurationError(f"ensemble={kind}: averages class probabilities; the data is {facts.task}")
    if test_time is not None and facts.kind != "images":
        raise ConfigurationError(
            f"tta={test_time.kind}: averages class probabilities of images; the data is {facts.kind}"
        )
    return blueprint


def _check_alike(runs: Sequence[Trained], blueprints: "Sequence[Blueprint]", kind: str) -> None:
    """Raise ConfigurationError if runs have other classes, data or splits than the first one."""
    first, facts = runs[0], blueprints[0].facts
    for run, blueprint in zip(runs[1:], blueprints[1:], strict=True):
        where = f"ensemble={kind}: {run.folder}, unlike {first.folder}, has "
        if (blueprint.facts.num_outputs, blueprint.facts.class_names) != (facts.num_outputs, facts.class_names):
            raise ConfigurationError(f"{where}other classes: {_classes(blueprint)} and {_classes(blueprints[0])}")
        if not same_data(run.config["data"], first.config["data"]):
            lines = ", ".join(differences(first.config["data"], run.config["data"], "data"))
            raise ConfigurationError(f"{where}other data or another split: {lines}")
        one, other = (read_record(item.folder) for item in (first, run))
        if one is not None and other is not None and one.data != other.data:
            raise ConfigurationError(f"{where}been trained on other data (different checksum)")


def _classes(blueprint: "Blueprint") -> str:
    names = blueprint.facts.class_names
    shown = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{blueprint.facts.num_outputs}{shown}"


def _assembled(run: Trained, step: int | None, blueprint: "Blueprint", splits: "Splits | None") -> "Run":
    """Build a run with the weights of a member. Raises DataError or ConfigurationError if they do not fit."""
    import torch

    from trainer.assembly.assemble import build_run
    from trainer.assembly.last_checkpoint import own_weights
    from trainer.assembly.run_folder_of import other_data
    from trainer.storage.checkpoint import snapshot_path
    from trainer.training.evaluation_batches import prepared
    from trainer.training.state import restore_weights

    folder = run.folder / run_folder.CHECKPOINTS
    path = folder / "best.pt" if step is None else snapshot_path(folder, step)
    state: State = own_weights(path, run.recorded)
    built = build_run(blueprint, splits, fit=False)
    try:
        restore_weights(built, state)
        prepared(built, torch.zeros(1, *blueprint.facts.input_shape, device=built.device))
    except (RuntimeError, KeyError) as error:
        raise ConfigurationError(f"{path}: does not fit {run.config}: {one_line(error)}") from error
    is_first = splits is None and same_data(run.config["data"], run.recorded["data"])
    if is_first and state["run"] and state["run"]["data"] != built.splits.checksum():
        raise DataError(f"{run.folder}: {other_data(run.config)}")
    return built
