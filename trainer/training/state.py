"""Capturing the state of a run in a checkpoint, and restoring it."""

from trainer.base.duration import is_time
from trainer.base.stateful import State
from trainer.training.run import Run

FORMAT = 3


def capture(run: Run) -> State:
    """Return the content of `last.pt`, from which a run continues bit-identically."""
    return {
        **weights(run),
        "optimizer": run.strategy.optimizer_state(run.model, run.optimizer),
        "ranks": run.strategy.gather(run.strategy.local_state(run.model, run.optimizer)),
        "stateful": {name: item.state_dict() for name, item in run.stateful.items()},
        "meter": _by_shard(run),
        "sampler": run.batches.state_dict(run.strategy.sum),
        "micro_batch": run.objective.micro_batch,
        "total_steps": run.blueprint.total_steps,
        "offsets": None if run.report is None else run.report.offsets(),
    }


def _by_shard(run: Run) -> list[State]:
    """Return the meter states, one for each shard of the samples: ranks with the same samples hold the same state."""
    found = run.strategy.gather((run.strategy.data_rank, run.meter.state_dict()))
    return [state for _, state in sorted(dict(found).items())]


def weights(run: Run) -> State:
    """Return the content of `best.pt`: weights under whole-model names, and the fitted preprocessing."""
    return {
        "format": FORMAT,
        "model": run.strategy.state_dict(run.model),
        "preprocessing": run.preprocessing.state_dict(),
        "step": run.step,
        "epoch": run.epochs_done,
    }


def restore(run: Run, state: State) -> None:
    """Restore a newly assembled run to the captured state."""
    restore_weights(run, state)
    run.strategy.load_optimizer_state(run.model, run.optimizer, state["optimizer"])
    if len(state["ranks"]) == run.strategy.world_size and state["ranks"][run.strategy.rank] is not None:
        run.strategy.load_local_state(run.model, run.optimizer, state["ranks"][run.strategy.rank])
    for name, item in run.stateful.items():
        if name in state["stateful"]:
            item.load_state_dict(state["stateful"][name])
    stopping = run.blueprint.early_stopping
    if stopping is not None and stopping.has_stopped and run.blueprint.total_steps != state["total_steps"]:
        stopping.waited = 0  # the user has asked for more training after the early stop
    run.meter.load_state_dict(state["meter"], run.strategy.data_rank, run.strategy.data_size, run.device)
    run.batches.load_state_dict(state["sampler"])
    if run.blueprint.config["micro_batch"] == "auto":
        run.objective.micro_batch = state["micro_batch"]
    run.guard.reset()


def is_planned(run: Run, state: State) -> bool:
    """Whether an uninterrupted run would write this checkpoint, too. Runs roll back only to such checkpoints."""
    progress = state["stateful"]["progress"]
    step, best = progress["step"], progress["best"]
    due = is_time(step, run.blueprint.every_checkpoint, run.blueprint.total_steps)
    return due or (best is not None and best["step"] == step)


def restore_weights(run: Run, state: State) -> None:
    """Restore the model's weights and buffers and the preprocessing that they were trained with."""
    run.strategy.load_state_dict(run.model, state["model"])
    run.preprocessing.load_state_dict(state["preprocessing"])
