"""Tab completion offers what can be typed, quickly and silently."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.command_line.conftest import PROGRAM, Train
from trainer.commands import COMMANDS, ENSEMBLES, FLAGS, KEYS_OF_RESUME, VIEWS, plan
from trainer.commands.completion import candidates
from trainer.configuration.compose import config_folder
from trainer.configuration.groups import GROUPS
from trainer.configuration.recorded import MAY_CHANGE
from trainer.hydra_entry.hydra import _parser
from trainer.studies import ensemble
from trainer.training.test_time_augmentation import KINDS

NAMES = {path.stem for path in (config_folder() / "optimizer").glob("ad*.yaml")}
ADA = {f"optimizer={name}" for name in NAMES}
OPTIONS = [(group, path) for group in GROUPS for path in sorted((config_folder() / group).glob("*.yaml"))]


@pytest.fixture
def runs(folder: Path) -> None:
    """Run folders as completion recognizes them, and some that it must not offer."""
    made = ("outputs/2026-11-30/10-00-00-a", "outputs/sweeps/s/0_seed=1", "mine", "other/deep")
    for name in made:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text("optimizer: {_target_: x, alpha: 1}\ndata: {root: null}\nseed: 4\n")
    (folder / "outputs/sweeps/s/multirun.yaml").touch()
    (folder / "$(touch OWNED)").mkdir()
    (folder / "$(touch OWNED)/config.yaml").touch()
    (folder / "cfg/model").mkdir(parents=True)
    (folder / "cfg/model/own.yaml").write_text("_target_: x\nwidth: 3\n")


ALL_RUNS = {"outputs/2026-11-30/10-00-00-a", "outputs/sweeps/s/0_seed=1", "mine"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("optimizer=ad", ADA),
        ("-m seed=1,2 optimizer=sgd,ad", {f"optimizer=sgd,{word.partition('=')[2]}" for word in ADA}),
        ("plan optimizer=ad", ADA),
        ("schedule=cosine optimizer=mom", {"optimizer=momentum"}),
        ("optimizer.we", {"optimizer.weight_decay="}),
        ("plan mo", {"model=", "model."}),
        ("plan -m model=resnet20 model.de", {"model.depth="}),
        ("model=resnet20 model.depth=", {"model.depth=20"}),
        ("batch", {"batch_size="}),
        ("precision=", {"precision=fp32", "precision=bf16", "precision=fp16", "precision=auto"}),
        ("device=c", {"device=cpu", "device=cuda"}),
        ("epochs=", {"epochs=null"}),
        ("early_stopping.mode=m", {"early_stopping.mode=min", "early_stopping.mode=max"}),
        ("every.evaluate=", {"every.evaluate=1ep"}),
        ("debug=o", {"debug=one_step", "debug=overfit"}),
        ("++optimizer.lr", {"++optimizer.lr="}),
        ("rep", {"repeat"}),
        ("pl", {"plan"}),
        ("nosuch", set()),
        ("nosuch=", set()),
        ("'un closed", set()),
        ("--config-dir cfg model=o", {"model=own"}),
        ("plan --config-dir=cfg model=own model.", {"model.width="}),
        ("--c", {"--cfg", "--config-dir", "--config-name"}),
        ("--cfg ", {"job", "hydra", "all"}),
        ("plan --s", {"--show"}),
        ("resume ou", {"outputs/2026-11-30/10-00-00-a", "outputs/sweeps/s", "outputs/sweeps/s/0_seed=1"}),
        ("resume outputs/sweeps/s/", {"outputs/sweeps/s/0_seed=1"}),
        ("evaluate m", {"mine", "model=", "model.", "micro_batch="}),
        ("repeat oth", {"other/"}),
        ("repeat other/", {"other/deep"}),
        ("resume mine ", {"epochs=", "steps=", "schedule_length=", "parallelism=", "data."}),
        ("resume mine data.", {"data.root="}),
        ("repeat mine optimizer.", {"optimizer.alpha="}),
        ("repeat mine seed=", {"seed=4"}),
        ("repeat mine optimizer=sgd optimizer.l", {"optimizer.lr="}),
        ("evaluate mine other/d", {"other/deep"}),
        ("evaluate mine tta=t", {"tta=ten_crop"}),
        ("evaluate mine ens", {"ensemble="}),
        ("evaluate mine ensemble=", {"ensemble=mean", "ensemble=snapshots"}),
        ("--resume=", {"--resume=auto"}),
        ("--cfg=j", {"--cfg=job"}),
        ("early_stopping=", {"early_stopping=null"}),
        ("help sched", {"schedule=", "schedule.", "schedule_length"}),
        ("help optimizer.l", {"optimizer.lr"}),
        ("help ev", {"evaluate", "every."}),
        ("help optimizer=ad", ADA),
        ("hydra/laun", {"hydra/launcher="}),
        ("hydra/sweeper=b", {"hydra/sweeper=basic"}),
    ],
)
@pytest.mark.usefixtures("runs")
def test_the_shell_completes(typed: str, offered: set[str], train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the functions call it that `train -sc install=SHELL` defines."""
    monkeypatch.setenv("COMP_LINE", f"train {typed}")
    monkeypatch.delenv("COMP_POINT", raising=False)
    done = train("-sc", "query=bash")
    assert (done.code, done.err) == (0, "")
    assert set(done.out.split()) - {"$(touch", "OWNED)"} == offered


