"""Sub-commands, Hydra's flags, and the files and exit codes of runs, with the whole program."""

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.command_line.conftest import INSTALLED, SMALL, Train, listing
from tests.data.images import jpeg
from tests.forks import Zygote
from trainer.commands import COMMANDS
from trainer.configuration.build import build
from trainer.data import ImageFolder
from trainer.storage import checkpoint
from trainer.storage.records import read_json

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All records, without throughput, which differs between repetitions."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("throughput/")} for line in lines]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "result.json")
    return found


@pytest.fixture
def run(trained: Path, folder: Path) -> Path:
    """A copy of the completed run."""
    return Path(shutil.copytree(trained, folder / "run"))


# --- help and Hydra's flags -------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["resume", "--help"], ["optimizer=sgd", "--help"]])
def test_help_is_complete(arguments: list[str], train: Train) -> None:
    done = train(*arguments)
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    for command in ("plan", "resume", "repeat", "evaluate"):
        assert any(line.startswith(f"train {command} ...") for line in lines)
    for path in CONFIGS.glob("*/*.yaml"):
        head = next(line for line in path.read_text().splitlines() if not line.startswith("# @package"))
        assert any(line.removeprefix("* ") == f"{path.stem} {head[2:]}" for line in lines), path
    defaults = yaml.safe_load((CONFIGS / "train.yaml").read_text())["defaults"]
    chosen = {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}
    for group, option in chosen.items():
        if option is not None and not group.startswith("override"):
            index = lines.index(group)
            following = lines[index : index + 1 + len(list((CONFIGS / group).glob("*.yaml")))]
            assert any(line.startswith(f"* {option} ") for line in following), group
    assert not any(line.startswith("[") for line in lines), "markup is shown"


def test_help_lists_options_of_a_users_own_folder(train: Train, folder: Path) -> None:
    (folder / "mine/model").mkdir(parents=True)
    (folder / "mine/model/tower.yaml").write_text("# Seven storeys\n_target_: trainer.models.mlp.mlp\n")
    for arguments in (["--config-dir", "mine", "--help"], ["--help", "--config-dir=mine"], ["-cd", "mine", "-h"]):
        assert re.search(r"^ +tower +Seven storeys$", train(*arguments).out, re.MULTILINE)


def test_help_on_an_option_is_its_entry_and_its_keys(train: Train, folder: Path) -> None:
    done = train("help", "data=image_folder", "optimizer=sgdw")
    assert f"train data=image_folder\n\n{(CONFIGS / 'data/image_folder.yaml').read_text()}" in done.out
    shown = done.out.partition("train optimizer=sgdw\n\n")[2]
    for line in ("SGDW: momentum with decoupled decay, w <- w - lr * b - lr * lambda * w (CUHK ELEG 5491; Loshchilov",
                 "ema:        b <- mu b + (1 - mu) g,   w <- w - lr b  (CUHK ELEG 5491; torch's `dampening` starts b",
                 "- Source: CUHK ELEG 5491; CS7150; ", "- Equal to torch's: no, torch has no decoupled decay for SGD",
                 "- Checked against timm 1.0.31's SGDW: 1e-12 relative", "- Shown by: `train optimizer=sgdw`",
                 "Keys and defaults:\n\n_target_: trainer.optimizers.momentum.SGDW\nlr: 0.2   "):  # fmt: skip
        assert f"\n{line}" in f"\n{shown}", line
    assert (done.code, done.err) == (0, "") and "```" not in done.out and "###" not in shown
    (folder / "mine/model").mkdir(parents=True)
    (folder / "mine/model/tower.yaml").write_text("# Seven storeys\nheight: 7  # storeys\n")
    assert train("help", "model=tower", "--config-dir=mine").out.endswith("# Seven storeys\nheight: 7  # storeys\n")
    for words, message in (("data=folder", "is not an option. Did you mean 'image_folder'? Options: blobs, cifar10"),
                           ("model=tower", "is not an option. Options: "), ("dataa=x", "a group. Did you mean 'data'?"),
                           ("data=../model/lenet", "is not an option")):  # fmt: skip
        done = train("help", words)
        assert (done.code, done.out) == (2, "") and done.err.startswith(f"error: train help {words}: "), done.err
        assert message in done.err and done.err.count("\n") == 1


