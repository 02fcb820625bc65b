"""Ensembles of runs and of snapshots against a plain computation in numpy."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer import assemble, compose, fit
from trainer.assembly.assemble import build_run
from trainer.base.errors import ConfigurationError, DataError
from trainer.commands import evaluate
from trainer.configuration.resolve import resolve
from trainer.storage import checkpoint
from trainer.training.run import Run

SMALL = ["model=linear", "steps=9", "threads=1", "device=cpu", "early_stopping=null", "every.evaluate=3step"]
RUNS = {
    "a": ["schedule=sgdr", "schedule.multiply=1", "averaging=snapshots"],
    "b": ["seed=1", "preprocessing=scale", "optimizer=momentum", "batch_size=32"],
    "other_split": ["data.split_seed=1"],
    "other_classes": ["data=blobs", "preprocessing=none"],
    "values": ["data=linear_regression", "loss=mse", "preprocessing=none"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    for name, words in RUNS.items():
        fit(assemble(compose([*SMALL, *words]), root / name))
    return {name: root / name for name in RUNS}


def evaluated(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, Any]]:
    assert evaluate.main([str(word) for word in words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@functools.cache
def built(name: str) -> Run:
    return build_run(resolve(compose([*SMALL, *RUNS[name]])), fit=False)


def probabilities(name: str, path: Path, split: str, flip: bool) -> Any:
    """Class probabilities of a linear model, in numpy."""
    state, run = checkpoint.load(path), built(name)
    run.preprocessing.load_state_dict(state["preprocessing"])
    weight, bias = (value.double().numpy() for value in state["model"].values())
    images = vars(run.splits)[split].images_NCHW
    found = []
    for view in (images, images.flip(3)) if flip else (images,):
        outputs = run.preprocessing(view).flatten(1).double().numpy() @ weight.T + bias
        powers = np.exp(outputs - outputs.max(1, keepdims=True))
        found.append(powers / powers.sum(1, keepdims=True))
    return np.mean(found, 0)


@pytest.mark.parametrize(
    ("kind", "members", "flip"),
    [("mean", ["a/best", "b/best"], False), ("mean", ["a/best", "b/best"], True), ("snapshots", [3, 6, 9], False)],
)
def test_an_ensemble_is_the_mean_of_probabilities(
    kind: str, members: list[Any], flip: bool, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["a", "b"] if kind == "mean" else ["a"]
    lines = evaluated(capsys, *(folders[name] for name in runs), f"ensemble={kind}", *["tta=flip"] * flip)
    if kind == "mean":
        assert [line.get("run") for line in lines] == [str(folders["a"]), str(folders["b"]), None]
    else:
        assert [line.get("snapshot") for line in lines] == [3, 6, 9, None]
        members = [f"a/snapshot-{step}" for step in members]
    assert lines[-1]["ensemble"] == kind and lines[-1]["runs"] == [str(folders[name]) for name in runs]
    for split in ("val", "test"):
        paths = [folders[m.split("/")[0]] / "checkpoints" / f"{m.split('/')[1]}.pt" for m in members]
        each = [probabilities(m.split("/")[0], path, split, flip) for m, path in zip(members, paths, strict=True)]
        targets = vars(built("a").splits)[split].targets_N.numpy()
        for line, found in zip(lines, [*each, np.mean(each, 0)], strict=True):
            assert line[f"{split}/accuracy"] == pytest.approx((found.argmax(1) == targets).mean(), abs=1e-6)
            loss = -np.log(found[np.arange(len(targets)), targets]).mean()
            assert line[f"{split}/loss"] == pytest.approx(loss, rel=1e-5)
    assert len({line["val/loss"] for line in lines}) == len(lines)


def test_members_score_as_they_do_alone(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a", "b")
    together = evaluated(capsys, *(folders[name] for name in names), "ensemble=mean")[:2]
    alone = evaluated(capsys, *(folders[name] for name in names))
    for one, other in zip(together, alone, strict=True):
        assert one.pop("run") == other.pop("run")
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("runs", "words", "message"),
    [
        (["a"], ["ensemble=mean"], "averages over runs, and one is given; name more runs, or use ensemble=snapshots"),
        (["a", "a"], ["ensemble=mean"], "ensemble=mean: a run is named twice"),
        (["a", "other_split"], ["ensemble=mean"], "has other data or another split: data.split_seed=1 instead of 0"),
        (["a", "other_classes"], ["ensemble=mean"], "has other (classes|data)"),
        (["a", "values"], ["ensemble=mean"], "averages class probabilities; the data is regression"),
        (["b"], ["ensemble=snapshots"], "b has no snapshots; they are kept with averaging=snapshots"),
        (["a"], ["ensemble=snapshot"], "Did you mean 'ensemble=snapshots'"),
        (["a"], ["ensemble.kind=mean"], "ensemble.kind=mean: has no further keys"),
        (["a"], ["ensemble=mean", "ensemble=mean"], "may be given once"),
    ],
)
def test_what_is_no_ensemble_is_refused_in_one_line(
    runs: list[str], words: list[str], message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        evaluate.main([*(str(folders[name]) for name in runs), *words])
    assert len(caught.value.problems) == 1


def test_other_data_with_the_same_words_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """The checksum tells what the configuration does not."""
    other = tmp_path / "other"
    run = assemble(compose([*SMALL, "seed=2"]), other)
    run.splits.train.images_NCHW[0] += 1  # type: ignore[operator]
    assert run.identity is not None
    object.__setattr__(run.identity, "data", run.splits.checksum())
    fit(run)
    with pytest.raises(ConfigurationError, match="has been trained on other data"):
        evaluate.main([str(folders["a"]), str(other), "ensemble=mean"])


def test_a_lost_or_damaged_snapshot_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["a"], tmp_path / "a")
    path = tmp_path / "a/checkpoints/snapshot-6.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"snapshot-6\.pt is damaged"):
        evaluate.main([str(tmp_path / "a"), "ensemble=snapshots"])
    path.unlink()
    with pytest.raises(DataError, match=r"snapshot-6\.pt does not exist"):
        evaluate.main([str(tmp_path / "a"), "ensemble=snapshots"])
