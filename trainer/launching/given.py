"""Ranks started by torchrun or srun: the first one sends jobs to the others."""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING

from trainer.base.errors import ConfigurationError, GearshiftError, RankLost, one_line
from trainer.base.rank import RankInfo, given_rank_info, take
from trainer.launching.failures import GRACE, OURS, Failure, describe
from trainer.launching.job import Job, distributed, leave, work, work_as_main
from trainer.launching.slurm import STEP
from trainer.storage import run_folder

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from trainer.training.finish import Result


_PATIENCE = 300  # seconds in which all ranks must have started
_ANSWER = 20  # seconds in which what listens at rank 0's port must answer as a store does
_NOTICE = 30  # seconds after which a rank says that it still looks for rank 0


class Bus:
    """Channel from the first process to the others: keys in a store that all of them can access."""

    def __init__(self) -> None:
        env = os.environ
        info = given_rank_info()
        assert info is not None
        _check_equal(info)
        env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # while rank 0 starts, torch warns of each failed connection
        dist = distributed()
        self._is_agents = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.attempt = int(env.get("TORCHELASTIC_RESTART_COUNT", 0))
        self.lasting = self._connect(dist, info)
        # a restart must not read messages of the previous attempt, nor a job those of another one at the same port
        self.store = dist.PrefixStore(f"gearshift{self.attempt}/{env.get(STEP, '')}", self.lasting)
        self.number = 0
        if info.rank == 0:
            self.store.set("begun", "yes")
            return
        try:  # an agent's store is there before rank 0 is
            self.store.wait(["begun"], timedelta(seconds=_PATIENCE if self._is_agents else _ANSWER))
        except dist.DistError as error:
            if self._is_agents:
                raise self._unreachable(info) from error
            raise self._another(info, "the store of another run") from error

    def _connect(self, dist: ModuleType, info: RankInfo) -> "Store":
        """Open the store, at rank 0 or at torchrun's agent. Raises ConfigurationError or RankLost."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            socket.getaddrinfo(host, port)
        except OSError as error:
            machine = socket.gethostname()
            raise ConfigurationError(
                f"MASTER_ADDR={host}: this name of the machine of rank 0 is not known on {machine} ({error.strerror}); "
                "set MASTER_ADDR to a name or an address that all machines know"
            ) from error
        is_host = info.rank == 0 and not self._is_agents
        if is_host:
            _check_free(port)
        elif not self._is_agents:
            self._await_listener(host, port, info)

        def store() -> "Store":
            found: Store = dist.TCPStore(host, port, is_master=is_host, timeout=timedelta(seconds=_PATIENCE))
            return found

        try:
            return store() if is_host or self._is_agents else _within(_ANSWER, store)
        except (RuntimeError, TimeoutError) as error:  # torch's own, or another kind where something else answers
            if is_host:
                raise ConfigurationError(f"MASTER_PORT={port}: cannot be used: {one_line(error)}") from error
            if self._is_agents:
                raise self._unreachable(info) from error
            raise self._another(info, "another program") from error

    def _await_listener(self, host: str, port: int, info: RankInfo) -> None:
        """Wait until something listens at rank 0's port. Raises RankLost."""
        begin, told = time.monotonic(), False
        while (waited := time.monotonic() - begin) < _PATIENCE:
            with suppress(OSError):
                socket.create_connection((host, port), timeout=_ANSWER).close()
                return
            if waited > _NOTICE and not told:
                told = True
                print(f"rank {info.rank}: looks for rank 0 at {host}:{port}, up to {_PATIENCE} s", file=sys.stderr)
            time.sleep(min(0.5, _PATIENCE / 10))
        raise self._unreachable(info)

    def _another(self, info: RankInfo, what: str) -> ConfigurationError:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return ConfigurationError(
            f"rank {info.rank}: {what} answers at {where}, and not rank 0; set MASTER_PORT to another port, the same "
            "for all ranks"
        )

    def _unreachable(self, info: RankInfo) -> RankLost:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return RankLost(f"rank {info.rank}: found no rank 0 at {where} within {_PATIENCE} s")

    def next(self) -> str:
        self.number += 1
        return f"job{self.number}"


def _within(seconds: float, make: Callable[[], "Store"]) -> "Store":
    """Return the result of a call that may never end, made in a thread. Raises TimeoutError, or the call's error."""
    results: SimpleQueue[Store | Exception] = SimpleQueue()

    def run() -> None:
        try:
            results.put(make())
        except Exception as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = results.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def _check_equal(info: RankInfo) -> None:
    """Raise ConfigurationError if torchrun has started different numbers of processes on the machines."""
    if int(os.environ.get("GROUP_WORLD_SIZE", info.machines)) * info.local_size != info.world_size:
        if info.local_rank != 0:
            raise SystemExit(ConfigurationError.exit_code)
        raise ConfigurationError(
            f"torchrun: {info.local_size} of {info.world_size} processes are on this machine; every machine must have "
            "as many: --nproc-per-node=N with the same N"
        )


def _check_free(port: int) -> None:
    """Raise ConfigurationError if another program listens at a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigurationError(
                f"MASTER_PORT={port}: cannot be used on {socket.gethostname()} ({error.strerror}); "
                "set MASTER_PORT to another port, the same for all ranks"
            ) from error


_bus: Bus | None = None
_is_followed = False


def bus() -> Bus:
    """Return the bus of this process, created on first use."""
    global _bus
    _bus = _bus or Bus()
    return _bus


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
    bus()  # fails at once if the others cannot be reached
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