def test_help_on_a_word_is_about_that_word(train: Train, folder: Path) -> None:
    """A group, a key of options, a setting and a sub-command; anything else is refused, and not passed over."""
    (folder / "mine/model").mkdir(parents=True)
    (folder / "mine/model/tower.yaml").write_text("# Seven storeys\nheight: 7  # storeys\n")
    for word, lines in {
        "optimizer": ["train optimizer=OPTION", "  * adamw ", "    sgd "],
        "model": ["    tower              Seven storeys"],
        "optimizer.momentum": ["  momentum           momentum: 0.9"],
        "model.height": ["  tower              height: 7  # storeys"],
        "epochs": ["# passes over the training set", "epochs: "],
        "every.log": ["train every.log=VALUE", "every:", "  log: auto ", "  checkpoint: 1ep "],
        "seed": ["seed: 0 "],
        **{command: [f"train {command} ", text] for command, text in COMMANDS.items()},
    }.items():
        done = train("help", "--config-dir", "mine", word)
        found = done.out.splitlines()
        assert (done.code, done.err, len(found) < 60) == (0, "", True), word
        assert all(any(line.startswith(start) for line in found) for start in lines), done.out
    for word, hint in {
        "optimizr": " Did you mean 'optimizer'?",
        "optimizer.lrr": " Did you mean 'optimizer'?",
        "hydra": "",
        "epoch": " Did you mean 'epochs'?",
    }.items():
        done = train("help", word)
        wanted = f"train help {word}: '{word}' is neither a group, a key nor a command.{hint} See train --help"
        assert (done.code, done.out, done.problems) == (2, "", [wanted])
    for word, meant in {
        "version": "--version",
        "hlep": "help",
        "reume": "resume",
        "optimizer": "optimizer=...",
    }.items():
        (problem,) = train(word).problems
        assert problem.startswith(f"'{word}' is neither a command nor key=value. Did you mean '{meant}'? Commands: ")


@pytest.mark.slow
def test_help_is_quick(process: Train, seconds_of_torch: float) -> None:
    """Usually a twentieth of that."""
    assert any(process("--help", program=INSTALLED).seconds < seconds_of_torch / 4 for _ in range(5))


def test_the_version_is_ours(train: Train) -> None:
    assert re.fullmatch(r"gearshift \d+\.\d+\.\d+\n", train("--version").out)


def test_the_configuration_is_shown(train: Train, folder: Path) -> None:
    done = train("--cfg", "job", "optimizer=sgd", "optimizer.lr=0.5")
    shown = yaml.safe_load(done.out)
    assert (done.code, done.err, shown["optimizer"]["lr"]) == (0, "", 0.5)
    assert shown["optimizer"]["_target_"] == "torch.optim.SGD"
    assert "hydra" not in shown
    assert train("optimizer=sgd", "-c", "job", "-p", "optimizer").out.startswith("# @package optimizer\n")
    assert listing(folder) == {}


def test_information_is_shown(train: Train, folder: Path) -> None:
    done = train("optimizer=sgd", "--info", "defaults")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"\| optimizer/sgd +\| optimizer +\|", done.out)
    assert "Config search path" in train("--info", "searchpath").out
    assert listing(folder) == {}


