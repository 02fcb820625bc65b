"""No folder that someone sent runs code, has files elsewhere written, or widens what is looked at."""

import io
import json
import os
import pickle
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

from tests.command_line.conftest import Train
from tests.security.configurations import CALLS
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.configuration.resolve import resolve
from trainer.storage.files import seal
from trainer.storage.records import write_json
from trainer.storage.run_folder import describe_environment
from trainer.studies.ledger import Entry

Change = Callable[[Path, Path], None]  # a folder, and the mark


class Payload:
    """Makes the mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


# --- run folders ------------------------------------------------------------------------------------------


def with_keys(**values: object) -> Change:
    """Keys of `config.yaml`, "model.width" as `model__width`, in which MARK stands for the mark."""

    def change(run: Path, mark: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        for name, value in values.items():
            *path, last = name.split("__")
            node = config
            for key in path:
                node = node[key]
            node[last] = yaml.safe_load(value.replace("MARK", str(mark))) if isinstance(value, str) else value
        (run / "config.yaml").write_text(yaml.safe_dump(config))

    return change


def with_text(name: str, text: str) -> Change:
    def change(run: Path, mark: Path) -> None:
        (run / name).write_text((run / name).read_text() + text.replace("MARK", str(mark)))

    return change


def linked(name: str) -> Change:
    """A file or folder of the run folder is a link to the victim's, which has the same name as the mark."""

    def change(run: Path, mark: Path) -> None:
        victim = run.parent / "victim" / name
        victim.parent.mkdir(parents=True)
        (run / name).rename(victim)
        (run / name).symlink_to(victim)

    return change


def pickled(name: str) -> Change:
    def change(run: Path, mark: Path) -> None:
        buffer = io.BytesIO()
        torch.save({"model": Payload(mark)}, buffer)
        (run / name).write_bytes(seal(buffer.getvalue()))

    return change


