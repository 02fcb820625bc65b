"""Runs are used again though their data are elsewhere, or the weights that they started from are gone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Done, Train

from tests.data.images import jpeg
from trainer import compose
from trainer.base.errors import ConfigurationError
from trainer.commands.resume import refuse_other
from trainer.configuration.compose import override
from trainer.configuration.groups import GROUPS
from trainer.configuration.recorded import as_trained, is_place, moved_places, same_but_for_places
from trainer.storage.records import read_json, write_json

SMALL = ["data=image_folder", "data.size=8", "data.workers=0", "data.cache_dir=cache", "model=linear", "batch_size=16",
         "schedule=constant", "threads=1", "every.log=1step"]  # fmt: skip


def photographs(root: Path, first: int = 0) -> None:
    for offset, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for number in range(20):
            (root / name / f"{number}.jpg").write_bytes(jpeg(12, 10, first + 2 * number + offset))


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("throughput/")} for line in lines]


def root_of(run: Path) -> str:
    return str(yaml.safe_load((run / "config.yaml").read_text())["data"]["root"])


def evaluation(done: Done) -> dict[str, float]:
    assert done.code == 0, done.err
    found: dict[str, float] = json.loads(done.out)
    return {key: value for key, value in found.items() if key != "run"}


@pytest.fixture
def ended(folder: Path, train: Train) -> Path:
    """A run of one epoch over photographs that were then moved, and the reference of two epochs."""
    photographs(folder / "photos")
    for run, epochs in (("run", 1), ("reference", 2)):
        done = train(*SMALL, "data.root=photos", f"epochs={epochs}", f"hydra.run.dir={run}")
        assert done.code == 0, done.err
    (folder / "photos").rename(folder / "photos2")
    return folder / "run"


def test_data_that_moved_are_the_same_data(ended: Path, train: Train) -> None:
    for command in ("evaluate", "repeat", "resume"):
        assert train(command, "run").problems == [
            "data.root=photos: there is no such folder; name the folder of the photographs"
        ]
    result = json.loads((ended / "result.json").read_text())
    done = train("evaluate", "run", "data.root=photos2")
    assert (evaluation(done), done.err) == (result["best"]["metrics"] | result["test"], "")
    done = train("resume", "run", "data.root=photos2")
    assert (done.code, root_of(ended)) == (0, "photos") and "is complete" in done.out
    done = train("repeat", "run", "data.root=photos2", "name=again")
    assert done.code == 0 and "different checksum" not in done.out
    (again,) = Path("outputs").glob("*/*again")
    assert metrics(again) == metrics(ended)
    done = train("resume", "run", "data.root=photos2", "epochs=2")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[:2] == ["data.root: photos -> photos2", "epochs: 1 -> 2"]
    assert root_of(ended) == "photos2"
    end = metrics(ended)[len(metrics(ended)) // 2 - 1]["step"]  # where the first epoch ended, and was evaluated
    assert [line for line in metrics(ended) if line["step"] > end] == [
        line for line in metrics(Path("reference")) if line["step"] > end
    ]


def test_other_data_in_the_new_place_are_told(ended: Path, train: Train) -> None:
    shutil.rmtree("photos2")
    photographs(Path("photos2"), first=7)
    before = (ended / "config.yaml").read_bytes()
    other = "data=image_folder data.root=photos2: not the data that the run started with (different checksum)"
    done = train("resume", "run", "data.root=photos2", "epochs=2")
    assert (done.code, done.problems, (ended / "config.yaml").read_bytes()) == (65, [other], before)
    shutil.rmtree(ended / "checkpoints")  # as if it had been killed before the first one
    (ended / "run.json").unlink()
    write_json(ended / "environment.json", read_json(ended / "environment.json") | {"has_checkpoints": False})
    done = train("resume", "run", "data.root=photos2", "epochs=2")
    assert (done.code, done.problems) == (65, [other])
    done = train("repeat", "run", "data.root=photos2")
    assert done.code == 0 and done.out.splitlines()[-1] == "the data are not those of run (different checksum)"
    (problem,) = train("resume", "run", "data.root=photos2", "data.split_seed=1").problems
    assert problem.startswith(
        "data.split_seed=1: the run has 0; resume may only change epochs, steps, schedule_length, parallelism and where"
    )


OTHER = {"data": "synthetic", "preprocessing": "scale", "sampler": "sequential", "augmentation": "crop",
         "model": "mlp", "initializer": "normal", "loss": "hinge", "regularizer": "l1", "optimizer": "sgd",
         "schedule": "step", "averaging": "ema", "diagnostics": "off"}  # fmt: skip


def test_another_option_of_any_group_is_one_problem() -> None:
    assert OTHER.keys() == GROUPS.keys() - {"parallelism"}
    before = compose()
    words = [f"{group}={option}" for group, option in OTHER.items()]
    with pytest.raises(ConfigurationError) as caught:
        refuse_other(before, override(before, [*words, "optimizer.lr=0.1"]), "train repeat run")
    assert {problem.partition(";")[0] for problem in caught.value.problems} == {
        f"{group}={option}: the run has {before['choices'][group]}" for group, option in OTHER.items()
    }
    with pytest.raises(
        ConfigurationError, match=r"^deterministic=false: the run has true; .*\nclip_norm=1: the run has null;"
    ):
        refuse_other(before, before | {"clip_norm": 1, "deterministic": False}, "")


def test_a_new_data_root_is_where_the_data_are(train: Train, folder: Path) -> None:
    photographs(folder / "old/photographs")
    words = [*SMALL, "epochs=1"]
    assert train(*words, "hydra.run.dir=run", DATA_ROOT="old").code == 0
    assert train("-m", *words, "seed=1,2", "hydra.sweep.dir=sweep", DATA_ROOT="old").code == 0
    trial = next(path for path in (folder / "sweep").iterdir() if path.name.startswith("1_"))
    (trial / "result.json").unlink()
    (folder / "old").rename(folder / "new")
    done = train("evaluate", "run", DATA_ROOT="new")
    assert evaluation(done) and done.err == ""
    assert train("repeat", "run", DATA_ROOT="new").code == 0
    done = train("resume", "run", "epochs=2", DATA_ROOT="new")
    assert done.code == 0 and done.out.startswith("data.root: old/photographs -> new/photographs\n")
    done = train("resume", "sweep", DATA_ROOT="new")
    assert (done.code, done.err) == (0, "")
    assert (root_of(folder / "run"), root_of(trial)) == ("new/photographs", "new/photographs")


def test_weights_that_a_run_started_from_are_not_needed_again(train: Train, folder: Path) -> None:
    words = ["model=linear", "threads=1", "schedule=constant", "every.log=1step"]
    assert train(*words, "steps=3", "hydra.run.dir=first").code == 0
    for run, steps in (("second", 3), ("reference", 6)):
        assert train(*words, "seed=1", "init_from=first", f"steps={steps}", f"hydra.run.dir={run}").code == 0
    shutil.rmtree("first")
    assert train("evaluate", "second").code == 0
    missing = "init_from=first: is neither a run folder nor a file"
    assert train("repeat", "second").problems == [missing]
    done = train("resume", "second", "steps=6")
    assert (done.code, done.err) == (0, "")
    found, wanted = ([line for line in metrics(folder / run) if line["step"] > 3] for run in ("second", "reference"))
    assert [line for line in found if "lr" in line] == [line for line in wanted if "lr" in line]
    assert yaml.safe_load((folder / "second/config.yaml").read_text())["init_from"] == "first"
    shutil.rmtree("second/checkpoints")
    (folder / "second/result.json").unlink()
    assert train("resume", "second").problems == [missing]


def test_trials_do_not_need_the_weights_that_they_started_from_again(train: Train, folder: Path) -> None:
    words = ["model=linear", "threads=1", "schedule=constant", "steps=3"]
    assert train(*words, "hydra.run.dir=first").code == 0
    assert train("-m", *words, "init_from=first", "seed=1,2", "hydra.sweep.dir=sweep").code == 0
    shutil.rmtree("first")
    trials = sorted(path for path in (folder / "sweep").iterdir() if path.is_dir())
    (trials[1] / "result.json").unlink()
    done = train("resume", "sweep")
    assert (done.code, done.err) == (0, "") and (trials[1] / "result.json").is_file()
    shutil.rmtree(trials[1] / "checkpoints")
    (trials[1] / "result.json").unlink()
    (problem,) = train("resume", "sweep").problems
    assert problem.startswith("init_from=first: is neither a run folder nor a file") and "seed=2" in problem


def test_which_keys_say_where_the_data_lie() -> None:
    places = ["root", "train.root", "cache_dir", "image_folder", "csv_path", "label_file", "data_root", "download"]
    others = ["size", "split_seed", "val_fraction", "train.split", "on_bad_file", "rooted", "pathology", "workers"]
    assert [[is_place(f"data.{key}") for key in keys] for keys in (places, others)] == [[True] * 8, [False] * 8]
    config = compose(["data=mnist"])
    moved = config | {"data": config["data"] | {"root": "elsewhere", "download": False}}
    assert same_but_for_places(config, moved)
    assert list(moved_places(config["data"], moved["data"])) == [
        f"data.root: {config['data']['root']} -> elsewhere", "data.download: True -> False"
    ]  # fmt: skip
    assert not same_but_for_places(config, config | {"data": config["data"] | {"split_seed": 1}})
    assert not same_but_for_places(config, moved | {"seed": 1})
    nested = {"data": {"train": {"_target_": "a.B", "root": "x", "split": "train"}}}
    assert same_but_for_places(nested, {"data": {"train": nested["data"]["train"] | {"root": "y"}}})
    assert not same_but_for_places(nested, {"data": {"train": nested["data"]["train"] | {"split": "test"}}})


@pytest.mark.parametrize("model", ["torchvision", "timm"])
def test_a_checkpoint_replaces_the_weights_of_a_model(model: str) -> None:
    config = compose([f"model={model}", "model.weights=weights.pt", "init_from=run"])
    assert as_trained(config) == config | {"init_from": None, "model": config["model"] | {"weights": None}}
    foreign = config | {"model": {"_target_": "mine.Net", "weights": "a part of the architecture"}}
    assert as_trained(foreign)["model"] == foreign["model"]
