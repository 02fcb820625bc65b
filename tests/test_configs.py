"""Every option of every group, found by listing its folder, is described and complete, and works."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.forks import shared
from tests.libraries import need_library
from trainer import assemble, compose, fit
from trainer.assembly.assemble import build_run
from trainer.base.timeline import Timeline
from trainer.configuration.build import locate
from trainer.configuration.groups import GROUPS
from trainer.configuration.resolve import resolve
from trainer.storage import checkpoint, run_folder
from trainer.training.loop import train
from trainer.training.state import capture, restore
from trainer.training.step import train_step

FOLDER = Path(__file__).parent.parent / "configs"
OPTIONS = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("*/*.yaml"))
WHOLE = ("experiment", "debug")  # options that change several groups
GROUP_OPTIONS = [path for path in OPTIONS if path.parent.name not in (*WHOLE, "study")]
STUDIES = ["lottery_ticket"]  # experiments that are several runs; see tests/studies
EXTERNAL = {"mnist", "fashion_mnist", "cifar10", "cifar100"}
# a small run of one epoch, with the settings that each option needs
TINY = ["model=mlp", "model.hidden=[8]", "batch_size=8", "limit_batches=2", "epochs=1", "threads=1"]
NEEDS = {
    "linear_regression": ["loss=mse"],
    "absolute": ["data=linear_regression"],
    "kmeans": ["model=centroids"],
    "kmeans_plus_plus": ["model=centroids"],
    "identity_residual": ["model=resnet", "model.depth=8", "model.width=4"],
    "plateau": ["every.evaluate=1step"],
    "snapshots": ["schedule=sgdr"],
    "two_column": ["model=alexnet_two_column", "model.hidden=[8]"],
    # wide options are stepped narrow; at full size once, below
    "alexnet": ["model.channels=[8,16,16,16,8]", "model.hidden=[32,32]"],
    "inception": ["model.width=8", "model.auxiliary_weight=0.3"],
    "vgg": ["model.width=4", "model.hidden=[32,32]"],
    "wide_resnet28_10": ["model.width=1"],
    "wide_resnet28_20": ["model.width=1"],
    "weird_trick": ["model=lenet", "model.channels=[4,4]"],
}


def names(paths: list[Path]) -> list[str]:
    return [f"{path.parent.name}={path.stem}" for path in paths]


def tiny(path: Path) -> list[str]:
    chosen = f"{path.parent.name}={path.stem}"
    own_model = path.parent.name == "model" or any(o.startswith("model") for o in NEEDS.get(path.stem, []))
    rest = [o for o in TINY if not (own_model and o.startswith("model"))]
    return [*rest, chosen, *NEEDS.get(path.stem, [])]


@pytest.mark.parametrize("path", OPTIONS, ids=names(OPTIONS))
def test_every_option_is_described_and_every_key_explained(path: Path) -> None:
    lines = (FOLDER / path).read_text().splitlines()
    head = [line for line in lines if not line.startswith("# @package")]
    assert re.fullmatch(r"# \S.{9,}", head[0])
    if path.parent.name not in WHOLE:
        for line in lines:
            key = re.match(r"\s*(\w+): ?(.*)", line)
            if key and key[1] not in ("_target_", "defaults") and not line.startswith("#") and key[2]:
                assert " # " in line, f"{key[1]} has no comment"


@pytest.mark.parametrize("path", GROUP_OPTIONS, ids=names(GROUP_OPTIONS))
def test_every_tunable_argument_is_listed(path: Path) -> None:
    node = yaml.safe_load((FOLDER / path).read_text()) or {}
    group = path.parent.name
    parts = {group: node} | {f"{group}.{key}": value for key, value in node.items() if isinstance(value, dict)}
    for where, part in parts.items():
        if not part.get("_target_", "").startswith("trainer."):
            continue
        signature = inspect.signature(locate(part["_target_"], where))
        wanted = {n for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        assert wanted - set(GROUPS[group].given) <= set(part)


@pytest.mark.parametrize("path", GROUP_OPTIONS, ids=names(GROUP_OPTIONS))
def test_every_option_trains_a_step_and_comes_back_from_a_checkpoint(path: Path, tmp_path: Path) -> None:
    if path.parent.name == "data" and path.stem in EXTERNAL | {"image_folder"}:
        pytest.skip("needs real data; see test_data_options_read_their_sets, tests/data/test_image_folder.py")
    need_library(path.stem)
    if path.parent.name == "parallelism" and path.stem != "single":
        trains_in_ranks(tiny(path), tmp_path)
        return
    config = compose(tiny(path))
    blueprint = resolve(config)
    run = build_run(blueprint)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert train(run) == "completed"
    assert any(not torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    checkpoint.save(tmp_path / "last.pt", capture(run))
    again = build_run(resolve(config), run.splits)
    restore(again, checkpoint.load(tmp_path / "last.pt"))
    assert again.step == run.step == 2
    for (name, value), other in zip(run.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert_same(run.optimizer.state_dict(), again.optimizer.state_dict())
    # and both make the same next step
    for one in (run, again):
        before = one.blueprint.timeline
        longer = Timeline(before.num_samples, before.phases[0].batch_size, before.moments + 1)
        one.blueprint = replace(one.blueprint, timeline=longer)
        assert train(one) == "completed"
    assert_same(run.model.state_dict(), again.model.state_dict())


def launched(folder: Path, overrides: list[str], changes: dict[str, int], steps: int) -> None:
    """`launch`, with a forked server of ranks, which need not import anything."""
    code = (
        "from pathlib import Path\nfrom trainer import compose, launch\n"
        f"assert launch(compose({overrides!r}) | {changes!r}, Path({str(folder)!r})).steps == {steps}"
    )
    process = shared().start([], folder, code=code, spare=True)
    assert process.wait() == 0, process.output()


def trains_in_ranks(overrides: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """Strategies are launched as processes."""
    run_folder.write_configuration(folder, compose(overrides), overrides)
    launched(folder, overrides, {}, steps=2)
    state = checkpoint.load(folder / "checkpoints" / "last.pt")["model"]
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not any(path.stat().st_size for path in (folder / "ranks").glob("*.log")), "the ranks had nothing to say"
    return dict(state)


# options of more than 5 million parameters, with the images of their papers
FULL_SIZE = {
    "alexnet": ["data=synthetic", "data.size=224"],
    "alexnet_two_column": ["data=synthetic", "data.size=224"],
    "inception": ["data=synthetic", "data.size=224", "model.auxiliary_weight=0.3"],
    "vgg": ["data=synthetic", "data.size=32"],
    "wide_resnet28_10": ["data=synthetic", "data.size=32"],
    "wide_resnet28_20": ["data=synthetic", "data.size=16"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_wide_models_step_at_full_size(name: str) -> None:
    sizes = ["data.num_train=8", "data.num_val=2", "data.num_test=2", "batch_size=4"]
    run = build_run(resolve(compose([f"model={name}", *FULL_SIZE[name], *sizes, "optimizer=sgd", "epochs=1"])))
    before = {name: parameter.detach().sum() for name, parameter in run.model.named_parameters()}
    batch = next(run.batches.epoch(0))
    train_step(run, batch)
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
    assert any(parameter.detach().sum() != before[name] for name, parameter in run.model.named_parameters())


STRATEGIES = [path for path in GROUP_OPTIONS if path.parent.name == "parallelism" and path.stem != "single"]


@pytest.mark.slow
@pytest.mark.parametrize("path", STRATEGIES, ids=names(STRATEGIES))
def test_every_strategy_goes_on_from_its_checkpoint(path: Path, tmp_path: Path) -> None:
    state = trains_in_ranks(tiny(path), tmp_path)
    launched(tmp_path, tiny(path), {"epochs": 2}, steps=4)
    after = checkpoint.load(tmp_path / "checkpoints" / "last.pt")["model"]
    assert any(not torch.equal(value, state[name]) for name, value in after.items())


def assert_same(one: object, other: object) -> None:
    """Assert that nested containers have equal values, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor) and torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("name", sorted(EXTERNAL))
