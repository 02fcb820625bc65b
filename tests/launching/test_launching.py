"""Ranks started here, by torchrun or by srun: killed, stopped and failing; and the messages that the user sees."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forks import Fork, shared
from trainer import compose, launch
from trainer.base.errors import ConfigurationError, GearshiftError, RankLost
from trainer.base.signals import HANDLED
from trainer.launching.failures import GRACE
from trainer.launching.local import _STOPPED
from trainer.storage import checkpoint, run_folder

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
# everything here affects the result
RUN = [
    "parallelism=ddp", "parallelism.devices=2", "device=cpu", "threads=1", "early_stopping=null",
    "model=lenet", "model.channels=[4,6]", "model.hidden=[16]", "model.drop_prob=0.2", "batch_size=62", "accumulate=2",
    "clip_norm=0.5", "steps=120", "every.checkpoint=10step", "every.evaluate=20step", "every.log=5step",
    "hydra.run.dir=run",
]  # fmt: skip
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
# a model that fails, stalls or ends on one rank only
BROKEN = '''
import os, time, warnings
import torch
from torch import nn
from trainer.base.rank import rank_info

class Broken(nn.Module):
    """Linear, and something happens on rank 1 at its tenth forward."""
    def __init__(self, input_shape, num_outputs, what="raise"):
        super().__init__()
        self.linear = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_outputs)
        self.what, self.count = what, 0
    def forward(self, x):
        self.count += self.training
        if self.count == 10 and self.what == "warn":
            for module in ("torch.distributed.c10d_logger", "torchmetrics"):
                warnings.warn_explicit(f"deprecated, says {module}", FutureWarning, "file.py", 1, module=module)
        if self.count == 10 and rank_info() is not None and rank_info().rank == 1:
            if self.what == "raise":
                raise LookupError("the tenth time")
            if self.what == "exit":
                os._exit(9)
            if self.what == "memory":
                raise torch.OutOfMemoryError("nothing is left")
        return self.linear(x.flatten(1))
'''


OPTION = "# Breaks on one rank\n_target_: broken.Broken\nwhat: raise\n"

# LeNet whose ranks wait before a step while its gate is closed, or until a stop is requested
GATES = """
import os, time
from pathlib import Path
from trainer.training import loop
from trainer.models.lenet import lenet
from trainer.base.rank import rank_info
from trainer.base.signals import HANDLED, stop_request

train_step = loop.train_step

def wait_and_step(run, batch):
    gate = Path(f"gates/{run.step}")
    if gate.exists():
        note = Path(f"gates/{run.step} on rank {rank_info().rank}")
        note.with_suffix(".tmp").write_text(str(os.getpid()))
        note.with_suffix(".tmp").replace(note)
    while gate.exists() and stop_request.signum is None:
        time.sleep(0.005)
    train_step(run, batch)

loop.train_step = wait_and_step
"""


Process = subprocess.Popen[str] | Fork


def start(folder: Path, *arguments: str, program: tuple[str, ...] = (), session: bool = False, **more: str) -> Process:
    """Fork `train` together with the server that forks its ranks, or start `program`."""
    if not program:
        return shared().start(arguments, folder, environment=more, apart=True, spare=True, session=session)
    return subprocess.Popen(
        [*program, *arguments], cwd=folder, env=os.environ | ENVIRONMENT | more, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: Process, seconds: float = 240) -> tuple[int, str, str]:
    """Wait for the end, for less than the 300 s that ranks would wait for one another."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode is not None
    return process.returncode, out, err


