"""Pruned weights: which ones they are, and that they stay exactly 0."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import assemble, compose, fit
from trainer.assembly.assemble import build_run
from trainer.assembly.pruning import masks_of, prunable, shuffled
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve
from trainer.storage import checkpoint
from trainer.training.loop import train

SMALL = ["model=mlp", "model.hidden=[16,8]", "model.norm=batch", "device=cpu", "threads=1", "early_stopping=null"]
WEIGHTS = 64 * 16 + 16 * 8 + 8 * 10


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "run"
    fit(assemble(compose([*SMALL, "steps=6"]), folder))
    return folder


def pruned(dense: Path, **changes: Any) -> str:
    keys = {"source": f"'{dense}'", "share": 0.3} | changes
    return f"prune={{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}"


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=momentum", "averaging=ema", "optimizer.weight_decay=0.01", "clip_norm=0.5"],
        ["optimizer=adamw", "averaging=polyak", "regularizer=l1"],
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (
                ["optimizer=sgdw", "averaging=swa", "regularizer=l2", "regularizer.decoupled=true"],
                ["optimizer=muon"],
                ["optimizer=sam", "regularizer=soft_sharing"],
                ["optimizer=schedule_free_adamw"],
                ["optimizer=lbfgs", "batch_size=full", "epochs=null"],
                ["optimizer=adam", "on_nonfinite=skip", "precision=bf16"],
            )
        ),
    ],
    ids=lambda words: words[0],
)
def test_pruned_weights_stay_exactly_0_and_resume_has_the_same_bits(
    words: list[str], dense: Path, tmp_path: Path
) -> None:
    overrides = [*SMALL, "steps=12", "every.checkpoint=5step", "every.evaluate=3step", pruned(dense), *words]
    states = {}
    for name, stop in (("whole", None), ("cut", 8)):
        run = assemble(compose(overrides), tmp_path / name)
        assert run.pruning is not None
        if stop is not None:
            stepped = run.strategy.stepped

            def once(model: Any, step: int, stepped: Any = stepped) -> None:
                if step == 8:
                    raise KeyboardInterrupt
                stepped(model, step)

            run.strategy.stepped = once  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                fit(run)
            run = assemble(compose(overrides), tmp_path / name, resume=True)
        fit(run)
        states[name] = {file: checkpoint.load(tmp_path / name / f"checkpoints/{file}.pt") for file in ("last", "best")}
    masks = states["whole"]["last"]["stateful"]["pruning"]["masks"]
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * 1024) + round(0.3 * 128) + round(0.3 * 80)
    for file, state in states["whole"].items():
        for name, value in state["model"].items():
            assert torch.equal(value, states["cut"][file]["model"][name]), (file, name)
            if name in masks:
                assert not value[~masks[name]].any() and value[masks[name]].all(), (file, name)
            elif name.endswith(("bias", "weight")):
                assert value.any(), "biases and norms are kept"


def test_a_ticket_begins_with_the_first_weights_of_the_dense_run(dense: Path) -> None:
    first = build_run(resolve(compose([*SMALL, "steps=6"])))
    whole = dict(first.model.named_parameters())
    ticket, random, redrawn = (
        build_run(resolve(compose([*SMALL, "steps=6", pruned(dense, scope="global", **more)])))
        for more in ({}, {"mask": "random"}, {"redraw": "true"})
    )
    assert ticket.pruning is not None and random.pruning is not None and redrawn.pruning is not None
    trained = checkpoint.load(dense / "checkpoints/best.pt")["model"]
    sizes = torch.cat([trained[name].abs().flatten() for name in ticket.pruning.masks])
    limit = sizes.sort(descending=True).values[round(0.3 * WEIGHTS) - 1]
    for name, weight in ticket.model.named_parameters():
        if name not in ticket.pruning.masks:
            assert torch.equal(weight, whole[name])
            continue
        mask, other = ticket.pruning.masks[name], random.pruning.masks[name]
        assert torch.equal(mask, trained[name].abs() >= limit)
        assert torch.equal(weight, whole[name] * mask)
        assert mask.sum() == other.sum() and not torch.equal(mask, other), "as many of each layer"
        assert torch.equal(dict(random.model.named_parameters())[name], whole[name] * other)
        assert torch.equal(redrawn.pruning.masks[name], mask)
        assert not torch.equal(dict(redrawn.model.named_parameters())[name], weight)


def test_a_smaller_share_of_a_pruned_run_is_a_subset(dense: Path, tmp_path: Path) -> None:
    fit(assemble(compose([*SMALL, "steps=4", pruned(dense)]), tmp_path / "first"))
    model = build_run(resolve(compose([*SMALL, "steps=4"])), fit=False).model
    for scope in ("layer", "global"):
        before = masks_of(prunable(model), tmp_path / "first", 0.3, "layer")
        after = masks_of(prunable(model), tmp_path / "first", 0.1, scope)
        assert all(not (after[name] & ~before[name]).any() for name in after)
    assert all(mask.sum() == shuffled(after, 1)[name].sum() for name, mask in after.items())


def test_a_resumed_ticket_does_not_need_its_source(dense: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, "steps=6", pruned(dense), "every.checkpoint=2step"]
    run = assemble(compose(overrides), tmp_path / "run")
    config = compose([*SMALL, "steps=6", pruned(tmp_path / "gone"), "every.checkpoint=2step"])
    assert train(run) == "completed"
    run.close()
    resumed = assemble(config, tmp_path / "run", resume=True)
    assert resumed.pruning is not None and resumed.pruning.masks.keys() == run.pruning.masks.keys()  # type: ignore[union-attr]
    resumed.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune={share: 1.0}"], r"prune\.share=1\.0: must be in \(0, 1\)"),
        (["prune={share: 0.2, source: nowhere}"], "prune.source=nowhere: is not a run folder"),
        (["prune={shares: 0.2}"], "prune.shares=0.2: key 'prune.shares' does not exist. Did you mean 'prune.share'"),
        (["prune=0.2"], "prune=0.2: must hold source, share"),
        (["prune={mask: largest}"], "prune.mask=largest: must be one of magnitude, random"),
        (["prune={share: 0.2}", "parallelism=fsdp", "parallelism.devices=2"], "prune: needs all weights on every rank"),
    ],
)
def test_what_cannot_be_pruned_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(compose([*SMALL, *words]))


def test_a_source_of_another_model_is_refused(dense: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no weight"):
        build_run(resolve(compose(["model=linear", "steps=2", pruned(dense)])))


def test_a_run_that_has_no_checkpoint_yet_is_built_as_a_new_one(tmp_path: Path) -> None:
    """Trials, members of studies and runs killed early are resumed from step 0; initializers must see samples."""
    words = [*SMALL, "steps=2", "initializer=data_dependent"]
    new, resumed = (assemble(compose(words), tmp_path / str(flag), resume=flag) for flag in (False, True))
    for run in (new, resumed):
        run.close()
    for one, other in zip(new.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