RUNS: dict[str, Change] = {
    "a model": with_keys(model=CALLS["system"]),
    "a model of torch's": with_keys(model="{_target_: torch.utils.collect_env.run, command: touch MARK}"),
    "inside a model": with_keys(model__bias=CALLS["system"]),
    "an optimizer": with_keys(optimizer=CALLS["call"]),
    "inside an optimizer": with_keys(optimizer__lr=CALLS["torch"]),
    "a dataset": with_keys(data="{_target_: trainer.data.FromDataset, train: " + CALLS["open"] + "}"),
    "an operation": with_keys(augmentation="{x: " + CALLS["torch"] + "}"),
    "a referred class": with_keys(model___target_="'${oc.env:PWD}'"),
    "a referred node": with_keys(model="'${oc.decode:\"{_target_: os.system, command: touch MARK}\"}'"),
    "an option's name": with_keys(choices__model="'${evil}'", model=CALLS["system"]),
    "a YAML tag": with_text("config.yaml", "\nevil: !!python/object/apply:os.system ['touch MARK']\n"),
    "a YAML tag of words": with_text("overrides.yaml", "\n- !!python/object/apply:os.system ['touch MARK']\n"),
    "metrics elsewhere": linked("metrics.jsonl"),
    "log elsewhere": linked("train.log"),
    "result elsewhere": linked("curves.png"),
    "checkpoint elsewhere": linked("checkpoints/last.pt"),
    "checkpoints elsewhere": linked("checkpoints"),
    "last.pt": pickled("checkpoints/last.pt"),
    "weights": with_keys(init_from="run/checkpoints/evil.pt"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder_leaves_no_mark(name: str, trained: Path, train: Train, folder: Path) -> None:
    run, mark = folder / "run", folder / "MARK"
    shutil.copytree(trained, run)
    pickled("checkpoints/evil.pt")(run, mark)
    RUNS[name](run, mark)
    (run / "checkpoints/last.previous.pt").unlink(missing_ok=True)
    victim = {p: p.read_bytes() for p in folder.glob("victim/**/*") if p.is_file()}
    # a checkpoint replaces the weights to start from
    commands = [["repeat", "run"] if name == "weights" else ["resume", "run", "epochs=3"]]
    if "elsewhere" not in name and name not in ("last.pt", "a YAML tag of words", "weights"):
        commands += [["repeat", "run"], ["evaluate", "run"]]
    for command in commands:
        done = train(*command)
        assert done.code in (2, 65), done
        assert done.problems
        assert not mark.exists()
    assert {p: p.read_bytes() for p in folder.glob("victim/**/*") if p.is_file()} == victim


def test_the_best_weights_leave_no_mark(trained: Path, train: Train, folder: Path) -> None:
    shutil.copytree(trained, folder / "run")
    pickled("checkpoints/best.pt")(folder / "run", folder / "MARK")
    done = train("evaluate", "run")
    assert (done.code, len(done.problems)) == (65, 1)
    assert not (folder / "MARK").exists()


def test_the_name_of_a_repeated_run_is_no_path(trained: Path, train: Train, folder: Path) -> None:
    shutil.copytree(trained, folder / "run")
    with_keys(choices__model="../../../victim/x", epochs=1)(folder / "run", folder / "MARK")
    for name in ("run.json", "checkpoints/last.pt", "checkpoints/best.pt"):  # which know the run's own configuration
        (folder / "run" / name).unlink()
    assert train("repeat", "run").code == 0
    assert {path.name for path in folder.iterdir()} == {"run", "outputs"}


# --- sweep folders ----------------------------------------------------------------------------------------

SWEEP = {
    "hydra": {
        "overrides": {"task": ["seed=1,2", "steps=1"], "hydra": ["hydra.mode=MULTIRUN"]},
        "runtime": {"config_sources": [{"path": "hydra.conf", "schema": "pkg", "provider": "hydra"}]},
        "job": {"config_name": "train"},
    }
}


def word(*words: str, part: str = "hydra") -> Change:
    def change(sweep: Path, mark: Path) -> None:
        content = yaml.safe_load((sweep / "multirun.yaml").read_text())
        content["hydra"]["overrides"][part] += [text.replace("MARK", str(mark)) for text in words]
        (sweep / "multirun.yaml").write_text(yaml.safe_dump(content))

    return change


def sources(sweep: Path, mark: Path) -> None:
    content = yaml.safe_load((sweep / "multirun.yaml").read_text())
    content["hydra"]["runtime"]["config_sources"].append(
        {"path": str(sweep / "evil"), "schema": "file", "provider": "command-line"}
    )
    (sweep / "multirun.yaml").write_text(yaml.safe_dump(content))
    word("experiment=evil", part="task")(sweep, mark)


def name_of(name: str) -> Change:
    def change(sweep: Path, mark: Path) -> None:
        content = yaml.safe_load((sweep / "multirun.yaml").read_text())
        content["hydra"]["job"]["config_name"] = name
        (sweep / "multirun.yaml").write_text(yaml.safe_dump(content))

    return change


SWEEPS: dict[str, Change] = {
    "folder of options": sources,
    "search path": word("hydra.searchpath=[file://sweep/evil]", "experiment=evil"),
    "search path added": word("+hydra.searchpath=[file://sweep/evil]", "experiment=evil"),
    "package": word("hydra.searchpath=[pkg://this]"),
    "flag": word("--config-dir=sweep/evil", "experiment=evil", part="task"),
    "flag of ours": word("--trust=os", "model._target_=os.system", part="task"),
    "option elsewhere": word("experiment=../../../../../../../../../../../../sweep/evil/experiment/evil", part="task"),
    "option of a group elsewhere": word("model=../../evil", part="task"),
    "primary configuration": name_of("sweep/evil/experiment/evil"),
    "primary configuration, absolute": name_of("/tmp/evil"),
    "variable": word("hydra.job.env_set.GEARSHIFT_TRUST=os"),
    "variable among the words": word("+hydra.job.env_set.GEARSHIFT_TRUST=os", part="task"),
    "library": word("+hydra.job.env_set.LD_PRELOAD=MARK"),
    "launcher": word("hydra/launcher=submitit_local", "+hydra.launcher.python='touch MARK;'"),
    "sweeper": word("hydra/sweeper=optuna", "hydra.sweeper.custom_search_space=os.system"),
    "callback": word("+hydra.callbacks.x={_target_: os.system, command: touch MARK}"),
    "logging": word("hydra.job_logging={root:{},handlers:{h:{class:logging.FileHandler,filename:MARK,mode:w}}}"),
    "logging to a file": word("hydra/hydra_logging=hydra_debug"),
    "name of a job": word("hydra/job_logging=default", "hydra.job.name=../../MARK"),
    "trial elsewhere": word("hydra.sweep.subdir=../../victim/${hydra.job.num}"),
    "axis": word("hydra.sweeper.params={'+hydra.job.env_set.GEARSHIFT_TRUST':os}"),
    "model": word("model._target_=os.system", part="task"),
    "node": word("model={_target_: torch.utils.collect_env.run, command: touch MARK}", part="task"),
    "line": word("name=x\n--trust=os", part="task"),
    "YAML tag": with_text("multirun.yaml", "\nevil: !!python/object/apply:os.system ['touch MARK']\n"),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_folder_leaves_no_mark(name: str, train: Train, folder: Path) -> None:
    sweep, mark = folder / "sweep", folder / "MARK"
    (sweep / "evil/experiment").mkdir(parents=True)
    evil = f"# @package _global_\n# Evil\nhydra: {{callbacks: {{x: {CALLS['system']}}}}}\n"
    (sweep / "evil/experiment/evil.yaml").write_text(evil.replace("MARK", str(mark)))
    (sweep / "multirun.yaml").write_text(yaml.safe_dump(SWEEP))
    SWEEPS[name](sweep, mark)
    before = {*folder.rglob("*")}
    done = train("resume", "sweep")
    assert done.code in (2, 65), done
    assert done.problems
    assert {*folder.rglob("*")} == before
    assert "GEARSHIFT_TRUST" not in os.environ


def test_a_trial_is_not_run_in_the_place_that_a_link_names(train: Train, folder: Path) -> None:
    (folder / "sweep").mkdir()
    (folder / "victim").mkdir()
    (folder / "sweep/multirun.yaml").write_text(yaml.safe_dump(SWEEP))
    word("hydra.sweep.subdir=${hydra.job.num}")(folder / "sweep", folder)
    for trial in ("0", "1"):
        (folder / "sweep" / trial).symlink_to(folder / "victim")
    done = train("resume", "sweep")
    assert done.code == 3
    assert done.err.count("is outside of the sweep's folder") == 2
    assert list((folder / "victim").iterdir()) == []


# --- study folders ----------------------------------------------------------------------------------------

STUDIES: dict[str, list[str]] = {
    "a call": ["study={_target_: os.system, command: touch MARK}"],
    "a class": ["study=k_fold", "study._target_=os.system", "+study.command=touch MARK"],
    "a class of ours": ["study=k_fold", "study._target_=trainer.studies.ledger.Ledger", "+study.folder=MARK"],
    "an argument": ["study=k_fold", "study.folds={_target_: os.system, command: touch MARK}"],
    "a model": ["study=k_fold", "model={_target_: os.system, command: touch MARK}"],
    "a flag of ours": ["study=k_fold", "--trust=os", "model._target_=os.system"],
    "a flag": ["--config-dir=study/evil", "study=evil"],
    "a sweep": ["-m", "study=k_fold"],
    "a line": ["study=k_fold", "name=x\n--trust=os"],
    "an option elsewhere": ["study=../../../../../../../../../../../../../../FOLDER/study/evil/study/evil"],
    "an option elsewhere, absolute": ["study=FOLDER/study/evil/study/evil"],
    "an experiment elsewhere": ["study=k_fold", "+experiment=FOLDER/study/evil/experiment/evil"],
    "an option of a group elsewhere": ["study=k_fold", "model=FOLDER/study/evil/model/evil"],
    "a search path": ["hydra.searchpath=[file://study/evil]", "study=evil"],
    "a callback": ["study=k_fold", "+hydra.callbacks.x={_target_: os.system, command: touch MARK}"],
    "a variable": ["study=k_fold", "+hydra.job.env_set.GEARSHIFT_TRUST=os"],
    "logging": ["study=k_fold", "hydra/hydra_logging=hydra_debug"],
    "a folder": ["study=k_fold", "hydra.run.dir=../victim"],
    "a folder of settings": ["study=k_fold", "hydra.output_subdir=../../victim"],
    "a name": ["study=k_fold", "name=../../victim"],
    "weights": ["study=k_fold", "model=linear", "init_from=study/evil.pt"],
    "a source": ["study=k_fold", "model=linear", "prune={source: study/evil, share: 0.2}"],
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_folder_leaves_no_mark(name: str, train: Train, folder: Path) -> None:
    study, mark = folder / "study", folder / "MARK"
    evil = f"# Evil\n_target_: os.system\ncommand: touch {mark}\n"
    for group in ("study", "experiment", "model"):
        (study / "evil" / group).mkdir(parents=True)
        (study / "evil" / group / "evil.yaml").write_text(evil)
    (study / "evil/checkpoints").mkdir()
    pickled("evil.pt")(study, mark)
    pickled("evil/checkpoints/best.pt")(study, mark)
    words = [word.replace("MARK", str(mark)).replace("FOLDER", str(folder)) for word in STUDIES[name]]
    write_json(study / "ledger.json", {"study": "k_fold", "words": words, "members": []})
    before = {*folder.rglob("*")}
    done = train("resume", "study")
    assert done.code in (2, 65), done
    assert done.problems
    assert {*folder.rglob("*")} == before
    assert "GEARSHIFT_TRUST" not in os.environ


def test_a_member_is_not_run_in_the_place_that_a_link_or_a_name_gives(train: Train, folder: Path) -> None:
    entry = Entry(0, "../made", ("model._target_=os.system",), (), "", "running")
    for place in ("study", "victim"):
        (folder / place).mkdir()
    words = ["study=k_fold", "study.folds=2", "model=linear", "steps=1", "schedule=constant"]
    member = asdict(entry) | {"overrides": list(entry.overrides), "needs": []}
    write_json(folder / "study/ledger.json", {"study": "k_fold", "words": words, "members": [member]})
    (folder / "study/fold=1").symlink_to(folder / "victim")
    done = train("resume", "study")
    assert (done.code, len(done.problems)) == (2, 1)
    assert "fold=1: is outside of the study's folder" in done.problems[0]
    assert list((folder / "victim").iterdir()) == [] and not (folder / "study/fold=0").exists()
    (folder / "study/fold=1").unlink()
    assert train("resume", "study").code == 0
    assert not (folder / "made").exists()


# --- data folders, and the current folder -----------------------------------------------------------------


@pytest.mark.parametrize("files", [
    {"data=mnist": ["MNIST/processed/training.pt", "MNIST/processed/test.pt", "MNIST/raw/train-images-idx3-ubyte"]},
    {"data=cifar10": [f"cifar-10-batches-py/{n}" for n in
                      ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch",
                       "batches.meta")]},
], ids=["mnist", "cifar10"])  # fmt: skip
def test_a_folder_of_pickles_leaves_no_mark(files: dict[str, list[str]], folder: Path) -> None:
    ((option, names),) = files.items()
    for name in names:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Payload(folder / "MARK")))
    config = compose([option, "data.root=data", "data.download=false", "device=cpu"])
    with pytest.raises((ConfigurationError, ValueError, OSError, RuntimeError)):
        resolve(config).data.load()
    assert not (folder / "MARK").exists()


@pytest.mark.parametrize("setting", [
    {"core.fsmonitor": "touch MARK; false"},
    {"core.hooksPath": "hooks"},
    {"filter.evil.clean": "touch MARK; cat"},
    {"filter.evil.process": "touch MARK"},
    {"diff.external": "touch MARK"},
    {"include.path": "evil"},
    {"core.sshCommand": "touch MARK"},
    {"core.pager": "touch MARK"},
], ids=lambda setting: next(iter(setting)))  # fmt: skip
def test_a_repository_leaves_no_mark(setting: dict[str, str], folder: Path) -> None:
    """A folder of data that is also a repository, whose settings name programs."""
    mark = folder / "MARK"

    def git(*words: str) -> None:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *own, *words], check=True, capture_output=True)

    git("init", "-q")
    (folder / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (folder / "file").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (folder / "file").write_text("2")
    (folder / ".git/evil").write_text(f'[core]\n\tfsmonitor = "touch {mark}; false"\n')
    for hooks in ("hooks", ".git/hooks"):
        (folder / hooks).mkdir(exist_ok=True)
        (folder / hooks / "post-index-change").write_text(f"#!/bin/sh\ntouch {mark}\n")
        (folder / hooks / "post-index-change").chmod(0o755)
    ((key, value),) = setting.items()
    git("config", key, value.replace("MARK", str(mark)))
    found = describe_environment("cpu", 1, 1, "")["git"]
    assert not mark.exists()
    assert found["dirty"] is None and len(found["commit"]) == 40


def test_the_settings_of_matplotlib_in_the_current_folder_are_not_read(folder: Path) -> None:
    (folder / "matplotlibrc").write_text("text.usetex: True\nlines.linewidth: 77\n")
    code = (
        "from trainer.reporting.drawing import load_matplotlib\nload_matplotlib()\n"
        "import json, matplotlib\n"
        "print(json.dumps([matplotlib.rcParams[key] for key in ('text.usetex', 'lines.linewidth')]))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, 1.5]
