"""Damaged checkpoints: noticed, passed over for the one before, and the run still ends with the same bits."""

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults import EXIT_CODE
from harness import CONFIGURATIONS, but, differences, train

from tests.forks import Zygote
from trainer.assembly.last_checkpoint import find_last
from trainer.assembly.run_folder_of import keep_matching_best
from trainer.base.errors import DataError
from trainer.storage.checkpoint import load, save
from trainer.storage.identity import Identity
from trainer.training.progress import Best
from trainer.training.state import FORMAT

QUICK = {"every_checkpoint": True}
SHORT = but(CONFIGURATIONS["momentum"], "steps=24")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: list[Callable[[Path], None]] = [flip_a_bit, cut, empty, Path.unlink]


@pytest.fixture(scope="module")
def reference(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("reference")
    assert train(zygote, home, *SHORT, "hydra.run.dir=run", fault=QUICK)[0] == 0
    return home / "run"


@pytest.fixture(scope="module")
def killed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed while it wrote its sixth checkpoint."""
    home = tmp_path_factory.mktemp("killed")
    fault = {**QUICK, "folder": str(home / "run"), "at": ("link last.pt", 4)}
    assert train(zygote, home, *SHORT, "hydra.run.dir=run", fault=fault)[0] == EXIT_CODE
    return home / "run"


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(
    zygote: Zygote, reference: Path, killed: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    damage(tmp_path / "run/checkpoints/last.pt")
    code, output = train(zygote, tmp_path, "resume", "run", sitting=1, fault=QUICK)
    assert code == 0, output
    what = "is missing" if damage is Path.unlink else "is damaged: its checksum does not match"
    assert output.splitlines().count(f"run/checkpoints/last.pt {what}; falling back to the previous one") == 1
    assert differences(reference, tmp_path / "run") == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_best_weights_are_found_again(
    zygote: Zygote, reference: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Killed between `best.pt` and the `last.pt` that speaks of it, the best one before is still there."""
    fault = {**QUICK, "folder": str(tmp_path / "run"), "at": ("replace .last.pt.#.tmp", 3)}
    assert train(zygote, tmp_path, *SHORT, "hydra.run.dir=run", fault=fault)[0] == EXIT_CODE
    damage(tmp_path / "run/checkpoints/best.pt")
    code, output = train(zygote, tmp_path, "resume", "run", sitting=1, fault=QUICK)
    assert code == 0, output
    assert differences(reference, tmp_path / "run") == []


def test_best_weights_of_a_future_that_was_lost_are_put_aside(tmp_path: Path) -> None:
    """A run that goes on in another way (more epochs) may never come to them again."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    own = Identity("ours", "", "", 1)
    path = tmp_path / "run/checkpoints/best.pt"
    run = SimpleNamespace(progress=SimpleNamespace(best=Best(5, 1.0, {})), identity=own)
    other = {"format": FORMAT, "model": {}, "preprocessing": {}, "epoch": 1.0, "run": asdict(own)}
    for step in (3, 5, 8):
        save(path, {**other, "step": step})
    keep_matching_best(run, path)
    assert load(path)["step"] == 5
    keep_matching_best(run, path)
    assert load(path)["step"] == 5, "again it changes nothing"
    for step in (8, 9):
        save(path, {**other, "step": step})
    with pytest.raises(DataError, match=r"best\.pt: the best weights of step 5 are lost"):
        keep_matching_best(run, path)
    save(path, {**other, "step": 5, "run": asdict(own) | {"id": "another"}})
    with pytest.raises(DataError, match=r"best\.pt is a checkpoint of another run: .* train repeat .*/run$"):
        keep_matching_best(run, path)
    run.progress.best = None
    keep_matching_best(run, path)


def test_without_any_sound_checkpoint_a_run_is_refused_in_one_line(
    zygote: Zygote, killed: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    for name in ("last.pt", "last.previous.pt"):
        flip_a_bit(tmp_path / "run/checkpoints" / name)
    code, output = train(zygote, tmp_path, "resume", "run", sitting=1)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 65
    assert len(errors) == 1 and "no checkpoint is left to continue from" in errors[0]
    assert errors[0].endswith("train repeat run")
    assert "Traceback" not in output


SIGNS = ("run.json", "environment.json", "metrics.jsonl", "curves.png", "checkpoints/best.pt",
         "checkpoints/best.previous.pt")  # fmt: skip


@pytest.mark.parametrize("number", range(len(SIGNS) + 1))
def test_a_run_whose_checkpoints_were_deleted_does_not_start_over(reference: Path, tmp_path: Path, number: int) -> None:
    """Whatever was deleted with them, as long as one file is left that a run without a checkpoint does not have."""
    for gone in combinations(SIGNS, number):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(reference, folder)
        for name in ("result.json", "checkpoints/last.pt", "checkpoints/last.previous.pt", *gone):
            (folder / name).unlink(missing_ok=True)
        if len(gone) == len(SIGNS):
            assert find_last(folder) is None
            continue
        with pytest.raises(DataError, match=rf"last\.pt and the one before it are missing, .*: train repeat {folder}$"):
            find_last(folder)


def test_resume_does_not_start_over(zygote: Zygote, reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    for name in ("run.json", "result.json"):
        (tmp_path / "run" / name).unlink()
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    code, output = train(zygote, tmp_path, "resume", "run", sitting=1)
    line = (
        "error: run/checkpoints/last.pt and the one before it are missing, though environment.json says that the run "
        "has had checkpoints; to start it again: train repeat run"
    )
    assert (code, output.splitlines()) == (65, [line])
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_a_log_that_lost_what_the_checkpoint_counted_is_refused(zygote: Zygote, killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    path.write_bytes(path.read_bytes()[:50])
    code, output = train(zygote, tmp_path, "resume", "run", sitting=1)
    assert (code, len(output.splitlines())) == (65, 1)
    assert f"{path.name} is damaged" in output


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink])
def test_damaged_event_files_are_written_again(
    zygote: Zygote, reference: Path, killed: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """They are only looked at, and `metrics.jsonl` has the same numbers."""
    shutil.copytree(killed, tmp_path / "run")
    (path,) = (tmp_path / "run").glob("events*")
    damage(path)
    code, output = train(zygote, tmp_path, "resume", "run", sitting=1, fault=QUICK)
    assert code == 0, output
    (line,) = [
        line for line in output.splitlines() if "TensorBoard's files are written again from metrics.jsonl" in line
    ]
    assert f"{path.name} is damaged: it" in line and "run/events.out.damaged.*" in line
    # only texts and pictures of before, and metrics recorded once, which are otherwise shown as text
    lines = differences(reference, tmp_path / "run")
    assert all(re.match(r"events\['[^']*'\]: only ", line) for line in lines), lines
    assert not any("['train/" in line or "['val/" in line for line in lines), lines
    assert len(list((tmp_path / "run").glob("events.out.damaged.*"))) == (damage is not Path.unlink)
