"""Ranks started by torchrun or srun: the first one sends jobs to the others."""

import json
import os
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.base.errors import GearshiftError, RankLost
from trainer.base.rank import RankInfo, given_rank_info, take
from trainer.launching.failures import GRACE, OURS, Failure, describe
from trainer.launching.job import Job, distributed, leave, work, work_as_main
from trainer.storage import run_folder

if TYPE_CHECKING:
    from trainer.training.finish import Result


class Bus:
    """Channel from the first process to the others: keys in a store that all of them can access."""

    def __init__(self) -> None:
        dist = distributed()
        env = os.environ
        info = given_rank_info()
        assert info is not None
        agents = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.attempt = int(env.get("TORCHELASTIC_RESTART_COUNT", 0))
        self.lasting = dist.TCPStore(
            env["MASTER_ADDR"],
            int(env["MASTER_PORT"]),
            is_master=info.rank == 0 and not agents,
            timeout=timedelta(seconds=300),
        )
        # a restart must not read messages of the previous attempt
        self.store = dist.PrefixStore(f"gearshift{self.attempt}", self.lasting)
        self.number = 0

    def next(self) -> str:
        self.number += 1
        return f"job{self.number}"


_bus: Bus | None = None
_is_followed = False


def bus() -> Bus:
    """Return the bus of this process, created on first use."""
    global _bus
    _bus = _bus or Bus()
    return _bus


def see_slurm() -> None:
    """Translate Slurm's environment variables into torchrun's, in an srun step with several tasks."""
    env = os.environ
    if "RANK" in env or int(env.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", "localhost"))
    tasks, count = env["SLURM_STEP_NUM_TASKS"], int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
    job, step = int(env["SLURM_JOB_ID"]), int(env.get("SLURM_STEP_ID", "0"))
    env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"] = env["SLURM_PROCID"], tasks, env["SLURM_LOCALID"]
    env["LOCAL_WORLD_SIZE"] = str(int(tasks) // count)
    env.setdefault("MASTER_ADDR", _first_host(nodes))
    env.setdefault("MASTER_PORT", str(20000 + job % 20000 + step % 100))


def _first_host(nodes: str) -> str:
    """Return the first host of a list such as `node[01-04,07]`."""
    if "[" not in nodes and "," not in nodes:
        return nodes
    shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return shown.stdout.split()[0]


def is_follower() -> bool:
    """Whether torchrun or srun started this process as a rank other than 0, which does not run Hydra."""
    info = given_rank_info()
    return info is not None and info.rank != 0


def follow() -> int:
    """Execute the jobs that the first process sends until it sends the end; returns the exit code."""
    info = given_rank_info()
    assert info is not None
    while True:
        key = bus().next()
        bus().store.wait([key], timedelta(days=30))
        message = json.loads(bus().store.get(key))
        if message is None:
            return 0
        devices = message.pop("devices")
        if info.local_rank >= devices:
            continue
        try:
            _take_given(key, devices)
            work(Job(**message))
        except Exception as error:
            kind, text = describe(error, Path(message["folder"], "ranks"))
            bus().store.set(f"{key}/failed/{info.rank}", json.dumps([kind, text]))
            traceback.print_exception(error)
        finally:
            leave()


@contextmanager
def followed() -> Iterator[None]:
    """Context manager for the first process; releases the other ranks when it exits."""
    global _is_followed
    info = given_rank_info()
    if info is None or info.world_size == 1 or _is_followed:
        yield
        return
    _is_followed = True
    try:
        yield
    finally:
        _is_followed = False
        bus().store.set(bus().next(), json.dumps(None))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(1)  # this process hosts the store: give the others time to read


def with_others(job: Job, devices: int, lock: run_folder.Lock | None) -> "Result":
    """Execute a job on the ranks that torchrun or srun has started; called in the first process."""
    key = bus().next()
    bus().lasting.set(f"folder/{key}", job.folder)
    bus().store.set(key, json.dumps({**asdict(job), "devices": devices}))
    try:
        _take_given(key, devices)
        return work_as_main(job, lock)
    except Exception as error:
        kind, text = describe(error, Path(job.folder, "ranks"))
        cause = _first_cause(key, Failure(0, kind, text), error)
        if isinstance(cause, GearshiftError) and cause is not error:  # this rank has only lost a connection
            from trainer.training.finish import record_failure

            record_failure(Path(job.folder), job.config, cause)
        raise cause from error
    finally:
        leave()


def _take_given(key: str, devices: int) -> None:
    info = given_rank_info()
    assert info is not None
    rank = info.rank // info.local_size * devices + info.local_rank
    store = distributed().PrefixStore(key, bus().store)
    take(RankInfo(rank, info.machines * devices, info.local_rank, devices), lambda: store)


def _first_cause(key: str, own: Failure, error: Exception) -> Exception:
    """Return the failure of another rank if it explains this one's, else `error`."""
    info = given_rank_info()
    assert info is not None
    if own.kind != "peer":
        return error
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        for rank in range(1, info.world_size):
            name = f"{key}/failed/{rank}"
            if bus().store.check([name]):
                kind, text = json.loads(bus().store.get(name))
                if kind != "peer":
                    return OURS.get(kind, RankLost)(Failure(rank, kind, text).line)
        time.sleep(0.1)
    return RankLost(own.line)


def folder_of_earlier_attempt() -> Path | None:
    """Return the folder of the run that the attempt before torchrun's restart has started, if any."""
    info = given_rank_info()
    if info is None or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) == 0:
        return None
    name = f"folder/job{bus().number + 1}"
    return Path(bus().lasting.get(name).decode()) if bus().lasting.check([name]) else None