def children(pid: int) -> list[int]:
    """All descendants of a process, oldest first."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(row.split()[0]): int(row.split()[1]) for row in rows.splitlines()}
    found = [pid]
    for parent in found:
        found += sorted(child for child, its in parents.items() if its == parent)
    return found[1:]


def start_gated(
    folder: Path, gates: Sequence[int], *changes: str, program: tuple[str, ...] = (), session: bool = False
) -> Process:
    """Start RUN with some changes; it stops before each step in `gates` until that gate is opened."""
    (folder / "gates").mkdir()
    for step in gates:
        (folder / f"gates/{step}").touch()
    (folder / "gated.py").write_text(GATES)
    (folder / "conf/model").mkdir(parents=True)
    option = (Path(__file__).parents[2] / "configs/model/lenet.yaml").read_text()
    (folder / "conf/model/gated.yaml").write_text(option.replace("trainer.models.lenet.lenet", "gated.lenet"))
    keys = {change.partition("=")[0] for change in ("model", *changes)}
    overrides = [override for override in RUN if override.partition("=")[0] not in keys]
    trust = ["--trust", "gated", "--config-dir", "conf", "model=gated"]
    return start(folder, *trust, *overrides, *changes, program=program, session=session)


def at_gate(process: Process, folder: Path, step: int, excluded: Collection[int] = ()) -> list[int]:
    """Wait until both ranks have reached this step; returns their processes by rank."""
    notes = [folder / f"gates/{step} on rank {rank}" for rank in range(2)]
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        pids = [int(note.read_text()) for note in notes if note.exists()]
        if len(pids) == 2 and not set(pids) & set(excluded):
            return pids
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"nobody came to step {step}")


def open_gate(folder: Path, step: int) -> None:
    (folder / f"gates/{step}").unlink()


def resume(folder: Path) -> Process:
    for gate in (folder / "gates").iterdir():
        gate.unlink()
    return start(folder, "resume", "run", GEARSHIFT_TRUST="gated")


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def exact(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics that must be equal in a repetition."""
    return [{k: v for k, v in record.items() if not k.startswith("throughput")} for record in records]


def gone(pids: list[int], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, err = end(start(folder, *RUN))
    assert (code, err) == (0, "")
    return folder / "run"


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "broken.yaml").write_text(OPTION)
    yield tmp_path


BREAK = ["--trust", "broken", "--config-dir", "conf", "model=broken", *[o for o in RUN if not o.startswith("model")]]


def same(one: Path, other: Path) -> None:
    """Assert that metrics and final checkpoints have the same bits."""
    assert exact(metrics(one)) == exact(metrics(other))
    states = [checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (one, other)]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    for name, kept in states[0]["optimizer"]["state"].items():
        for key, value in kept.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1]["optimizer"]["state"][name][key]))


# --- one machine --------------------------------------------------------------------------------------------


def test_one_folder_written_once_with_a_log_a_rank(undisturbed: Path) -> None:
    assert {path.name for path in undisturbed.iterdir()} >= {"config.yaml", "result.json", "curves.png", "ranks"}
    assert [path.name for path in (undisturbed / "ranks").iterdir()] == ["1.log"]
    assert sum(path.name.startswith("events") for path in undisturbed.iterdir()) == 1
    steps = [record["step"] for record in metrics(undisturbed) if "train/loss" in record]
    assert steps == sorted(set(steps)) and steps[-1] == 120
    assert json.loads((undisturbed / "environment.json").read_text())["world_size"] == 2
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["status"] == "completed" and result["test"]["test/accuracy"] > 0.8


