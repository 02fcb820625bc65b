"""`compose`, `assemble` and `fit` in a fresh process give the results of the command line."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import trainer
from tests.data.images import jpeg
from tests.forks import train
from trainer import app, assemble, compose, fit, launch, resume
from trainer.base.config import Config
from trainer.base.errors import ConfigurationError, Diverged, GearshiftError
from trainer.base.signals import stop_request
from trainer.commands.resume import typed
from trainer.storage.records import read_json
from trainer.storage.run_folder import Lock

README = Path(__file__).parents[1] / "README.md"
OVERRIDES = ["model=mlp", "epochs=1", "batch_size=16", "seed=7", "every.log=10step"]
SCRIPT = f"""
import json, sys
from dataclasses import asdict
from trainer import compose
config = compose({OVERRIDES})
light = "torch" not in sys.modules
from trainer import assemble, fit
run = assemble(config)
result = fit(run)
print(json.dumps([light, asdict(result)]))
"""


def in_a_process(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env=env | {"OMP_NUM_THREADS": "1"}, stdout=pipe, stderr=pipe, text=True
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All records; throughput, which varies, only by name."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: None if k.startswith("throughput/") else v for k, v in line.items()} for line in lines]


def test_a_run_in_a_script_is_the_run_of_the_command_line(tmp_path: Path) -> None:
    homes = tmp_path / "python", tmp_path / "shell"
    for home in homes:
        home.mkdir()
    script = in_a_process("-c", SCRIPT, cwd=homes[0])
    command = train(homes[1], *OVERRIDES)
    printed, script_errors = script.communicate()
    assert (script.returncode, script_errors, command.returncode, command.stderr) == (0, "", 0, "")

    light, result = json.loads(printed.splitlines()[-1])
    assert light  # `compose` does not import torch
    folders = [next(home.glob("outputs/*/*")) for home in homes]
    for folder in folders:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {
            "config.yaml", "overrides.yaml", "environment.json", "metrics.jsonl", "result.json", "train.log",
            "curves.png", "checkpoints/last.pt", "checkpoints/best.pt",
        } <= names  # fmt: skip
        assert any(name.startswith("events.out.tfevents.") for name in names)

    assert result == read_json(folders[0] / "result.json")
    assert (homes[0] / result["folder"]).resolve() == folders[0].resolve()
    assert (result["status"], result["steps"]) == ("completed", 90)  # 1437 samples, 16 per step
    assert result["test"]["test/accuracy"] > 0.8

    lines = metrics(folders[0])
    assert lines == metrics(folders[1])
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 90]
    assert all(math.isfinite(value) for line in lines for value in line.values() if value is not None)
    assert lines[-1]["test/accuracy"] == result["test"]["test/accuracy"]
    assert (folders[0] / "config.yaml").read_bytes() == (folders[1] / "config.yaml").read_bytes()


@pytest.mark.slow
def test_the_snippet_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["result"].epochs == 4
    assert [record["epoch"] for record in names["result"].history if "val/loss" in record] == [1, 2, 3, 4]
    torch.set_deterministic_debug_mode("default")


def test_compose_lists_every_problem() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose(["epochs=0", "optimizer.lr=-1", "every.log=50", "model=mlp", "precision=fp17"])
    assert sorted(line.partition(":")[0] for line in caught.value.problems) == [
        "epochs=0",
        "every.log=50",
        "optimizer.lr=-1",
        "precision=fp17",
    ]
    assert caught.value.exit_code == 2


def test_assemble_lists_every_problem_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["model=mlp", "model.hidden=[0]", "batch_size=5000", "early_stopping.monitor=val/acuracy"])
    with pytest.raises(ConfigurationError) as caught:
        assemble(config)
    text = str(caught.value)
    assert "hidden=[0]" in text and "batch_size=5000" in text and "Did you mean 'val/accuracy'?" in text
    assert list(tmp_path.iterdir()) == []


Changed = Callable[[Config], object]
WRONG_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "one text": (lambda: compose("epochs=3"), "compose: overrides are a list of texts key=value, and not 'epochs=3'"),
    "a number among texts": (lambda: compose(["epochs=3", 4]), "compose: overrides are a list of .* 4]"),  # type: ignore[list-item]
    "no overrides": (lambda: compose(None), "compose: overrides are a list of texts key=value, and not None"),  # type: ignore[arg-type]
    "resume with one text": (lambda: resume("run", "epochs=4"), "resume: overrides are a list .*, and not 'epochs=4'"),
    "a list in place of a configuration": (lambda: assemble(["epochs=3"]), r"assemble takes .* not \['epochs=3'\]"),  # type: ignore[arg-type]
    "an empty configuration": (lambda: assemble({}), "assemble takes the configuration that compose returns"),
    "launch with a list": (lambda: launch(["epochs=3"]), "launch takes the configuration that compose returns"),  # type: ignore[arg-type]
    "fit without assemble": (lambda: fit(compose()), "fit takes the run that assemble returns, .* and not a dict"),  # type: ignore[arg-type]
}  # fmt: skip
CHANGES: dict[str, tuple[Changed, str]] = {
    "out of range": (lambda c: c.update(epochs=-1), "epochs=-1: must be a whole number of at least 1 or null"),
    "of another type": (lambda c: c.update(epochs="x"), "epochs=x: must be a whole number of at least 1 or null"),
    "missing": (lambda c: c.pop("seed"), "seed: is missing"),
    "misspelt": (lambda c: c.update(epoch=3), "epoch=3: key 'epoch' does not exist. Did you mean 'epochs'?"),
    "no option": (lambda c: c.pop("model"), "model=null: names no class"),
    "text for an option": (lambda c: c.update(optimizer="sgd"), "optimizer=sgd: names no class"),
    "a section": (lambda c: c.update(early_stopping=3), "early_stopping=3: must hold monitor"),
    "inside a section": (lambda c: c["every"].clear(), "every.log: is missing"),
    "inside an option": (lambda c: c["optimizer"].update(lr=-1), "optimizer.lr=-1: must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_argument_is_told_with_the_right_call(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, message = WRONG_CALLS[case]
    with pytest.raises(ConfigurationError, match=f"^{message}") as caught:
        call()
    assert len(caught.value.problems) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", CHANGES)
def test_a_configuration_changed_in_python_is_checked(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = CHANGES[case]
    for start in (assemble, launch):
        config = compose()
        change(config)
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
            start(config)
    assert list(tmp_path.iterdir()) == []


SHORT = ["model=linear", "steps=3", "schedule=constant", "threads=1", "every.log=1step"]


def recorded(folder: Path) -> Config:
    config: Config = yaml.safe_load((folder / "config.yaml").read_text())
    return config


def test_a_run_ends_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = assemble(compose(SHORT), "run")
    assert fit(run).status == "completed"
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=r"^the run has ended; to continue it: trainer.resume\('.*run'\), with more"
        ):
            fit(run)
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    with pytest.raises(ConfigurationError, match=r"^run: holds a run; .*: assemble\(config, 'run', resume=True\)$"):
        assemble(compose(SHORT), "run")


def test_what_a_notebook_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"assemble", "compose", "fit", "launch", "resume"} <= set(dir(trainer))
    run = assemble(compose(SHORT), "run")
    assert repr(run) == f"<Run: digits, linear, adamw, step 0 of 3, cpu, {run.folder}>"
    result = fit(run)
    assert repr(run).startswith("<Run: digits, linear, adamw, step 3 of 3, ")
    assert result.history == [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in result.history] == [1, 2, 3, 3]
    figure = result.plot()
    assert figure is not None
    assert figure._repr_png_().startswith(b"\x89PNG")
    lines = [line for line in figure.axes[0].get_lines() if line.get_label() == "training"]
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3]]
    assert list(lines[0].get_ydata()) == [record["train/loss"] for record in result.history if "lr" in record]


def test_a_folder_of_ones_own_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line and from Python, with more steps each time: the metrics of one long run."""
    monkeypatch.chdir(tmp_path)
    words = [word for word in SHORT if not word.startswith("steps")]
    assert fit(assemble(compose([*words, "steps=9"]), "reference")).steps == 9
    assert fit(assemble(compose([*words, "steps=3"]), Path("mine/own"))).steps == 3
    assert app.run(["resume", "mine/own", "steps=6"]) == 0
    assert fit(assemble(compose([*words, "steps=9"]), "mine/own", resume=True)).steps == 9
    assert app.run(["resume", "mine/own"]) == 0
    assert recorded(Path("mine/own")) == recorded(Path("reference"))
    assert yaml.safe_load(Path("mine/own/overrides.yaml").read_text()) == ["steps=6"]
    found, wanted = ([line for line in metrics(Path(run)) if "lr" in line] for run in ("mine/own", "reference"))
    assert [line["train/loss"] for line in found] == [line["train/loss"] for line in wanted]
    assert launch(compose(SHORT), tmp_path / "launched").folder == "launched"
    assert launch(compose(SHORT), "launched").steps == 3


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with dropout and momentum, complete."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    words = ["model=mlp", "model.drop_prob=0.5", "optimizer=momentum", "steps=4", *SHORT[2:], "every.checkpoint=2step"]
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder.parent)
        fit(assemble(compose(words), folder))
    return folder