@pytest.mark.usefixtures("runs")
def test_run_folders_are_offered_without_a_word_and_hostile_names_are_not() -> None:
    for command in ("evaluate", "repeat", "resume"):
        found = {word for word in candidates(f"train {command} ") if Path(word).is_dir()}
        assert found == ALL_RUNS | ({"outputs/sweeps/s"} if command == "resume" else set())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_flag_is_offered_where_it_can_be_given(command: str) -> None:
    assert set(candidates(f"train {command} --")) == set(FLAGS[command])


def test_what_is_offered_exists() -> None:
    known = {flag for action in _parser()._actions for flag in action.option_strings if flag.startswith("--")}
    refused = {"--config-path", "--experimental-rerun", "--run"}
    assert set(FLAGS[""]) == known - refused | {"--debug", "--trust", "--resume"}
    of_plan = {flag for flag in plan._FLAGS if flag.startswith("--")}
    assert of_plan | {"--debug", "--trust", "--help"} == set(FLAGS["plan"])
    assert (KEYS_OF_RESUME, VIEWS, ENSEMBLES) == (MAY_CHANGE, KINDS, ensemble.KINDS)


def test_the_keys_of_every_option_are_offered() -> None:
    for group in GROUPS:
        options = {f"{group}={path.stem}" for other, path in OPTIONS if other == group}
        assert set(candidates(f"train plan {group}=")) == options
    for group, path in OPTIONS:
        node = yaml.safe_load(path.read_text()) or {}
        keys = {name: value for name, value in node.items() if not name.startswith("_")}
        expected = {f"{group}.{name}{'.' if isinstance(value, dict) else '='}" for name, value in keys.items()}
        assert set(candidates(f"train {group}={path.stem} {group}.")) == expected, path


LINES = ["", "train", "train model=nosuch model.", "train resume nosuch data.", "train \udcff="]


@pytest.mark.parametrize("line", LINES)
def test_nothing_is_printed_on_errors(line: str, train: Train, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "damaged").mkdir()
    (folder / "damaged/config.yaml").write_text("a: &a [*a, {")
    for typed in (line, f"{line} evaluate damaged optimizer.", f"{line} hydra.x=["):
        monkeypatch.setenv("COMP_LINE", typed)
        done = train("-sc", "query=fish")
        assert (done.code, done.err) == (0, "")


def test_the_line_of_the_readme_makes_bash_complete(folder: Path) -> None:
    readme = (config_folder().parent / "README.md").read_text()
    line = next(text for text in readme.splitlines() if "install=bash" in text)
    script = f"""
        PATH={PROGRAM.parent}:$PATH
        {line}
        try() {{
            COMP_LINE="$1" COMP_POINT=${{#1}} COMP_CWORD=$2 COMP_WORDS=("${{@:3}}")
            _train_complete
            echo "${{COMPREPLY[@]}}"
        }}
        try "train optimizer=ad" 3 train optimizer = ad
        try "train optimizer=ad" 1 train optimizer=ad
        try "train schedule=" 2 train schedule =
        complete -p train
    """
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    broken, whole, empty, rule = done.stdout.splitlines()
    assert (set(broken.split()), set(whole.split())) == (NAMES, ADA)
    assert "cosine_warmup" in empty.split()
    assert "-F _train_complete train" in rule


def test_completion_imports_nothing_heavy() -> None:
    code = """
        import os, sys
        os.environ["COMP_LINE"], sys.argv = "train plan model=resnet20 model.", ["train", "-sc", "query=bash"]
        from trainer.app import main
        try:
            main()
        finally:
            print({"torch", "hydra", "omegaconf", "rich", "numpy"} & {*sys.modules})
    """
    done = subprocess.run([sys.executable, "-c", inspect.cleandoc(code)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "model.depth=" in done.stdout
