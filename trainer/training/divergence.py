"""Handling of non-finite losses and gradients: flagged on the device, located by step and layer afterwards."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.base.errors import Diverged
from trainer.base.stateful import State
from trainer.parallelism.sizes import ForwardHook
from trainer.storage import checkpoint, run_folder
from trainer.training.run import Run
from trainer.training.state import is_planned, restore
from trainer.training.step import train_step, update_by_closure

MAX_ROLLBACKS = 3


def check_finite(run: Run) -> tuple[float | None, bool]:
    """Read the guard's flags since the last call. Returns the last gradient norm, and False after a rollback.

    If a step was not finite, `on_nonfinite` decides: `stop` raises Diverged, naming step and layer; `skip` reports
    it and continues; `rollback` returns to the last checkpoint with half the learning rate, at most three times.
    An overflow is not an error while the loss scale can still be reduced.
    """
    norm, flags = run.guard.read()
    if not any(flags) or (run.loss_scale is not None and run.loss_scale.scale.item() >= 1):
        return norm, True
    policy = run.blueprint.config["on_nonfinite"]
    first = run.step - len(flags) + flags.index(True)
    if policy == "stop":
        found = locate(run, first)
        raise Diverged(f"{found}; see on_nonfinite, clip_norm and the learning rate" if is_late(found) else found)
    if policy == "skip":
        run.say(f"{sum(flags)} of {len(flags)} steps were not finite and were skipped, the first of them step {first}")
        return norm, True
    if run.progress.rollbacks == MAX_ROLLBACKS:
        raise Diverged(f"{locate(run, first)}, after {MAX_ROLLBACKS} rollbacks")
    _roll_back(run, first)
    return norm, False


def _roll_back(run: Run, bad_step: int) -> None:
    state = _last_state(run, lambda state: is_planned(run, state)) if run.strategy.is_main else None
    state = run.strategy.distribute(state, run.model)
    if state is None:
        raise Diverged(f"{locate(run, bad_step)}; there is no checkpoint to roll back to")
    rollbacks, seconds_before = run.progress.rollbacks + 1, run.progress.seconds_before
    restore(run, state)
    run.progress.rollbacks, run.progress.seconds_before = rollbacks, seconds_before
    if run.report is not None:
        run.report.rewind(state["offsets"], run.step)
    if run.checkpoints is not None:
        state["stateful"]["progress"]["rollbacks"] = rollbacks
        run.checkpoints.put(lambda: state, None, at_once=True)
    run.say(f"step {bad_step} was not finite: rolled back to step {run.step}, learning rate times {0.5**rollbacks:g}")


def locate(run: Run, bad_step: int) -> str:
    """Replay from the last checkpoint to the step and name the layer in which the first non-finite value appears.

    What is not finite before the first update has not diverged: the model, the loss or the data cause it.
    Only the main rank replays, on one device: all synchronous strategies compute the same.
    """
    if not run.strategy.is_main or not run.strategy.is_exact(run.model):  # one device would compute something else
        return f"diverged at step {bad_step}"
    replay = run.replica()
    state = _last_state(run)
    if state is not None:
        restore(replay, state)
    replay.model.train()
    while replay.step <= bad_step:
        for batch in replay.batches.epoch(replay.progress.epoch, replay.progress.samples_seen):
            if replay.step == bad_step:
                replay.set_learning_rate()
                replay.objective.begin(replay.step, batch)
                return _first_nonfinite(replay, batch.images)
            train_step(replay, batch)
            replay.advance(batch.num_global)
    raise AssertionError("the bad step precedes the last checkpoint")


_FROM_THE_START = "not finite before any update"


def is_late(found: str) -> bool:
    """Whether `locate` has found something that updates may have caused."""
    return not found.startswith(_FROM_THE_START)


def _first_nonfinite(replay: Run, images: Tensor) -> str:
    where = f"diverged at step {replay.step}"
    is_first = replay.step == 0 and not replay.needs_closure  # closures are called again at other weights
    start = f"{_FROM_THE_START} (step 0)" if is_first else where
    if not _is_finite(images):
        return f"{start}: the input images are not finite"
    for name, weight in replay.model.named_parameters():
        if not _is_finite(weight):
            return f"{start}: the weight '{name}' is not finite"
    found: list[str] = []
    hooks = [
        module.register_forward_hook(_reporter(name or "the model", found, is_first=is_first))
        for name, module in replay.model.named_modules()  # hooks of inner modules run first
    ]
    loss = _evaluate(replay)
    for hook in hooks:
        hook.remove()
    if found:
        return f"{start}: {found[0]}"
    if not _is_finite(loss):
        return f"{start}: the loss is not finite although every layer's output is"
    for name, parameter in reversed(list(replay.model.named_parameters())):
        if parameter.grad is not None and not _is_finite(parameter.grad):
            return f"{where}: the gradient of '{name}' is not finite"
    return f"{where}: the gradient's norm overflows"


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _evaluate(replay: Run) -> Tensor:
    """Compute the gradient of the step, or run a closure optimizer's step; returns the first loss."""
    if replay.needs_closure:
        update_by_closure(replay)
    else:
        replay.objective.compute_gradient()
    assert replay.objective.first_loss is not None
    return replay.objective.first_loss


def _reporter(name: str, found: list[str], *, is_first: bool) -> ForwardHook:
    def report(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if found or not isinstance(output, Tensor) or _is_finite(output):
            return
        if not is_first:
            found.append(f"the output of layer '{name}' is not finite")
        elif all(_is_finite(value) for value in inputs if isinstance(value, Tensor)):
            kind = "NaN" if bool(output.isnan().any()) else "infinity"
            found.append(
                f"layer '{name}' ({type(module).__name__}) computes {kind} from finite inputs and weights, as by a "
                "logarithm of a negative number, 0/0 or an overflow"
            )
        else:
            found.append(
                f"the input of layer '{name}' ({type(module).__name__}) is not finite although the layers before it "
                "are; the forward method that calls it computes it"
            )

    return report


def _last_state(run: Run, accept: Callable[[State], bool] = lambda state: True) -> State | None:
    if run.checkpoints is None or run.folder is None:
        return None
    run.checkpoints.finish()
    found = checkpoint.find_newest(run.folder / run_folder.CHECKPOINTS / "last.pt", accept)
    return None if found is None else found[1]