def test_a_primary_configuration_and_options_of_ones_own(train: Train, folder: Path) -> None:
    (folder / "mine/model").mkdir(parents=True)
    (folder / "mine/model/narrow.yaml").write_text("# Narrow\n_target_: trainer.models.mlp.mlp\nhidden: [3]\n")
    (folder / "mine/narrow_run.yaml").write_text("defaults: [train, override model: narrow, _self_]\nsteps: 2\n")
    arguments = ["--config-dir", "mine", "-cn", "narrow_run", "schedule=constant"]
    done = train(*arguments, "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    assert result(folder / "run")["steps"] == 2
    config = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert (config["model"]["hidden"], config["choices"]["model"]) == ([3], "narrow")
    assert checkpoint.load(folder / "run/checkpoints/last.pt")["model"]["linear1.weight"].shape == (3, 64)
    # a recorded run does not need the folder of options
    assert train("repeat", "run", "optimizer=sgd").code == 0
    # a sweep records it
    assert train("-m", "seed=1,2", *arguments, "name=sweep").code == 0
    (folder / "outputs/sweeps/sweep").joinpath(second := _trial(folder, 1), "result.json").unlink()
    # a folder of options may hold code: it is typed again, as the message says
    done = train("resume", "outputs/sweeps/sweep")
    assert (done.code, done.out) == (2, "")
    _, _, advice = done.err.partition("if you trust it: train ")
    assert advice.split() == ["resume", "outputs/sweeps/sweep", "--config-dir", str(folder / "mine")]
    done = train(*advice.split())
    assert (done.code, done.err) == (0, "")
    assert "completed already" in done.out.splitlines()[0] and f"trial {second}" in done.out


def _trial(folder: Path, number: int) -> str:
    (found,) = (folder / "outputs/sweeps/sweep").glob(f"{number}_*")
    return found.name


def test_flags_may_stand_anywhere(train: Train, folder: Path) -> None:
    done = train("steps=1", "-m", "seed=1,2", "model=linear", "schedule=constant", "name=mixed")
    assert (done.code, done.err) == (0, "")
    assert len(list((folder / "outputs/sweeps/mixed").glob("*/result.json"))) == 2


# --- one program under three names ------------------------------------------------------------------------


def test_cli_py_and_the_module_are_the_same_program(process: Train, folder: Path) -> None:
    """tests/test_python_api.py and tests/test_template.py compare the results of runs started by cli.py."""
    module, script = (sys.executable, "-m", "trainer"), (sys.executable, str(ROOT / "cli.py"))
    for arguments in (["optimizer=adamx"], ["--cfg", "job"], ["evaluate"]):
        wanted = process(*arguments)
        for program in (module, script):
            done = process(*arguments, program=program)
            assert (done.code, done.out, done.err) == (wanted.code, wanted.out, wanted.err)


# --- runs and their files ---------------------------------------------------------------------------------


def test_a_run_leaves_the_files_that_are_promised(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml", "overrides.yaml", "environment.json", "metrics.jsonl", "checkpoints", "result.json", "train.log",
        "curves.png",
    } <= names  # fmt: skip
    assert [name for name in names if name.startswith(".")] == []
    assert len([name for name in names if name.startswith("events.out.tfevents.")]) == 1
    assert {"last.pt", "best.pt"} <= {path.name for path in (run / "checkpoints").iterdir()}
    assert yaml.safe_load((run / "overrides.yaml").read_text()) == SMALL
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["packages"]["torch"], environment["threads"]) == (version("torch"), 1)


def test_typed_epochs_count_over_the_steps_of_a_debug_option(train: Train, folder: Path) -> None:
    done = train("debug=overfit", "epochs=3", "model=linear", "hydra.run.dir=run")
    assert done.code == 0 and "\ncompleted after 3 steps, 3.0 epochs, " in done.out
    done = train("debug=one_step", "model=linear", "batch_size=1", "threads=1", "hydra.run.dir=one")
    for line in (
        ", 1 step of 1 sample\n",
        "\ndevice: cpu, 1 thread, fp32\n",
        "\ncompleted after 1 step, 0.00 epochs, ",
    ):
        assert line in done.out
    assert result(folder / "run")["steps"] == 3


def test_a_complete_run_says_so(train: Train, run: Path, folder: Path) -> None:
    before = listing(folder)
    done = train("resume", "run")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "run is complete (completed); to train it further, such as twice as long: train resume run epochs=4\n"
    )
    assert listing(folder) == before


def test_more_epochs_go_on_in_the_same_folder(train: Train, folder: Path) -> None:
    """The result is that of a long run, except for what was written at the end of the short one."""
    assert train(*SMALL, "schedule=constant", "hydra.run.dir=short").code == 0
    done = train("resume", "short", "epochs=4")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "epochs: 2 -> 4"
    longer = [word.replace("epochs=2", "epochs=4") for word in SMALL]
    assert train(*longer, "schedule=constant", "hydra.run.dir=long").code == 0
    end = 24
    resumed, straight = ([line for line in metrics(folder / name) if line["step"] != end] for name in ("short", "long"))
    assert resumed == straight
    assert [line["step"] for line in straight if "lr" in line] == [n for n in range(3, 49, 3) if n != end]
    assert sum("test/loss" in line for line in metrics(folder / "short")) == 1
    assert result(folder / "short")["test"] == result(folder / "long")["test"]
    assert yaml.safe_load((folder / "short/overrides.yaml").read_text())[-1] == "epochs=4"
    assert {path.name for path in folder.iterdir()} == {"short", "long"}