def test_it_is_the_run_of_one_device(undisturbed: Path, tmp_path: Path) -> None:
    alone = [o for o in RUN if not o.startswith("parallelism")]
    assert end(start(tmp_path, *alone))[0] == 0
    together, single = exact(metrics(undisturbed)), exact(metrics(tmp_path / "run"))
    assert [record["step"] for record in together] == [record["step"] for record in single]
    for one, other in zip(together, single, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_stops_and_saves(signum: signal.Signals, undisturbed: Path, tmp_path: Path) -> None:
    """As sent by `timeout`, a terminal or a batch system."""
    process = start_gated(tmp_path, [20], session=True)
    at_gate(process, tmp_path, 20)
    os.killpg(process.pid, signum)
    code, _, err = end(process)
    assert (code, err) == (128 + signum, "")
    assert end(resume(tmp_path))[0] == 0
    same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_signal_before_there_is_anything_to_save_leaves_nothing_behind(tmp_path: Path) -> None:
    process = start_gated(tmp_path, [0])
    while not (tmp_path / "run" / "ranks").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    family = children(process.pid)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert (code, err) == (130, "stopped by SIGINT; run folder: run; to continue: train resume run\n")
    assert gone(family)


@pytest.mark.slow
@pytest.mark.parametrize("signum", HANDLED)
def test_a_signal_stops_and_saves_all_ranks_and_resume_has_the_same_bits(
    signum: int, undisturbed: Path, tmp_path: Path
) -> None:
    process = start_gated(tmp_path, [20])
    at_gate(process, tmp_path, 20)
    family = children(process.pid)
    process.send_signal(signum)
    code, out, err = end(process)
    assert (code, err) == (128 + signum, "")
    assert "to continue: train resume run" in out
    assert gone(family)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("interrupted", 128 + signum)
    assert end(resume(tmp_path))[0] == 0
    same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_comes_back_with_the_same_bits(number: int, undisturbed: Path, tmp_path: Path) -> None:
    process = start_gated(tmp_path, [30], "parallelism.max_restarts=1")
    pids = at_gate(process, tmp_path, 30)
    family = children(process.pid)
    os.kill(pids[number], signal.SIGKILL)
    open_gate(tmp_path, 30)
    code, out, err = end(process)
    assert (code, err) == (0, "")
    assert f"rank {number}: was killed by SIGKILL; restart 1 of 1 from the last checkpoint" in out
    assert gone(family)
    same(tmp_path / "run", undisturbed)


def test_a_killed_rank_without_restarts_is_one_line_and_code_71(tmp_path: Path) -> None:
    process = start_gated(tmp_path, [10], "steps=1000000")
    pids = at_gate(process, tmp_path, 10)
    family = children(process.pid)
    open_gate(tmp_path, 10)
    os.kill(pids[1], signal.SIGKILL)
    code, _, err = end(process)
    assert code == 71
    spent = "no restarts left (parallelism.max_restarts=0); to continue: train resume run"
    assert err == f"error: rank 1: was killed by SIGKILL; {spent}\n"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 71)
    assert gone(family)


@pytest.mark.slow
def test_a_stopped_rank_is_found_out_within_ten_seconds(tmp_path: Path) -> None:
    assert _STOPPED + GRACE < 10
    process = start_gated(tmp_path, [10], "steps=1000000")
    pids = at_gate(process, tmp_path, 10)
    family = children(process.pid)
    open_gate(tmp_path, 10)
    os.kill(pids[1], signal.SIGSTOP)
    code, _, err = end(process)
    assert code == 71
    assert "rank 1: was stopped" in err and len(err.splitlines()) == 1
    assert gone(family)


def test_ranks_die_with_their_launcher(tmp_path: Path) -> None:
    process = start_gated(tmp_path, [10], "steps=1000000")
    pids = at_gate(process, tmp_path, 10)
    family = children(process.pid)
    assert len(family) >= 3 and {*pids} <= {*family}
    open_gate(tmp_path, 10)
    process.kill()
    assert gone(family)
    end(process)


