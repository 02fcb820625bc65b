"""SAM, torch's L-BFGS, a Lookahead wrapper and an optimizer with a step hook, when a step is not finite."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import compose
from trainer.assembly.assemble import assemble
from trainer.base.errors import Diverged
from trainer.storage import checkpoint
from trainer.training.finish import finish
from trainer.training.loop import train
from trainer.training.run import Run

KINDS: dict[str, dict[str, Any]] = {
    "sam": {"_target_": "kinds_of_optimizers.SAM", "lr": 0.05},
    "lbfgs": {"_target_": "torch.optim.LBFGS", "lr": 0.2, "max_iter": 4},
    "lookahead": {"_target_": "kinds_of_optimizers.Lookahead", "lr": 0.05},
    "hook": {"_target_": "kinds_of_optimizers.Hooked", "lr": 0.05, "fused": False},
    "hook_fused": {"_target_": "kinds_of_optimizers.Hooked", "lr": 0.05, "fused": True},
}
# the evaluation in which NaN is inserted, within the step
MIDDLE = {"sam": 1, "lbfgs": 2}
STEPS = ["model=mlp", "threads=1", "steps=14", "batch_size=64", "every.log=4step", "every.checkpoint=3step",
         "every.evaluate=7step", "schedule=constant", "early_stopping=null"]  # fmt: skip
BAD = 8


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARSHIFT_TRUST", "kinds_of_optimizers")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(checkpoint, "_LEAST_SECONDS", 0.0)  # every checkpoint is written, however fast the steps are


def assembled(kind: str, folder: Path, *overrides: str, resume: bool = False) -> Run:
    config = compose([*STEPS, *overrides])
    config["optimizer"] = dict(KINDS[kind])
    folder.mkdir(exist_ok=True)
    return assemble(config, folder, resume=resume)


def poison(run: Run, kind: str, *, until_rolled_back: bool = False) -> None:
    """Insert NaN into the model's input in one evaluation of step BAD."""

    def enter(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        is_bad = run.step == BAD and module.training and run.objective._evaluations == MIDDLE.get(kind, 0)
        return (inputs[0] * torch.nan,) if is_bad and not (until_rolled_back and run.progress.rollbacks) else None

    run.model.register_forward_pre_hook(enter)


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def notices(run: Run) -> str:
    return (run.folder / "train.log").read_text() if run.folder is not None else ""


@pytest.mark.parametrize("kind", KINDS)
def test_stop_ends_with_code_70_at_the_right_step(kind: str, tmp_path: Path) -> None:
    run = assembled(kind, tmp_path / "run", "on_nonfinite=stop")
    poison(run, kind)
    with pytest.raises(Diverged, match=f"diverged at step {BAD}") as caught:
        train(run)
    assert caught.value.exit_code == 70
    assert finish(run, "failed", caught.value).exit_code == 70
    run.close()
    saved = checkpoint.load(tmp_path / "run/checkpoints/last.pt")
    assert saved["stateful"]["progress"]["step"] == 7
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_skip_leaves_out_that_step_alone(kind: str, tmp_path: Path) -> None:
    """Weights and optimizer are also those of before the step."""
    run = assembled(kind, tmp_path / "run", "on_nonfinite=skip")
    poison(run, kind)
    seen: list[torch.Tensor] = []
    stepped = run.strategy.stepped
    run.strategy.stepped = lambda model, step: (seen.append(weights(run)), stepped(model, step))[1]  # type: ignore[method-assign, assignment, return-value]
    assert train(run) == "completed"
    run.close()
    assert torch.equal(seen[BAD], seen[BAD - 1])
    for step in range(1, 14):
        assert torch.equal(seen[step], seen[step - 1]) == (step == BAD), step
    assert torch.isfinite(weights(run)).all()
    assert f"1 of 1 steps were not finite and were skipped, the first of them step {BAD}" in notices(run)


@pytest.mark.parametrize("kind", KINDS)
def test_rollback_returns_to_the_checkpoint_with_half_the_rate(kind: str, tmp_path: Path) -> None:
    run = assembled(kind, tmp_path / "run", "on_nonfinite=rollback")
    poison(run, kind, until_rolled_back=True)
    assert train(run) == "completed"
    run.close()
    assert run.progress.rollbacks == 1
    assert run.step == 14
    assert run.lr == pytest.approx(KINDS[kind]["lr"] / 2)
    assert f"step {BAD} was not finite: rolled back to step 7" in notices(run)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(kind: str, tmp_path: Path) -> None:
    whole = assembled(kind, tmp_path / "whole", "on_nonfinite=skip")
    poison(whole, kind)
    train(whole)
    finish(whole, "completed")
    whole.close()
    first = assembled(kind, tmp_path / "cut", "on_nonfinite=skip")
    poison(first, kind)

    class Killed(Exception):
        pass

    advance = first.advance

    def killed(count: int) -> None:
        advance(count)
        if first.step == 7:
            first.checkpoints.finish()  # type: ignore[union-attr]
        if first.step == 11:
            raise Killed

    first.advance = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(first)
    first.close()
    again = assembled(kind, tmp_path / "cut", "on_nonfinite=skip", resume=True)
    assert 0 < again.step < 11
    poison(again, kind)
    train(again)
    finish(again, "completed")
    again.close()
    one, other = (checkpoint.load(tmp_path / folder / "checkpoints/last.pt") for folder in ("whole", "cut"))
    assert one["stateful"]["progress"]["step"] == other["stateful"]["progress"]["step"] == 14
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    assert repr(one["optimizer"]) == repr(other["optimizer"])


@pytest.mark.parametrize("kind", ["lookahead", "hook", "hook_fused"])
def test_fp16_steps_are_counted_and_left_out(kind: str, tmp_path: Path) -> None:
    run = assembled(kind, tmp_path / "run", "on_nonfinite=skip", "precision=fp16")
    poison(run, kind)
    assert train(run) == "completed"
    run.close()
    assert run.loss_scale is not None
    assert float(run.loss_scale.scale) == 65536 / 2, "one overflow halves the scale once"
    assert torch.isfinite(weights(run)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_that_of_the_untrained_model(kind: str, tmp_path: Path) -> None:
    run = assembled(kind, tmp_path / "run")
    batch = next(run.batches.epoch(0))
    with torch.no_grad():
        expected = float(run.blueprint.loss(run.model(batch.images), batch.targets)) / len(batch.targets)
    train(run)
    run.close()
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert '"diagnostics/initial_loss"' in lines[0]
    assert json.loads(lines[0])["diagnostics/initial_loss"] == pytest.approx(expected, rel=1e-6)


def test_step_hooks_are_called_in_every_step(tmp_path: Path) -> None:
    for kind in ("hook", "hook_fused"):
        run = assembled(kind, tmp_path / kind)
        train(run)
        run.close()
        assert run.optimizer.calls == 14  # type: ignore[attr-defined]


def test_a_hook_registered_in_the_middle_is_called_and_sees_the_clipped_gradient(tmp_path: Path) -> None:
    config = compose([*STEPS, "optimizer=momentum", "clip_norm=0.01", "clip_value=null"])
    run = assemble(config, tmp_path)
    norms: list[float] = []

    def note(*_: Any) -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None]).norm()))

    advance = run.advance

    def registering(count: int) -> None:
        advance(count)
        if run.step == 5:
            run.optimizer.register_step_pre_hook(note)

    run.advance = registering  # type: ignore[method-assign]
    train(run)
    run.close()
    assert norms == pytest.approx([0.01] * 9, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "adagrad"])
def test_the_public_step_and_the_short_cut_have_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    found = []
    for watched in (False, True):
        config = compose([*STEPS, f"optimizer={optimizer}", "clip_norm=0.5"])
        run = assemble(config, tmp_path / str(watched)) if (tmp_path / str(watched)).mkdir() is None else None
        assert run is not None
        if watched:
            run.optimizer.register_step_post_hook(lambda *_: None)
        train(run)
        run.close()
        found.append(weights(run))
    assert torch.equal(*found)
