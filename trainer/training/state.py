"""What of a run goes into a checkpoint, and back."""

from typing import Any

from trainer.base.duration import is_time
from trainer.training.run import Best, Run

FORMAT = 2


def capture(run: Run) -> dict[str, Any]:
    """All that `last.pt` holds: with it the run goes on with the same bits."""
    return {
        **weights(run),
        "optimizer": run.strategy.optimizer_state(run.model, run.optimizer),
        "ranks": run.strategy.gather(run.strategy.local_state(run.model, run.optimizer)),
        "schedule": _state_of(run.blueprint.schedule),
        "early_stopping": _state_of(run.blueprint.early_stopping),
        "improvement": run.blueprint.best.best,
        "loss_scale": _state_of(run.loss_scale),
        "meter": _by_share(run),
        "sampler": run.batches.state_dict(run.strategy.sum),
        "micro_batch": run.closure.micro_batch,
        "initial_loss": run.initial_loss,
        "total_steps": run.blueprint.total_steps,
        "place": {"step": run.step, "epoch": run.epoch, "samples_seen": run.samples_seen},
        "rollbacks": run.rollbacks,
        "best": None if run.best is None else vars(run.best),
        "seconds": run.seconds,
        "offsets": None if run.report is None else run.report.offsets(),
    }


def _by_share(run: Run) -> list[dict[str, Any]]:
    """What the meters hold, one a share of the samples: ranks that see the same ones hold the same."""
    found = run.strategy.gather((run.strategy.data_rank, run.meter.state_dict()))
    return [state for _, state in sorted(dict(found).items())]


def weights(run: Run) -> dict[str, Any]:
    """What is needed to use the model: whole-model names, and the fitted preprocessing. All of `best.pt`."""
    return {
        "format": FORMAT,
        "model": run.strategy.state_dict(run.model),
        "preprocessing": run.preprocessing.state_dict(),
        "step": run.step,
        "epoch": run.epochs_done,
    }


def restore(run: Run, state: dict[str, Any]) -> None:
    """Bring a freshly assembled run to where `state` was captured."""
    restore_weights(run, state)
    run.strategy.load_optimizer_state(run.model, run.optimizer, state["optimizer"])
    if len(state["ranks"]) == run.strategy.world_size and state["ranks"][run.strategy.rank] is not None:
        run.strategy.load_local_state(run.model, run.optimizer, state["ranks"][run.strategy.rank])
    for part, name in (
        (run.blueprint.schedule, "schedule"),
        (run.blueprint.early_stopping, "early_stopping"),
        (run.loss_scale, "loss_scale"),
    ):
        if part is not None and state[name] is not None:
            part.load_state_dict(state[name])
    stopping = run.blueprint.early_stopping
    if stopping is not None and stopping.has_stopped and run.blueprint.total_steps != state["total_steps"]:
        stopping.waited = 0  # whoever asks for more training after the stop wants it
    run.blueprint.best.best = state["improvement"]
    run.meter.load_state_dict(state["meter"], run.strategy.data_rank, run.strategy.data_size, run.device)
    run.batches.load_state_dict(state.get("sampler"))
    if run.blueprint.config["micro_batch"] == "auto":
        run.closure.micro_batch = state["micro_batch"]
    run.guard.reset()
    run.initial_loss = None if state["initial_loss"] is None else state["initial_loss"].to(run.device)
    place = state["place"]
    run.step, run.epoch, run.samples_seen = place["step"], place["epoch"], place["samples_seen"]
    run.rollbacks = state["rollbacks"]
    run.best = None if state["best"] is None else Best(**state["best"])
    run.seconds_before = state["seconds"]


def is_planned(run: Run, state: dict[str, Any]) -> bool:
    """Whether a run that was never interrupted takes this checkpoint, too: only to such a one it rolls back."""
    step, best = state["place"]["step"], state["best"]
    due = is_time(step, run.blueprint.every_checkpoint, run.blueprint.total_steps)
    return due or (best is not None and best["step"] == step)


def restore_weights(run: Run, state: dict[str, Any]) -> None:
    """The model's weights and buffers, and the preprocessing that they were trained with."""
    run.strategy.load_state_dict(run.model, state["model"])
    run.preprocessing.load_state_dict(state["preprocessing"])


def _state_of(part: Any) -> dict[str, Any] | None:
    state: dict[str, Any] | None = part.state_dict() if hasattr(part, "state_dict") else None
    return state
