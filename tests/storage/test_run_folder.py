"""Run folders are complete or do not exist, are unique, and are used by one process at a time."""

import errno
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from trainer.base.errors import ConfigurationError, DataError, DiskError, RunInUse
from trainer.storage import run_folder
from trainer.storage.run_folder import (
    Lock,
    create,
    default_name,
    describe_environment,
    read_configuration,
    read_overrides,
)

CONFIG = {"name": None, "seed": 3, "choices": {"data": "digits", "model": "mlp", "optimizer": "adamw"}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- making one -------------------------------------------------------------------------------------------


def test_a_new_folder_holds_what_is_run_and_what_was_typed(tmp_path: Path) -> None:
    folder = create(tmp_path / "outputs/2026/run", CONFIG, ["seed=3"])
    assert folder == tmp_path / "outputs/2026/run"
    assert names(folder) == ["config.yaml", "overrides.yaml"]
    assert read_configuration(folder) == CONFIG
    assert (folder / "overrides.yaml").read_text().splitlines()[2:] == ["- seed=3"]
    assert read_overrides(folder) == ["seed=3"]
    assert names(folder.parent) == ["run"]


def test_two_runs_never_get_the_same_folder(tmp_path: Path) -> None:
    """Twenty threads at once, like a launcher."""
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(create(tmp_path / "outputs/run", CONFIG, []))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 20
    assert sorted(made) == sorted(tmp_path / "outputs" / name for name in names(tmp_path / "outputs"))
    assert {path.name for path in made} == {"run", *(f"run-{number}" for number in range(2, 21))}
    for folder in made:
        assert read_configuration(folder) == CONFIG


def test_a_folder_that_the_user_named_must_be_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert create(tmp_path / "empty", CONFIG, [], exact=True) == tmp_path / "empty"
    with pytest.raises(ConfigurationError, match=r"hydra\.run\.dir=.*/empty: is not empty; .* train resume"):
        create(tmp_path / "empty", CONFIG, [], exact=True)
    assert names(tmp_path) == ["empty"]
    assert names(tmp_path / "empty") == ["config.yaml", "overrides.yaml"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write_configuration", "_move_into_place"])
def test_a_folder_that_cannot_be_made_whole_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*arguments: Any) -> Path:
        raise error

    monkeypatch.setattr(run_folder, step, fail)
    with pytest.raises((DiskError, KeyboardInterrupt)):
        create(tmp_path / "outputs/2026/run", CONFIG, [])
    assert names(tmp_path) == [], "the folders above it are gone, too"


def test_folders_that_were_there_stay_when_one_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs").mkdir()

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_configuration", fail)
    with pytest.raises(DiskError, match=r"^cannot write .*run: the disk is full$"):
        create(tmp_path / "outputs/run", CONFIG, [])
    assert names(tmp_path) == ["outputs"]


def test_what_is_killed_while_it_is_made_is_no_run_and_in_nobodys_way(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from trainer.storage import run_folder\n"
        "run_folder._move_into_place = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        "run_folder.create(Path(sys.argv[1]), {}, [])"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")])
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "run").exists()
    assert create(tmp_path / "run", CONFIG, [], exact=True) == tmp_path / "run"


def test_the_name_of_a_run(tmp_path: Path) -> None:
    assert default_name(CONFIG) == "digits-mlp-adamw"
    assert default_name(CONFIG | {"name": "mine"}) == "mine"


# --- reading one ------------------------------------------------------------------------------------------


def test_a_folder_without_a_run_is_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a run folder: there is no config\.yaml in it"):
        read_configuration(tmp_path)


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe", b"", b"just text", b"seed: 3\n"])
def test_a_damaged_configuration_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(DataError, match=r"config\.yaml is damaged: ") as caught:
        read_configuration(tmp_path)
    assert "\n" not in str(caught.value)


# --- one process at a time --------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from trainer.storage.run_folder import Lock
lock = Lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(1000)
"""


def test_a_second_process_is_turned_away_until_the_first_is_gone(tmp_path: Path) -> None:
    """The system releases the lock however a process ends."""
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    with first:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(RunInUse, match="is in use by another process") as caught:
            Lock(tmp_path)
        assert caught.value.exit_code == 75
        first.kill()
    Lock(tmp_path).release()


def test_a_lock_that_is_refused_leaves_no_file_open(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(RunInUse):
            Lock(tmp_path)
    assert len(list(Path("/dev/fd").iterdir())) == before
    lock.release()
    lock.release()  # releasing twice is allowed
    Lock(tmp_path).release()


def test_whoever_holds_the_folder_clears_up_after_a_killed_process(tmp_path: Path) -> None:
    for name in (".result.json.123.tmp", ".curves.png.9.tmp", ".hidden", "notes.tmp"):
        (tmp_path / name).write_bytes(b"half of a file")
    Lock(tmp_path).release()
    assert names(tmp_path) == [".hidden", "notes.tmp"]


# --- where and with what ----------------------------------------------------------------------------------


def test_the_environment_says_what_bits_hang_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = describe_environment("cpu", 2, 1, "abc")
    assert (found["device"], found["threads"], found["data_sha256"]) == ("cpu", 2, "abc")
    import torch

    assert found["packages"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    monkeypatch.chdir(tmp_path)
    assert describe_environment("cpu", 2, 1, "abc")["git"] is None, "no repository here"


def test_the_commit_and_changes_beside_it_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/"]
        return subprocess.run(
            ["git", *own, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    monkeypatch.chdir(tmp_path)
    assert describe_environment("cpu", 1, 1, "")["git"] == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("2")
    assert describe_environment("cpu", 1, 1, "")["git"] == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_git_runs_no_program_that_the_repository_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *own, *arguments], cwd=tmp_path, check=True)

    git("init", "-q", ".")
    (tmp_path / ".gitattributes").write_text("*.bin filter=lfs\n")
    (tmp_path / "weights.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    for key in ("clean", "smudge", "process"):
        git("config", f"filter.lfs.{key}", f"touch {tmp_path / 'MARK'}; cat")
    git("config", "filter.lfs.required", "true")
    git("config", "lfs.repositoryformatversion", "0")
    monkeypatch.chdir(tmp_path)
    assert describe_environment("cpu", 1, 1, "")["git"]["dirty"] is False
    (tmp_path / "weights.bin").write_text("weights")
    found = describe_environment("cpu", 1, 1, "")["git"]
    assert found["dirty"] is None and found["reason"] == "files differ, perhaps only because filter.lfs is not run"
    git("config", "core.fsmonitor", f"touch {tmp_path / 'MARK'}; false")
    found = describe_environment("cpu", 1, 1, "")["git"]
    assert found["dirty"] is None and found["reason"] == "its git settings may name programs, which are not run"
    assert not (tmp_path / "MARK").exists()


def test_links_out_of_a_run_folder_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "train.log").write_text("")
    (run / "inside").symlink_to("train.log")
    Lock(run).release()
    (tmp_path / "precious").write_text("mine")
    for name in ("metrics.jsonl", "checkpoints/last.pt"):
        (run / name).symlink_to(tmp_path / "precious")
        with pytest.raises(ConfigurationError, match=f"{name}: is a link to .*precious"):
            Lock(run)
        (run / name).unlink()
    Lock(run).release()
