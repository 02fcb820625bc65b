"""`train --resume=auto`: which run is continued, and what happens to it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.forks import shared, train
from trainer import compose
from trainer.app import _own_flags, run
from trainer.base.errors import ConfigurationError, DataError, RunInUse
from trainer.commands import resume_auto
from trainer.storage import run_folder

WORDS = ["model=linear", "optimizer=sgd"]
RESULT = {"status": "completed", "steps": 7, "best": {"metrics": {"val/loss": 0.5}}, "test": {"test/accuracy": 0.75}}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the folder of a run; the current folder is empty before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def make(name: str, status: str | None = None, job: str | None = None, words: list[str] = WORDS) -> Path:
        with monkeypatch.context() as context:
            if job is not None:
                context.setenv("SLURM_JOB_ID", job)
            folder = run_folder.create(Path(name), compose(words), words, exact=True)
        if status is not None:
            run_folder.write_result(folder, RESULT | {"status": status})
        return folder

    return make


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is done with a command line: `new`, or the folder that is continued."""
    found: list[str] = []

    def continue_run(folder: Path, before: Any, config: Any, overrides: list[str]) -> Any:
        run_folder.Lock(folder).release()
        found.append(" ".join([str(folder), *overrides]))
        return SimpleNamespace(exit_code=0)

    monkeypatch.setattr(resume_auto, "continue_run", continue_run)
    monkeypatch.setattr(resume_auto, "run_hydra", lambda arguments: found.append("new") or 0)

    def decide(*words: str, job: str | None = None) -> str:
        found.clear()
        if job is not None:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        assert run([*WORDS, *words], is_auto=True) == 0
        return "".join(found)

    return decide


@pytest.mark.parametrize(
    ("runs", "job", "expected"),
    [
        ([], None, "new"),
        ([("outputs/a/1", None)], None, "outputs/a/1"),  # killed before its end
        ([("outputs/a/1", "interrupted")], None, "outputs/a/1"),
        ([("outputs/a/1", "failed")], None, "outputs/a/1"),
        ([("outputs/a/1", "completed")], None, "new"),
        ([("outputs/a/1", "early_stopped")], None, "new"),
        ([("outputs/a/1", "interrupted"), ("outputs/a/2", None), ("outputs/a/3", "completed")], None, "outputs/a/2"),
        ([("elsewhere/a/1", None)], None, "new"),
        ([("outputs/a/1", None, None, ["model=mlp", "optimizer=sgd"])], None, "new"),
        ([("outputs/a/1", None, "41")], None, "outputs/a/1"),
        # a job goes on with its own run only
        ([("outputs/a/1", None, "41"), ("outputs/a/2", None, "42")], "41", "outputs/a/1"),
        ([("outputs/a/1", None, "41"), ("outputs/a/2", None)], "43", "new"),
        ([("outputs/a/1", "completed", "41")], "41", ""),
        ([("outputs/a/1", None, "41", ["model=mlp", "optimizer=sgd"])], "41", "new"),
    ],
)
def test_what_is_continued(
    runs: list[tuple[Any, ...]], job: str | None, expected: str,
    made: Callable[..., Path], decided: Callable[..., str], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for one in runs:
        made(*one)
    assert decided(job=job) == expected
    told = capsys.readouterr().out
    if expected == "new":
        assert f"{'there is no unfinished run' if job is None else f'job {job} has not begun a run'} of this" in told
    elif expected:
        assert told == f"continues {expected}\n"
    else:
        assert "outputs/a/1 is complete: completed after 7 steps\nbest: val/loss 0.5000\ntest (best weights): t" in told


def test_a_folder_that_is_named_is_continued_by_any_job(made: Callable[..., Path], decided: Callable[..., str]) -> None:
    made("mine", None, "41")
    assert decided("hydra.run.dir=mine") == "mine"
    assert decided("hydra.run.dir=mine", job="42") == "mine"
    other = r"^mine: holds a run of another configuration \(seed=3: the run has 0, clip_norm=2: the run has null\);"
    with pytest.raises(ConfigurationError, match=other):
        decided("hydra.run.dir=mine", "seed=3", "clip_norm=2")
    run_folder.write_result(Path("mine"), RESULT)
    assert decided("hydra.run.dir=mine") == ""
    assert decided("hydra.run.dir=other/${now:%H}") == "new"


def test_changes_of_the_same_run_are_passed_on(made: Callable[..., Path], decided: Callable[..., str]) -> None:
    made("outputs/a/1")
    assert decided("epochs=3", "parallelism=ddp") == "outputs/a/1 epochs=3 parallelism=ddp"


def test_trials_and_damaged_runs_are_passed_over(made: Callable[..., Path], decided: Callable[..., str]) -> None:
    made("outputs/sweeps/x/0_a")
    Path("outputs/sweeps/x/multirun.yaml").touch()
    (made("outputs/a/2") / "config.yaml").write_text("choices: {")
    assert decided() == "new"
    assert decided("-m", "seed=1,2") == "new"  # Hydra runs what is missing of a sweep
    folder = made("outputs/a/3")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "\n# edited\n")
    with pytest.raises(DataError, match="was changed"):
        decided()


def test_a_run_in_use_is_not_begun_again(made: Callable[..., Path], decided: Callable[..., str]) -> None:
    lock = run_folder.Lock(made("outputs/a/1"))
    with pytest.raises(RunInUse):
        decided()
    lock.release()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--resume=never"], "--resume=never: must be auto"),
        (["--resume"], "--resume=: must be auto"),
        (["plan", "--resume=auto"], "--resume=auto: is for runs and sweeps; train plan does not train"),
    ],
)
def test_the_flag_is_refused_elsewhere(words: list[str], line: str) -> None:
    with pytest.raises(ConfigurationError, match=line):
        run(*_own_flags(words))


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["parallelism=single", "parallelism=ddp"])
def test_a_job_that_is_warned_and_requeued(parallelism: str, tmp_path: Path) -> None:
    """As by `sbatch --requeue --signal=USR1@60`: the same command again, with the same job id."""
    words = ["--resume=auto", *WORDS, parallelism, "device=cpu", "threads=1", "steps=400", "early_stopping=null",
             "every.checkpoint=5step", "every.log=5step"]  # fmt: skip
    first = shared().start(words, tmp_path, environment={"SLURM_JOB_ID": "7"}, apart=True, spare=True)
    while not list(tmp_path.glob("outputs/*/*/checkpoints/last.pt")):
        assert first.poll() is None, first.communicate()
    first.send_signal(signal.SIGUSR1)
    out, err = first.communicate()
    assert (first.returncode, err) == (128 + signal.SIGUSR1, ""), out
    second = train(tmp_path, *words, SLURM_JOB_ID="7")
    assert (second.returncode, second.stderr) == (0, "")
    (folder,) = tmp_path.glob("outputs/*/*")
    assert f"continues {folder.relative_to(tmp_path)}" in second.stdout and "(resumed at step " in second.stdout
    assert json.loads((folder / "result.json").read_text())["steps"] == 400
    third = train(tmp_path, *words, SLURM_JOB_ID="7")
    assert third.returncode == 0 and "is complete: completed after 400 steps" in third.stdout
