"""On a full disk a run ends with one line and exit code 74 and an intact checkpoint; with space it resumes exactly."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import CONFIGURATIONS, RealProcess, but, differences, finish, train, undisturbed

from tests.forks import Zygote
from trainer.storage.checkpoint import load

QUICK = {"every_checkpoint": True}
SHORT = but(CONFIGURATIONS["adamw"], "steps=24")


@pytest.fixture(scope="module")
def reference(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("reference")
    assert train(zygote, home, *SHORT, "hydra.run.dir=run", fault=QUICK)[0] == 0
    return home / "run"


def only_line(output: str) -> str:
    """The only error line; asserts that there is no traceback."""
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    noise = [word for word in ("Traceback", "Exception", "Logging error", "No space left") if word in output]
    assert noise == [], output
    return error


def test_a_disk_that_fills_up_at_any_moment(zygote: Zygote, reference: Path, tmp_path: Path) -> None:
    """From no space to more than a run writes: fails in configuration, metrics, events, checkpoints and results."""
    codes = []
    for bytes_left in (0, 1_000, 3_000, 10_000, 38_000, 60_000, 100_000, 200_000, 10_000_000):
        home = tmp_path / str(bytes_left)
        home.mkdir()
        fault = {**QUICK, "bytes_left": bytes_left}
        code, output = train(zygote, home, *SHORT, "hydra.run.dir=run", fault=fault)
        codes.append(code)
        if code == 0:
            continue
        assert only_line(output).endswith(": the disk is full"), output
        if not (home / "run").exists():
            assert list(home.iterdir()) == [], "a folder that could not be made whole is not made"
            continue
        for path in (home / "run/checkpoints").glob("*.pt"):
            load(path)  # raises if it is damaged
        code, output = train(zygote, home, "resume", "run", sitting=1, fault=QUICK)
        assert code == 0, output
        assert differences(reference, home / "run") == []
    assert codes == [74] * 8 + [0]


def test_a_disk_that_fills_up_before_the_end_is_told_in_the_result(zygote: Zygote, tmp_path: Path) -> None:
    """There is no space for a checkpoint of half a megabyte, but for a result of half a kilobyte."""
    big = but(SHORT, "model.hidden=[1000]")
    fault = {**QUICK, "bytes_left": 600_000}
    code, output = train(zygote, tmp_path, *big, "hydra.run.dir=run", fault=fault)
    assert code == 74
    assert only_line(output) == "error: cannot write run/checkpoints/last.pt: the disk is full"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(zygote: Zygote, small_disk: Path, tmp_path: Path) -> None:
    reference = undisturbed(zygote, SHORT, tmp_path / "reference").folder
    ballast, tries = small_disk / "ballast", 0
    for left in (200_000, 150_000, 100_000, 60_000, 20_000, 4_000):
        ballast.write_bytes(b"\0" * (250_000 - left))
        run = small_disk / "run"
        process = RealProcess([*SHORT, f"hydra.run.dir={run}"], tmp_path)
        code, output = finish(process), process.output()
        if code == 0:
            assert differences(reference, run) == []
        else:
            tries += 1
            assert code == 74, output
            assert only_line(output).endswith(": the disk is full")
            ballast.unlink()
            if run.exists():
                copy = tmp_path / f"run-{left}"
                shutil.copytree(run, copy)
                code, output = train(zygote, tmp_path, "resume", str(copy), sitting=1)
                assert code == 0, output
                assert differences(reference, copy) == []
        shutil.rmtree(run, ignore_errors=True)
    assert tries >= 3