Resume = Callable[[Path], Any]
WAYS: dict[str, tuple[list[str], Resume]] = {
    "longer": (["steps=8"], lambda run: resume(run, steps=8)),
    "as typed": (["steps=5"], lambda run: resume(str(run), ["steps=5"])),
    "both": (
        ["steps=8", "schedule_length=4step"], lambda run: resume(run, ["steps=8"], schedule_length="4step"),
    ),
    "another strategy": (
        ["steps=6", "parallelism.devices=1", "parallelism=ddp"],
        lambda run: resume(run, ["steps=6", "parallelism.devices=1"], parallelism="ddp"),
    ),
    "complete": ([], resume),
}  # fmt: skip


@pytest.mark.parametrize(
    "way", [name if name in ("both", "complete") else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
def test_a_run_resumed_from_python_is_that_of_the_command_line(
    way: str, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, from_python = WAYS[way]
    shell, python = Path("shell"), Path("python")
    for home in (shell, python):
        shutil.copytree(stopped, home)
    assert app.run(["resume", "shell", *words]) == 0
    advice = stop_request.advice
    result = from_python(python)
    assert stop_request.advice == advice
    wanted = read_json(shell / "result.json")
    aside = {"wall_seconds", "folder"}
    assert {k: v for k, v in asdict(result).items() if k not in aside} == {
        k: v for k, v in wanted.items() if k not in aside
    }
    assert (result.folder, result.steps > 4, metrics(python)) == ("python", bool(words), metrics(shell))
    assert result.history[-1]["test/loss"] == result.test["test/loss"]
    for name in ("config.yaml", "overrides.yaml"):
        assert (python / name).read_bytes() == (shell / name).read_bytes()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(home / "checkpoints" / name)["model"] for home in (python, shell))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


def test_a_schedule_alone_does_not_open_a_complete_run_again(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stopped, "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert app.run(["resume", "run", "schedule_length=2step"]) == 0
    assert capsys.readouterr().out.endswith("twice as long: train resume run steps=8 schedule_length=2step\n")
    assert resume("run", schedule_length="2step").steps == 4
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def nothing(run: Path) -> None:
    pass


def edit(run: Path) -> None:
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "note: 1\n")


REFUSED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folder": (shutil.rmtree, []),
    "a file": (lambda run: (shutil.rmtree(run), run.touch()), []),
    "no run": (lambda run: (run / "config.yaml").unlink(), []),
    "edited": (edit, ["steps=8"]),
    "damaged result": (lambda run: (run / "result.json").write_text("{}"), []),
    "damaged checkpoint": (lambda run: [p.write_bytes(b"x") for p in run.glob("checkpoints/*")], ["steps=8"]),
    "damaged metrics": (lambda run: (run / "metrics.jsonl").write_text("x"), ["steps=8"]),
    "in use": (Lock, ["steps=8"]),
    "fewer steps": (nothing, ["steps=2"]),
    "another run": (nothing, ["optimizer.lr=0.5", "seed=2"]),
    "misspelt": (nothing, ["step=8", "epochs=x"]),
    "twice": (nothing, ["steps=8", "steps=9"]),
    "a flag": (nothing, ["--show"]),
    "no override": (nothing, ["steps"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_command_line_refuses_to_resume_is_an_exception(
    case: str, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage, words = REFUSED[case]
    shutil.copytree(stopped, "run")
    held = damage(Path("run"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    errors = []
    for attempt in (lambda: app.run(["resume", "run", *words]), lambda: resume("run", words)):
        with pytest.raises(GearshiftError) as caught:
            attempt()
        errors.append((type(caught.value), str(caught.value)))
        after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        assert after.keys() == before.keys()
        assert {path.name for path in before if after[path] != before[path]} <= {"train.log"}
    assert errors[0] == errors[1]
    del held


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "a=null"), (3, "a=3"), (True, "a=true"), (0.5, "a=0.5"), ("4ep", "a=4ep"), ([1, 2], "a=[1, 2]"),
        (Path("/x/y-z.d"), "a=/x/y-z.d"), ("it's, or {x}", "a='it\\'s, or {x}'"), ("", "a=''"), ({"b": 1}, "a={b: 1}"),
    ],
)  # fmt: skip
def test_a_keyword_is_an_override(value: object, text: str) -> None:
    assert typed("a", value) == text
    found = OverridesParser.create().parse_override(text).value()
    assert found == (str(value) if isinstance(value, Path) else value)


@pytest.mark.parametrize(("cache", "workers"), [("memory", 0), ("none", 0), ("none", 1)])
def test_the_current_folder_may_change_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, workers: int
) -> None:
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(jpeg(12, 10, number + 20 * (name == "b")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    data = ["data=image_folder", "data.root=photos", "data.size=8", "data.cache_dir=cache", "batch_size=16"]
    run = assemble(compose([*SHORT, *data, f"data.cache={cache}", f"data.workers={workers}"]), "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = fit(run)
    assert (result.status, Path(result.folder)) == ("completed", tmp_path / "run")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"result.json", "curves.png", "metrics.jsonl", "train.log", "checkpoints"} <= names


def test_a_divergence_is_located_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = assemble(compose([*SHORT, "optimizer=sgd", "optimizer.lr=1e38"]), "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(Diverged, match=r"^diverged at step \d: the output of layer"):
        fit(run)
