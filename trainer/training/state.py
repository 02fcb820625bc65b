"""Capturing the state of a run in a checkpoint, and restoring it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import UnionType

from trainer.base.errors import DataError, is_out_of_memory, one_line
from trainer.base.snapshot import Copied, snapshot
from trainer.base.stateful import State
from trainer.storage.identity import repeat
from trainer.training.evaluation_weights import at_evaluation_weights
from trainer.training.run import Run

FORMAT = 4
Kinds = dict[str, type | UnionType]
_WEIGHTS: Kinds = {"model": Mapping, "preprocessing": Mapping, "step": int, "epoch": int | float, "run": Mapping | None}
_ALL = _WEIGHTS | {"ranks": list, "stateful": Mapping, "meter": list, "total_steps": int, "offsets": Mapping | None}
_BEST = ("format", *_WEIGHTS)
_OFFSETS: Kinds = {"metrics": int, "lines": Mapping, "events": Mapping, "checksums": Mapping}
_LINES: Kinds = {"lines": int, "sha256": str, "every": int, "marks": list}


def capture(run: Run) -> State:
    """Return the content of `last.pt`, from which a run continues bit-identically; complete on the main rank only."""
    return {
        **weights(run),
        "optimizer": run.strategy.optimizer_state(run.model, run.optimizer),
        "averaging": None if run.averaging is None else run.strategy.optimizer_state(run.model, run.averaging.averages),
        "ranks": run.strategy.collect(run.strategy.local_state(run.model, run.optimizer)),
        "stateful": {name: item.state_dict() for name, item in run.stateful.items()},
        "meter": _by_shard(run),
        "sampler": run.batches.state_dict(run.strategy.sum),
        "micro_batch": run.objective.most_at_once,
        "total_steps": run.blueprint.timeline.moments,
        "offsets": None if run.report is None else run.report.offsets(),
    }


def _by_shard(run: Run) -> list[State]:
    """Return the meter states, one for each shard of the samples: ranks with the same samples hold the same state."""
    found = run.strategy.gather((run.strategy.data_rank, run.meter.state_dict()))
    return [state for _, state in sorted(dict(found).items())]


def weights(run: Run) -> State:
    """Return the model's weights under whole-model names, and the fitted preprocessing; complete on the main rank."""
    return {
        "format": FORMAT,
        "model": run.strategy.state_dict(run.model),
        "preprocessing": run.preprocessing.state_dict(),
        "step": run.step,
        "epoch": run.epochs_done,
        "run": None if run.identity is None else asdict(run.identity),
    }


def best_weights(run: Run, last: State | None = None) -> State:
    """Return the content of `best.pt`: the weights that were evaluated.

    `last` is a snapshot of this step (empty on other ranks than the main one), whose memory is used if it holds them.
    """
    if last is not None and run.averaged is None:
        return Copied({key: last[key] for key in _BEST if key in last})
    with at_evaluation_weights(run):
        found = dict(weights(run))
        if run.averaged is not None:
            found["model"] = Copied(snapshot(found["model"])) if run.strategy.is_main else {}
    return found


def check_content(state: State, path: Path, *, is_last: bool) -> None:
    """Raise DataError if a checkpoint is of another version or lacks what `last.pt` or `best.pt` contains."""
    version = state.get("format")
    if version != FORMAT:
        raise DataError(f"{path} has format {version}; this version reads format {FORMAT}")
    _check_kinds(state, _ALL if is_last else _WEIGHTS, path)
    if is_last and state["offsets"] is not None:
        _check_kinds(state["offsets"], _OFFSETS, path)
        _check_kinds(state["offsets"]["lines"], _LINES, path)


def _check_kinds(state: State, kinds: Kinds, path: Path) -> None:
    for key, kind in kinds.items():
        if key not in state or not isinstance(state[key], kind):
            raise DataError(f"{path} is not a checkpoint of a run: its '{key}' is missing or of another kind")


def restore_checked(run: Run, state: State, path: Path) -> None:
    """Like `restore`. Raises DataError if the checkpoint read from `path` does not fit the run."""
    try:
        restore(run, state)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"{path} does not fit the run's model or parts ({one_line(error)}); to start it again: "
            f"{repeat(path.parents[1])}"
        ) from error


def restore(run: Run, state: State) -> None:
    """Restore a newly assembled run to the captured state."""
    restore_weights(run, state)
    run.strategy.load_optimizer_state(run.model, run.optimizer, state["optimizer"])
    if run.averaging is not None and state.get("averaging") is not None:
        run.strategy.load_optimizer_state(run.model, run.averaging.averages, state["averaging"])
    if len(state["ranks"]) == run.strategy.world_size and state["ranks"][run.strategy.rank] is not None:
        run.strategy.load_local_state(run.model, run.optimizer, state["ranks"][run.strategy.rank])
    for name, item in run.stateful.items():
        if name in state["stateful"]:
            item.load_state_dict(state["stateful"][name])
    stopping = run.blueprint.early_stopping
    if stopping is not None and stopping.has_stopped and run.blueprint.timeline.moments != state["total_steps"]:
        stopping.waited = 0  # the user has asked for more training after the early stop
    run.meter.load_state_dict(state["meter"], run.strategy.data_rank, run.strategy.data_size, run.device)
    run.batches.load_state_dict(state["sampler"])
    if run.blueprint.config["micro_batch"] == "auto":
        run.objective.most_at_once = state["micro_batch"]
    run.set_micro_batch(max(0, run.step - 1))
    run.guard.reset()
    run.knows_frozen = False  # a rollback may lead to a step in which more is frozen


def is_planned(run: Run, state: State) -> bool:
    """Whether an uninterrupted run would write this checkpoint, too. Runs roll back only to such checkpoints."""
    progress = state["stateful"]["progress"]
    step, best = progress["step"], progress["best"]
    due = run.blueprint.is_time(step, run.blueprint.every_checkpoint)
    return due or (best is not None and best["step"] == step)


def restore_weights(run: Run, state: State) -> None:
    """Restore the model's weights and buffers and the preprocessing that they were trained with."""
    run.strategy.load_state_dict(run.model, state["model"])
    run.preprocessing.load_state_dict(state["preprocessing"])