@pytest.mark.parametrize("strategy", [pytest.param("single", marks=pytest.mark.slow), "ddp"])
def test_what_torch_deprecates_inside_itself_is_not_shown(strategy: str, broken: Path) -> None:
    overrides = [o for o in BREAK if not o.startswith(("parallelism", "steps"))]
    devices = ["parallelism.devices=2"] if strategy == "ddp" else []
    code, _, err = end(start(broken, *overrides, "model.what=warn", f"parallelism={strategy}", *devices, "steps=20"))
    assert code == 0, err
    shown = [err, *(path.read_text() for path in (broken / "run" / "ranks").glob("1.log"))]
    assert len(shown) == 1 + len(devices)
    for text in shown:
        assert "says torchmetrics" in text and "says torch.distributed" not in text


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("raise", 2, "rank 1: broken.py:20 in forward: LookupError: the tenth time (not code of Gearshift's)"),
        pytest.param("exit", 71, "rank 1: ended with code 9; no restarts left", marks=pytest.mark.slow),
        pytest.param("memory", 73, "rank 1: out of memory", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_is_one_line_with_its_number(what: str, code: int, line: str, broken: Path) -> None:
    found, _, err = end(start(broken, *BREAK, f"model.what={what}"))
    assert found == code, err
    (only,) = err.splitlines()
    assert only.startswith(f"error: {line}")
    assert json.loads((broken / "run" / "result.json").read_text())["exit_code"] == code
    trace = (broken / "run" / "ranks" / "1.log").read_text() if what != "exit" else "Traceback"
    assert "Traceback" in trace


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["parallelism.devices=100000"], "parallelism.devices=100000: this machine has"),
        (["parallelism.devices=0"], "parallelism.devices=0: must be auto or at least 1"),
        (["parallelism.devices=4", "batch_size=3"], "a batch of 3 samples cannot be divided among 4 ranks"),
        (["micro_batch=auto", "model=linear"], "micro_batch=auto: needs parallelism=single"),
        (["parallelism.max_restarts=-1"], "parallelism.max_restarts=-1: must be at least 0"),
        (["parallelism.timeout=0"], "parallelism.timeout=0: must be > 0 (seconds)"),
        (["parallelism.batch_norm=sync"], "parallelism.batch_norm=sync: must be one of synchronized, plain"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(
    overrides: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.configuration.resolve import resolve

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        resolve(compose(["parallelism=ddp", "device=cpu", *overrides]))
    assert any(line in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.slow
def test_plain_batch_norm_is_announced(tmp_path: Path) -> None:
    rest = [o for o in RUN if not o.startswith("steps")]
    code, out, _ = end(start(tmp_path, *rest, "steps=4", "parallelism.batch_norm=plain"))
    assert code == 0 and "batch norm is plain" in out


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = launch(compose(["parallelism=ddp", "model=linear", "device=cpu", "steps=3", "threads=1"]))
    assert (result.status, result.steps, result.exit_code) == ("completed", 3, 0)
    assert Path(result.folder).is_dir()


def test_without_ranks_assemble_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import assemble

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="this process is not a rank"):
        assemble(compose(["parallelism=ddp", "device=cpu"]))
    assert not list(tmp_path.iterdir())


def test_one_rank_needs_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["model=lenet", "steps=5", "threads=1", "device=cpu", "every.log=1step"]
    one = launch(compose(overrides))
    other = launch(compose([*overrides, "parallelism=ddp", "parallelism.devices=1"]))
    assert exact(metrics(Path(one.folder))) == exact(metrics(Path(other.folder)))
    assert not (Path(other.folder) / "ranks").exists()


@pytest.mark.slow
def test_resume_under_another_strategy_says_so_and_continues_the_curve(tmp_path: Path, undisturbed: Path) -> None:
    alone = [o for o in RUN if not o.startswith("parallelism") and not o.startswith("steps")]
    assert end(start(tmp_path, *alone, "steps=60", "schedule=constant"))[0] == 0
    code, out, err = end(start(tmp_path, "resume", "run", "parallelism=ddp", "parallelism.devices=2", "steps=90"))
    assert (code, err) == (0, "")
    assert "parallelism: single -> ddp" in out and "steps: 60 -> 90" in out
    reference = tmp_path / "reference"
    reference.mkdir()
    assert end(start(reference, *alone, "steps=90", "schedule=constant"))[0] == 0
    found = {r["step"]: r["train/loss"] for r in metrics(tmp_path / "run") if "train/loss" in r}
    wanted = {r["step"]: r["train/loss"] for r in metrics(reference / "run") if "train/loss" in r}
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


# --- torchrun and srun --------------------------------------------------------------------------------------


def torchrun(folder: Path, *arguments: str, count: int = 2) -> Process:
    command = (TORCHRUN, f"--nproc-per-node={count}", f"--master-port={free_port()}", "-m", "trainer")
    return start(folder, *arguments, program=command)


def free_port() -> int:
    """A port outside of the range that the system assigns by itself, so that it stays free until it is used."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


@pytest.mark.slow
def test_torchrun_gives_the_same_run(undisturbed: Path, tmp_path: Path) -> None:
    code, out, err = end(torchrun(tmp_path, *RUN))
    assert code == 0, err
    same(tmp_path / "run", undisturbed)
    assert out.count("completed after 120 steps") == 1


@pytest.mark.slow
def test_a_bad_override_under_torchrun_ends_all(tmp_path: Path) -> None:
    code, _, err = end(torchrun(tmp_path, *RUN, "optimizer.lrr=1"))
    assert code != 0
    assert err.count("error: optimizer.lrr") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_s_own_restart_goes_on_in_the_same_folder(undisturbed: Path, tmp_path: Path) -> None:
    program = (TORCHRUN, "--nproc-per-node=2", f"--master-port={free_port()}", "--max-restarts=1", "-m", "trainer")
    process = start_gated(tmp_path, [30], program=program)
    pids = at_gate(process, tmp_path, 30)
    os.kill(pids[0], signal.SIGKILL)
    open_gate(tmp_path, 30)
    code, _, err = end(process)
    assert code == 0, err
    assert [path.parent.name for path in tmp_path.rglob("config.yaml")] == ["run"]
    same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_two_machines(undisturbed: Path, tmp_path: Path) -> None:
    """Two agents of torchrun with one rank each, as on two machines."""
    overrides = [*[o for o in RUN if not o.startswith("parallelism.devices")], "parallelism.devices=1"]
    port = free_port()
    agents = [
        start(
            tmp_path, *overrides,
            program=(TORCHRUN, "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1",
                     f"--master-port={port}", "-m", "trainer"),
        )
        for node in range(2)
    ]  # fmt: skip
    ended = [end(agent) for agent in agents]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["world_size"] == 2
    same(tmp_path / "run", undisturbed)


SWEEP = ["-m", "parallelism=single,ddp", "seed=1,2", "device=cpu", "model=linear", "steps=5", "threads=1",
         "hydra.sweep.dir=sweep"]  # fmt: skip


def trials(folder: Path) -> dict[str, str]:
    return {
        path.name.partition("_")[0]: json.loads((path / "result.json").read_text())["status"]
        for path in sorted((folder / "sweep").iterdir())
        if path.is_dir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("started_by", ["train", "torchrun"])
def test_a_sweep_over_strategies_has_a_folder_a_job(started_by: str, tmp_path: Path) -> None:
    process = start(tmp_path, *SWEEP) if started_by == "train" else torchrun(tmp_path, *SWEEP, count=3)
    code, _, err = end(process)
    assert code == 0, err
    assert trials(tmp_path) == dict.fromkeys("0123", "completed")


@pytest.mark.slow
@pytest.mark.parametrize("started_by", ["train", "torchrun"])
def test_a_job_that_fails_does_not_hang_the_rest(started_by: str, broken: Path) -> None:
    overrides = [o for o in BREAK if not o.startswith(("parallelism", "hydra", "steps"))]
    sweep = ["-m", *overrides, "steps=20", "model.what=raise,nothing", "parallelism=ddp", "hydra.sweep.dir=sweep"]
    process = start(broken, *sweep) if started_by == "train" else torchrun(broken, *sweep)
    code, _, err = end(process)
    assert code in (1, 3), err  # torchrun has its own exit code
    assert "LookupError: the tenth time" in err
    assert trials(broken) == {"0": "failed", "1": "completed"}


@pytest.mark.slow
def test_srun_s_variables_do(undisturbed: Path, tmp_path: Path) -> None:
    shared = {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_ID": "1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [start(tmp_path, *RUN, **shared, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]
    ended = [end(task) for task in tasks]
    assert [code for code, _, _ in ended] == [0, 0], ended
    same(tmp_path / "run", undisturbed)


# --- storm --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_ranks_killed_at_random_leave_no_trace(undisturbed: Path, tmp_path: Path) -> None:
    """Each kill between two gates, after all ranks have restarted from the previous one."""
    rng, gates = random.Random(3), range(5, 105, 10)
    process = start_gated(tmp_path, gates, "parallelism.max_restarts=10")
    family: set[int] = set()
    ended: set[int] = set()
    for gate in gates:
        pids = at_gate(process, tmp_path, gate, excluded=ended)
        ended |= set(pids)
        family |= set(children(process.pid))
        open_gate(tmp_path, gate)
        time.sleep(rng.random() * 0.2)
        os.kill(rng.choice(pids), signal.SIGKILL)
    code, out, err = end(process)
    assert (code, err) == (0, ""), out
    assert out.count("from the last checkpoint") == 10
    assert gone(sorted(family))
    same(tmp_path / "run", undisturbed)


def test_errors_of_ranks_are_errors_of_ours() -> None:
    assert RankLost.exit_code == 71 and issubclass(RankLost, GearshiftError)
    assert run_folder.HeldLock().release() is None