def test_resume_accepts_nothing_but_more_training(train: Train, run: Path, folder: Path) -> None:
    before = listing(folder)
    done = train("resume", "run", "optimizer.lr=1", "seed=7", "epochs=3")
    assert done.code == 2
    assert sorted(line.partition(":")[0] for line in done.problems) == ["optimizer.lr=1", "seed=7"]
    assert all("train repeat" in line for line in done.problems)
    assert listing(folder) == before


def test_a_repetition_is_the_same_to_the_last_bit(train: Train, run: Path, folder: Path) -> None:
    done = train("repeat", "run")
    assert (done.code, done.err) == (0, "")
    (again,) = folder.glob("outputs/*/*")
    assert metrics(again) == metrics(run)
    assert result(again)["test"] == result(run)["test"]
    first, second = (checkpoint.load(path / "checkpoints/last.pt")["model"] for path in (run, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_repetition_with_changes(train: Train, run: Path, folder: Path) -> None:
    assert train("repeat", "run", "optimizer=sgd", "seed=6", "optimizer.lr=0.5", "steps=3", "name=new").code == 0
    (again,) = folder.glob("outputs/*/*")
    config = yaml.safe_load((again / "config.yaml").read_text())
    assert (config["choices"]["optimizer"], config["optimizer"]["lr"], config["seed"]) == ("sgd", 0.5, 6)
    assert "betas" not in config["optimizer"]
    assert (config["steps"], config["epochs"], again.name.endswith("-new")) == (3, None, True)
    assert result(again)["steps"] == 3
    assert yaml.safe_load((again / "overrides.yaml").read_text())[-1] == "name=new"


def test_an_evaluation_gives_the_metrics_of_the_result(train: Train, run: Path, folder: Path) -> None:
    shutil.copytree(run, "twin")
    before = listing(folder)
    done = train("evaluate", "run", "twin")
    assert (done.code, done.err) == (0, "")
    first, second = (json.loads(line) for line in done.out.splitlines())
    assert (first.pop("run"), second.pop("run")) == ("run", "twin")
    assert first == second == result(run)["best"]["metrics"] | result(run)["test"]
    for split in ("val", "test"):  # also where it repeats the loss, which tables omit
        assert first[f"{split}/cross_entropy"] == pytest.approx(first[f"{split}/loss"])
    assert listing(folder) == before


# --- exit codes -------------------------------------------------------------------------------------------


def test_a_run_in_use_is_code_75(train: Train, run: Path, folder: Path) -> None:
    before = listing(folder)
    holder = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        done = train("resume", "run", "epochs=3")
    finally:
        os.close(holder)
    assert (done.code, len(done.problems)) == (75, 1)
    assert "run is in use" in done.problems[0]
    assert listing(folder) == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints(train: Train, process: Train, run: Path, folder: Path) -> None:
    """If one is damaged, the previous one is used with a warning; if both are, exit code 65 and no file is changed."""
    newest, before_it = run / "checkpoints/last.pt", run / "checkpoints/last.previous.pt"
    if not before_it.exists():
        shutil.copy(newest, before_it)
    flip(newest)
    shutil.copytree(run, "other")
    done = process("resume", "run", "epochs=3")
    assert done.code == 0
    assert done.err.startswith("run/checkpoints/last.pt is damaged: its checksum does not match; falling back")
    assert done.err.count("\n") == 1
    assert f"WARNING {done.err}" in (run / "train.log").read_text()
    assert result(run)["steps"] == 36

    flip(folder / "other/checkpoints/last.previous.pt")
    before = listing(folder)
    done = train("resume", "other", "epochs=3")
    assert done.code == 65
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "other/checkpoints/last.pt is damaged" in errors[0]
    assert listing(folder) == before


def test_damaged_best_weights_are_code_65(train: Train, run: Path) -> None:
    flip(run / "checkpoints/best.pt")
    done = train("evaluate", "run")
    assert (done.code, len(done.problems)) == (65, 1)
    assert "best.pt is damaged" in done.problems[0]
    (run / "checkpoints/best.pt").unlink()
    assert train("evaluate", "run").code == 65


def test_a_diverged_run_is_code_70(train: Train, folder: Path) -> None:
    done = train(
        "model=mlp", "steps=20", "schedule=constant", "optimizer=sgd", "optimizer.lr=1e38", "hydra.run.dir=run"
    )
    assert (done.code, len(done.problems)) == (70, 1)
    assert (result(folder / "run")["status"], result(folder / "run")["exit_code"]) == ("diverged", 70)
    assert f" ERROR {done.problems[0]}" in (folder / "run/train.log").read_text().splitlines()[-1]


def test_a_stopped_run_says_how_to_go_on_and_does(folder: Path, train: Train, zygote: Zygote) -> None:
    arguments = ["model=linear", "epochs=100000", "early_stopping=null", "hydra.run.dir=run", "every.log=10step"]
    child = zygote.start(arguments, folder, apart=True)
    while not ((path := folder / "run/metrics.jsonl").is_file() and "val/loss" in path.read_text()):
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate()
    assert (child.returncode, err) == (143, "")
    assert out.splitlines()[-1] == "to continue: train resume run"
    stopped = result(folder / "run")
    assert (stopped["status"], stopped["exit_code"]) == ("interrupted", 143)
    done = train("resume", "run", f"steps={stopped['steps'] + 7}")
    assert (done.code, done.err) == (0, "")
    assert result(folder / "run")["steps"] == stopped["steps"] + 7


# --- pipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "first", "runs"),
    [
        ("steps=30 model=linear every.evaluate=1step hydra.run.dir=run", "run: run", 1),
        ("-m steps=3 model=linear schedule=constant seed=1,2 name=x", "trial 0_.*", 2),
    ],
)
def test_a_run_ends_well_without_its_reader(command: str, first: str, runs: int, folder: Path, zygote: Zygote) -> None:
    os.mkfifo(folder / "pipe")
    started = zygote.start(command.split(), folder, out=folder / "pipe", apart=True)
    with (folder / "pipe").open() as pipe:
        assert re.fullmatch(first, pipe.readline().strip())
    assert started.wait() == 0
    assert started.errors() == ""
    assert [result(path.parent)["status"] for path in folder.rglob("result.json")] == ["completed"] * runs


# --- operations that were added ---------------------------------------------------------------------------

FLIP = "+augmentation.flip={_target_: trainer.augmentation.HorizontalFlip}"


@pytest.mark.parametrize(
    ("typed", "order"),
    [
        (["augmentation=flip_crop", "~augmentation.flip", FLIP], ["crop", "flip"]),
        (["augmentation=crop", FLIP], ["crop", "flip"]),
        ([FLIP], ["flip"]),
        ([FLIP, "+augmentation.crop={_target_: trainer.augmentation.Crop, padding: 1}"], ["flip", "crop"]),
    ],
)
def test_operations_are_moved_and_added(typed: list[str], order: list[str], train: Train, folder: Path) -> None:
    assert train(*SMALL, *typed, "hydra.run.dir=run").code == 0
    written = yaml.safe_load((folder / "run" / "config.yaml").read_text())["augmentation"]
    assert list(written) == ["_target_", *order]
    assert written["flip"] == {"_target_": "trainer.augmentation.HorizontalFlip"}, "nothing of the preset's is left"
    assert list(build(written, "augmentation").operations) == order
    if typed == [FLIP]:
        for arguments in (["resume", "run", "epochs=3"], ["repeat", "run"], ["evaluate", "run"]):
            assert train(*arguments).code == 0, arguments


# --- a run that fails before its first step ---------------------------------------------------------------


@pytest.fixture
def photographs(folder: Path) -> list[str]:
    """Forty photographs, of which `photographs/a/3.jpg` is unreadable; returns the overrides that select them."""
    for name in "ab":
        (folder / "photographs" / name).mkdir(parents=True)
        for number in range(20):
            (folder / "photographs" / name / f"{number}.jpg").write_bytes(jpeg(20, 24, number))
    (folder / "photographs/a/3.jpg").write_text("no photograph")
    return [
        "data=image_folder", "data.root=photographs", "data.size=16", "data.workers=0", "data.cache_dir=cache",
        "model=linear", "epochs=1", "batch_size=16", "threads=1",
    ]  # fmt: skip


UNREADABLE = "data: 1 of 40 photographs in photographs cannot be used: a/3.jpg (not an image of a format that is read)"


def check_failed_load(run: Path) -> None:
    """The run folder contains the error and nothing else."""
    assert sorted(p.name for p in run.iterdir()) == ["config.yaml", "overrides.yaml", "result.json", "train.log"]
    found = result(run)
    assert found.pop("error").startswith(UNREADABLE)
    assert found == {
        "status": "failed", "exit_code": 65, "steps": 0, "epochs": 0.0, "monitor": "val/loss", "best": None,
        "test": None, "wall_seconds": 0.0, "folder": str(run),
    }  # fmt: skip


def test_a_run_whose_data_cannot_be_loaded_says_so_in_its_folder(
    photographs: list[str], train: Train, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ImageFolder.load

    def talkative(self: ImageFolder) -> Any:
        logging.getLogger("trainer.data").info("about to load")
        return load(self)

    monkeypatch.setattr(ImageFolder, "load", talkative)
    done = train(*photographs, "hydra.run.dir=run")
    assert done.code == 65 and len(done.problems) == 1 and done.problems[0].startswith(UNREADABLE)
    check_failed_load(Path("run"))
    early, last = (folder / "run/train.log").read_text().splitlines()
    assert early.endswith(" INFO about to load")
    assert f" ERROR {UNREADABLE}" in last
    before = {name: content for name, content in listing(folder / "run").items() if name != "train.log"}
    assert train("resume", "run").code == 65
    assert {name: content for name, content in listing(folder / "run").items() if name != "train.log"} == before

    (folder / "photographs/a/3.jpg").write_bytes(jpeg(20, 24, 3))
    assert train("resume", "run").code == 0
    assert train(*photographs, "hydra.run.dir=other").code == 0
    assert metrics(folder / "run") == metrics(folder / "other")
    assert (result(folder / "run")["status"], result(folder / "run").get("error")) == ("completed", None)


def test_a_run_that_has_begun_is_not_marked_as_failed_when_it_cannot_go_on(
    photographs: list[str], train: Train, folder: Path
) -> None:
    (folder / "photographs/a/3.jpg").write_bytes(jpeg(20, 24, 3))
    assert train(*photographs, "hydra.run.dir=run").code == 0
    (folder / "photographs/a/3.jpg").write_text("no photograph")
    before = listing(folder / "run")
    assert train("resume", "run", "epochs=2").code == 65
    assert listing(folder / "run") == before

    (folder / "photographs/a/3.jpg").write_bytes(jpeg(20, 24, 50))
    done = train("resume", "run", "epochs=2")
    assert done.problems == [
        "data=image_folder data.root=photographs: not the data that the run started with (different checksum)"
    ]
    assert listing(folder / "run") == before


def test_trials_whose_data_cannot_be_loaded_say_so_and_are_run_when_asked_for_again(
    photographs: list[str], train: Train, folder: Path
) -> None:
    sweep = ["-m", *photographs, "seed=1,2", "hydra.sweep.dir=sweep"]
    assert train(*sweep).code == 3
    trials = [path for path in Path("sweep").iterdir() if path.is_dir()]
    assert len(trials) == 2
    for trial in trials:
        check_failed_load(trial)
    (folder / "photographs/a/3.jpg").write_bytes(jpeg(20, 24, 3))
    assert train("resume", "sweep").code == 0
    assert [result(trial)["status"] for trial in trials] == ["completed"] * 2


@pytest.mark.slow
def test_ranks_whose_data_cannot_be_loaded_say_so_once(photographs: list[str], process: Train, folder: Path) -> None:
    done = process(*photographs, "hydra.run.dir=run", "parallelism=ddp", "parallelism.devices=2", "device=cpu")
    assert done.code == 65 and len(done.problems) == 1
    shutil.rmtree(folder / "run/ranks")
    (line,) = (folder / "run/train.log").read_text().splitlines()
    assert f" ERROR {UNREADABLE}" in line
    check_failed_load(Path("run"))
