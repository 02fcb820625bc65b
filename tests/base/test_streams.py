"""Every command does its work, and returns its exit code, whatever its output goes to."""

from pathlib import Path

import pytest

from tests.forks import Zygote

# runs command lines in one process, each with a new stdout and stderr, and reports their exit codes
PROGRAM = """
import gc, os, sys
from hydra.core.global_hydra import GlobalHydra
from trainer.app import main
from trainer.base.signals import stop_request

codes, *words = sys.argv[1:]
kept = os.open(codes, os.O_WRONLY | os.O_CREAT)
for line in words:
    {condition}
    sys.argv = ["train", *line.split()]
    GlobalHydra.instance().clear()
    stop_request.forget()
    try:
        main()
    except SystemExit as leaving:
        os.write(kept, f"{{leaving.code}} ".encode())
    for descriptor in (0, 1, 2):
        os.fstat(descriptor)  # no file has taken the number of a standard stream
"""
NEW = "sys.stdout = open(1, 'w', closefd=False)"
CONDITIONS = {
    "no reader": f"r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.close(w); {NEW}",
    "closed": "os.close(1); sys.stdout = None",
    "closed too late for Python": f"{NEW}; os.close(1)",
    "all closed": "os.close(0); os.close(1); os.close(2); sys.stdout = sys.stderr = None",
    "errors without a reader": "r, w = os.pipe(); os.close(r); os.dup2(w, 2); sys.stderr = open(2, 'w', closefd=False)",
    "unbuffered": "r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.close(w); import io; "
    "sys.stdout = io.TextIOWrapper(io.FileIO(1, 'w', closefd=False), write_through=True)",
    "ASCII": "sys.stdout = open(1, 'w', encoding='ascii', closefd=False)",
    "latin-1": "sys.stdout = open(1, 'w', encoding='latin-1', closefd=False)",
}  # fmt: skip
QUICK = {"--help": 0, "--cfg job": 0, "--info": 0, "optimizer.lrr=1": 2}
ALL = QUICK | {
    "help optimizer": 0, "--version": 0, "--hydra-help": 0, "--info defaults-tree": 0, "-sc install=bash": 0,
    "plan name='\N{BLACK STAR}'": 0, "plan -m seed=1,2": 0, "--wrong": 2, "resume nowhere": 2,
    "model=linear steps=2 tags=['\N{BLACK STAR}'] hydra.run.dir='\N{BLACK STAR}'": 0,
    "evaluate \N{BLACK STAR}": 0, "resume \N{BLACK STAR}": 0, "repeat \N{BLACK STAR} tags=[b]": 0,
    "-m model=linear steps=2 seed=1,2 name=sweep": 0, "resume outputs/sweeps/sweep": 0,
}  # fmt: skip
FAST = ("no reader", "closed")
SLOW = {name: ALL if name in ("no reader", "all closed", "unbuffered", "latin-1") else QUICK for name in CONDITIONS}


def run(zygote: Zygote, folder: Path, condition: str, *lines: str) -> tuple[str, str, str]:
    """Exit codes, stdout and stderr of these command lines."""
    started = zygote.start(["codes", *lines], folder, code=PROGRAM.format(condition=condition), apart=True)
    out, err = started.communicate()
    assert started.returncode == 0, err
    return (folder / "codes").read_text(), out, err


@pytest.mark.parametrize("condition", FAST)
def test_output_that_cannot_be_written_changes_nothing(condition: str, zygote: Zygote, tmp_path: Path) -> None:
    check(condition, QUICK, zygote, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("condition", "commands"), SLOW.items(), ids=list(SLOW))
def test_every_command_under_every_condition(
    condition: str, commands: dict[str, int], zygote: Zygote, tmp_path: Path
) -> None:
    check(condition, commands, zygote, tmp_path)


def check(condition: str, commands: dict[str, int], zygote: Zygote, tmp_path: Path) -> None:
    codes, _, err = run(zygote, tmp_path, CONDITIONS[condition], *commands)
    assert codes.split() == [str(code) for code in commands.values()]
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines), err
    if condition not in ("all closed", "errors without a reader"):
        assert len(lines) == list(commands.values()).count(2)


def test_a_character_that_the_encoding_lacks_is_a_question_mark_and_a_file_name_keeps_its_bytes(
    zygote: Zygote, tmp_path: Path
) -> None:
    code = "from trainer.base.streams import prepare; prepare(); print('\\xe9 \\u2605 \\udcff')"
    (out := tmp_path / "out").touch()
    started = zygote.start([], tmp_path, code=f"import sys; {CONDITIONS['latin-1']}; {code}", out=out, apart=True)
    assert (started.wait(), started.errors()) == (0, "")
    assert out.read_bytes() == b"\xe9 ? \xff\n"


@pytest.mark.parametrize("line", ["--help", "--cfg job"])
def test_a_full_disk_behind_the_output_is_code_74_at_the_end(line: str, zygote: Zygote, tmp_path: Path) -> None:
    condition = f"os.dup2(os.open('/dev/full', os.O_WRONLY), 1); {NEW}"
    codes, _, err = run(zygote, tmp_path, condition, line)
    assert codes == "74 "
    assert err == "error: stdout: No space left on device; the output is incomplete\n"


def test_a_run_on_a_full_disk_is_completed_if_only_its_output_is_lost(zygote: Zygote, tmp_path: Path) -> None:
    condition = f"os.dup2(os.open('/dev/full', os.O_WRONLY), 1); {NEW}"
    codes, _, _ = run(zygote, tmp_path, condition, "model=linear steps=2 hydra.run.dir=run")
    assert codes == "74 "
    assert '"status": "completed"' in (tmp_path / "run/result.json").read_text()
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
