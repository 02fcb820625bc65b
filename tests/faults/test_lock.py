"""One process a run folder: a second one is turned away, and the first one notices nothing."""

from pathlib import Path

import pytest
from harness import CONFIGURATIONS, RealProcess, Zygote, but, differences, finish, train, undisturbed, wait_for_lines

from trainer.errors import RunInUse
from trainer.run_folder import Lock

LONG = but(CONFIGURATIONS["adamw"], "steps=3000", "early_stopping=null")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_process_leaves_with_75_and_changes_nothing(zygote: Zygote, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(zygote, tmp_path, *CONFIGURATIONS["adamw"], "hydra.run.dir=run")[0] == 0
    (run / "result.json").unlink()
    (run / ".of-the-first.tmp").write_bytes(b"half of a file")
    before = contents(run)
    lock = Lock(run)
    (run / ".of-the-first.tmp").write_bytes(b"half of a file")
    code, output = train(zygote, tmp_path, "resume", "run", "steps=99", sitting=1)
    assert (code, output) == (75, "error: run is in use by another process\n")
    assert contents(run) == before
    lock.release()
    assert train(zygote, tmp_path, "resume", "run", sitting=2)[0] == 0


def test_a_run_holds_its_folder_from_the_first_to_the_last_moment(zygote: Zygote, tmp_path: Path) -> None:
    process = zygote.start([*LONG, "hydra.run.dir=run"], tmp_path)
    wait_for_lines(process, tmp_path / "run", 1)
    with pytest.raises(RunInUse, match="run is in use by another process"):
        Lock(tmp_path / "run")
    process.kill()
    Lock(tmp_path / "run").release()


@pytest.mark.slow
def test_two_processes_on_one_folder(zygote: Zygote, tmp_path: Path) -> None:
    """Both real; the first one ends as if it had been alone."""
    reference = undisturbed(zygote, LONG, tmp_path / "reference")
    first = RealProcess([*LONG, f"hydra.run.dir={tmp_path}/run"], tmp_path)
    wait_for_lines(first, tmp_path / "run", 1)
    others = [RealProcess(["resume", str(tmp_path / "run")], tmp_path) for _ in range(2)]
    assert [finish(other) for other in others] == [75, 75]
    assert first.wait(0) is None, "the first one was to run longer than this"
    assert finish(first) == 0
    assert differences(reference.folder, tmp_path / "run") == []
