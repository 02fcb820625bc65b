"""The memory of a real run lies in the range that `train plan` states for it."""

import json
from pathlib import Path

import pytest
import torch

from tests.forks import Zygote
from tests.parallelism.harness import in_new_run, spawn
from trainer import app, assemble, compose, fit
from trainer.configuration.resolve import resolve
from trainer.planning.estimate import cost_of, estimate
from trainer.planning.process_memory import Peak
from trainer.planning.sections import meta_model

DATA = ["data=synthetic", "data.num_train=2000", "data.num_val=500", "data.num_test=500", "augmentation=none"]
SHORT = ["steps=4", "every.evaluate=2step", "every.checkpoint=2step", "device=cpu", "threads=1"]
LARGE = ["model=mlp", "model.hidden=[1024,1024]", "batch_size=16"]
PHOTOGRAPH = ["model=torchvision", "batch_size=16"]


def state(settings: list[str], folder: str) -> None:
    """Write the range of `train plan`."""
    found = estimate(resolve(compose([*DATA, *settings, *SHORT])))
    assert found.most_bytes is not None
    Path(folder, "stated.json").write_text(json.dumps([found.bytes, found.most_bytes]))


def measure(settings: list[str], folder: str, imports: str) -> None:
    """Write the largest memory of a run beyond what this process has, which has imported all that the run needs."""
    __import__(imports)
    peak = Peak(torch.device("cpu"))
    peak.begin()
    assert app.run([*DATA, *settings, *SHORT, f"hydra.run.dir={folder}/run"]) == 0
    Path(folder, "measured.json").write_text(json.dumps(peak.growth()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["model=linear"],
        ["model=lenet"],
        ["model=resnet20"],
        LARGE,
        [*LARGE, "optimizer=sgd"],
        PHOTOGRAPH,
        [*PHOTOGRAPH, "optimizer=sgd", "averaging=ema"],
    ],
    ids=" ".join,
)
def test_a_run_takes_what_its_plan_states(settings: list[str], tmp_path: Path, zygote: Zygote) -> None:
    imports = "torchvision.models" if settings[0] == "model=torchvision" else "trainer"
    for process in (
        zygote.call(measure, settings, str(tmp_path), imports),
        zygote.call(state, settings, str(tmp_path)),
    ):
        assert process.wait() == 0, process.output()
    low, high = json.loads((tmp_path / "stated.json").read_text())
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert low < 1.25 * measured and measured < 1.25 * high, (
        f"{measured / 1e6:.0f} MB, stated {low / 1e6:.0f} to {high / 1e6:.0f} MB"
    )
    assert high < 2.5 * measured


WIDE = "model.hidden=[3000,3000,3000]"


def of_a_rank(settings: list[str], folder: str) -> int | None:
    """Return the largest memory of this rank, after a run that has let libraries take what they keep."""
    in_new_run(0, of_a_run, [*settings, "model.hidden=[8]"], Path(folder, "small"))
    return in_new_run(1, of_a_run, [*settings, WIDE], Path(folder, "large"))


def of_a_run(settings: list[str], folder: Path) -> int | None:
    folder.mkdir(exist_ok=True)
    peak = Peak(torch.device("cpu"))
    peak.begin()
    fit(assemble(compose(settings), folder))
    return peak.growth()


@pytest.mark.slow
@pytest.mark.parametrize(("parallelism", "most"), [("fsdp", 1.2), ("pipeline", 1.4)])
def test_ranks_take_what_the_plan_states(parallelism: str, most: float, tmp_path: Path) -> None:
    """Beyond the tensors, a step of AdamW takes up to twice the weights of a rank, which the upper end includes."""
    settings = [
        *SHORT, "data=digits", "batch_size=64", "model=mlp", "optimizer=adamw", f"parallelism={parallelism}",
        "parallelism.devices=2",
    ]  # fmt: skip
    blueprint = resolve(compose([*settings, WIDE]))
    found, cost = estimate(blueprint, 0.1), cost_of(blueprint, meta_model(blueprint))
    assert cost is not None and cost.collected == 1
    kinds = ("weights", "gradients", "optimizer", "activations")
    each = found.data + sum(round(getattr(found, kind) * getattr(cost, kind)) for kind in kinds)
    main, other = spawn(2, of_a_rank, settings, str(tmp_path))
    assert found.more is not None
    assert each < 1.2 * other and other < min(most * each, each + found.more)
    assert each + found.copy < 1.2 * main and main < 1.2 * (each + found.copy)