def test_external_data_options_are_checked_without_their_data(name: str, tmp_path: Path) -> None:
    facts = resolve(compose([f"data={name}", f"data.root={tmp_path}", "model=linear"])).facts
    assert facts.num_test == 10_000
    assert facts.num_train + facts.num_val in (50_000, 60_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_data_options_read_their_sets(name: str, data_root: Path, tmp_path: Path) -> None:
    root = data_root
    if name == "cifar10":
        import subprocess
        import sys

        subprocess.run([sys.executable, data_root / "unpack.py", tmp_path], check=True)
        root = tmp_path
    run = build_run(resolve(compose([f"data={name}", f"data.root={root}", "model=lenet", "steps=30", "threads=1"])))
    assert len(run.splits.train) == run.blueprint.facts.num_train
    assert train(run) == "completed"


@pytest.mark.parametrize("name", [p.stem for p in OPTIONS if p.parent.name in WHOLE and p.stem not in STUDIES])
def test_whole_configurations_run(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    group = next(p.parent.name for p in OPTIONS if p.parent.name in WHOLE and p.stem == name)
    result = fit(assemble(compose([f"{group}={name}", "threads=1"]), tmp_path))
    assert result.status in ("completed", "early_stopped")
    if name == "overfit":
        records = (tmp_path / "metrics.jsonl").read_text()
        assert '"train/accuracy": 1.0' in records
    if name == "one_step":
        assert result.steps == 1
    if name == "profile":
        import json

        trace = json.loads((tmp_path / "trace.json").read_text())
        steps = {e["name"] for e in trace["traceEvents"] if e.get("name", "").startswith("ProfilerStep#")}
        assert len(steps) == 20
        out, err = capfd.readouterr()
        assert err == ""  # of Kineto, which writes to the descriptor
        assert f"trace: {tmp_path / 'trace.json'}; open it in a browser at https://ui.perfetto.dev\n" in out
