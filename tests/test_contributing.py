"""CONTRIBUTING's snippets are type-checked, formatted and trained with, in a clone and as a user's package."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.forks import shared
from tests.parallelism.harness import advance, curve, difference, make_from, spawn, state_of
from trainer import compose
from trainer.augmentation import Pipeline

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# a line with the name of a file, followed by its content
FILES = dict(re.findall(r"^`([\w./]+)`\n\n```(?:python|yaml)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
# a line that is added to a table: the file, and the line above which it is inserted
INSERTED = [
    ("trainer/configuration/groups.py", ")\nGROUPS: dict"),
    ("configs/train.yaml", "  - experiment: null\n"),
]
OF_A_GROUP = ("trainer/contracts.py", "trainer/penalties.py", "configs/penalty/squared_weights.yaml")
CODE = {name: text for name, text in FILES.items() if name.endswith(".py")}
RUN = [
    "threads=1",
    "model=lenet",
    "model.drop_prob=0.2",
    "batch_size=50",
    "device=cpu",
    "accumulate=3",
    "optimizer=momentum",
]
SHORT = ["steps=4", "batch_size=64", "threads=1", "device=cpu", "every.log=1step", "data.split_seed=0"]
RUNS = {
    "an optimizer of torch": ["optimizer=nadamw", "model=linear"],
    "classes of ours": [
        "optimizer=sign_descent",
        "schedule=triangular",
        "model=two_layers",
        "loss=multi_margin",
        "regularizer=log",
        "averaging=halves",
        "augmentation=checkerboard",
        "sampler=reversed",
        "preprocessing=max_abs",
        "initializer=sparse",
        "diagnostics=log_norm",
    ],
    "a strategy": ["parallelism=sum_afterwards", "parallelism.devices=2", "model=linear"],
}

# runs `train` of the first `trainer` on the path, not of the imported one
IN_A_CLONE = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "trainer"]:
    del sys.modules[name]
import trainer.app
from pathlib import Path
assert Path(trainer.app.__file__).is_relative_to(Path.cwd().resolve()), trainer.app.__file__
trainer.app.main()
"""


def test_every_snippet_is_a_file() -> None:
    assert len(FILES) == len(re.findall(r"^```(?:python|yaml)$", TEXT, re.MULTILINE))
    assert {name.split("/")[1].removesuffix(".py") for name in CODE} == {
        "optimizers", "schedules", "models", "losses", "parallelism", "augmentation", "samplers", "preprocessing",
        "initializers", "diagnostics", "contracts", "penalties",
        "regularizers", "averaging",
    }  # fmt: skip
    options = {Path(name).stem for name in FILES if name.endswith(".yaml") and name not in OF_A_GROUP}
    assert options == {override.partition("=")[2] for overrides in RUNS.values() for override in overrides} - {
        "linear",
        "2",
    }


def write(folder: Path, shape: str) -> list[str]:
    """Write the snippets below `folder`, in a clone or as a user's package; returns the flags."""
    if shape == "contributor":
        for name in ("trainer", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if shape == "contributor":
        insert_lines(folder)
    for name, text in FILES.items():
        if shape == "user":
            if name in OF_A_GROUP:  # a new group is only tested in a clone
                continue
            name = name.replace("trainer/", "mine/").replace("configs/", "options/")
            text = re.sub(r"_target_: trainer\.(?!augmentation\.Pipeline)", "_target_: mine.", text)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(("\n\n" if file.tell() else "") + text)
    return ["--trust", "mine", "--config-dir", "options"] if shape == "user" else []


def insert_lines(folder: Path) -> None:
    """Insert CONTRIBUTING's lines of a new group into the tables of the clone."""
    lines = re.findall(r"^```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for (name, following), line in zip(INSERTED, lines, strict=True):
        text = (folder / name).read_text()
        assert text.count(following) == 1
        (folder / name).write_text(text.replace(following, line + following))


@pytest.mark.parametrize("shape", ["contributor", "user"])
def test_the_snippets_are_trained_with(shape: str, tmp_path: Path) -> None:
    flags = write(tmp_path, shape)
    clone = {"code": IN_A_CLONE, "environment": {"PYTHONPATH": str(tmp_path)}} if shape == "contributor" else {}
    for number, overrides in enumerate(RUNS.values()):
        overrides = [*overrides, "penalty.weight=0.5"] if shape == "contributor" else overrides
        # ranks of a clone must import its own modules, not those of the fork server
        spare = shape == "user"
        line = [*flags, *overrides, *SHORT, f"name=run{number}"]
        process = shared().start(line, tmp_path, spare=spare, **clone)
        assert process.wait() == 0, process.output()
        (run,) = tmp_path.glob(f"outputs/*/*-run{number}")
        result = json.loads((run / "result.json").read_text())
        assert result["status"] == "completed"
        rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
        config = yaml.safe_load((run / "config.yaml").read_text())
        root = "mine" if shape == "user" else "trainer"
        chosen = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
        for group, option in chosen.items():
            if (file := f"configs/{group}/{option}.yaml") in FILES:
                target = yaml.safe_load(FILES[file])["_target_"]
                ours = target.startswith("trainer.") and target != "trainer.augmentation.Pipeline"
                assert config[group]["_target_"] == (target.replace("trainer", root, 1) if ours else target)
        if shape == "contributor":
            expected = {"_target_": "trainer.penalties.SquaredWeights", "weight": 0.5}
            assert (config["choices"]["penalty"], config["penalty"]) == ("squared_weights", expected)
        if number == 1:
            assert "diagnostics/log10_grad_norm" in rows[0]
            assert "test/margin" in result["test"]
            assert rows[0]["train/penalty"] > 0
            rates = [row["lr"] for row in rows if "lr" in row]
            assert rates == pytest.approx([0.001 * step / 100 for step in range(4)])


@pytest.mark.slow
def test_the_snippets_are_typed_and_formatted(tmp_path: Path) -> None:
    package = tmp_path / "shown"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, text in CODE.items():
        # what is added to one of our modules is imported from the user's package
        (package / Path(name).name).write_text(
            text.replace("from trainer.contracts import Penalty", "from shown.contracts import Penalty")
        )
    env = os.environ | {"MYPYPATH": str(ROOT)}
    line = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--strict", str(package)]
    line += ["--cache-dir", str(ROOT / ".mypy_cache")]  # shared cache: torch and trainer are the same
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    if importlib.util.find_spec("ruff"):  # ruff is in the extra `dev`; mypy also in `test`
        line = [sys.executable, "-m", "ruff", "format", "--diff", "--config", str(ROOT / "pyproject.toml"), "shown"]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def names_of(snippet: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "shown"}
    exec(CODE[snippet], names)
    return names


def test_the_operation_shown_darkens_its_squares() -> None:
    board = names_of("trainer/augmentation/checkerboard.py")["Checkerboard"](shade=(0.25, 1.0), side=2, probability=0.7)
    pipeline = Pipeline(board=board)
    seeded = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=seeded)
    table = pipeline.draw(40, (3, 8, 8), seeded)
    share_N = torch.where(table["board.applied"], 1 - table["board.shade"].float(), 1)
    expected = pixels.float()
    expected[:, :, :2, 2:4] = (expected[:, :, :2, 2:4] * share_N.view(-1, 1, 1, 1)).round()
    after = pipeline(pixels, table)
    assert torch.equal(after[:, :, :2, :4], expected[:, :, :2, :4])
    assert 0 < int(table["board.applied"].sum()) < 40


def test_the_loss_shown_starts_where_it_says() -> None:
    names = names_of("trainer/losses.py")
    loss, targets_N = names["MultiMargin"](), torch.arange(8) % 4
    assert float(loss(torch.zeros(8, 4), targets_N)) == pytest.approx(8 * loss.initial_value(4))
    outputs_NK = torch.tensor([[1.0, 5.0, 2.0], [4.0, 1.0, 3.0]])
    assert float(names["margin"](outputs_NK, torch.tensor([1, 2]))) == (5 - 2) + (3 - 4)


def shown(folder: str) -> dict[str, Any]:
    sys.path.insert(0, folder)
    os.environ["GEARSHIFT_TRUST"] = "shown_strategy"
    config = compose([*RUN, "steps=10", "parallelism=ddp"])
    config["parallelism"] = {"_target_": "shown_strategy.SumAfterwards"}
    run = make_from(config, double=True)
    return {"losses": advance(run, 10), **state_of(run)}


def test_the_strategy_shown_is_one_device(tmp_path: Path) -> None:
    (tmp_path / "shown_strategy.py").write_text(CODE["trainer/parallelism/sum_afterwards.py"])
    single = curve(RUN, 10, double=True)
    for other in spawn(2, shown, str(tmp_path)):
        assert max(difference(single, other).values()) < 1e-12
