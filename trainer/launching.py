"""The processes of a job: this one, ranks started here, or ranks that torchrun or srun started.

Hydra lives in exactly one process and no command line is run twice: what a rank is to do comes as a
configuration. Torch is imported by those who train only.
"""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from trainer import run_folder, signals
from trainer.config import Config
from trainer.console import outlive_readers, say
from trainer.errors import (
    ConfigurationError,
    DataError,
    DiskError,
    Diverged,
    GearshiftError,
    Interrupted,
    OutOfMemory,
    RankLost,
    RunInUse,
    one_line,
    understood,
)
from trainer.files import disk_errors
from trainer.place import Place, given_place, take
from trainer.signals import stop_request

_SINGLE = "trainer.parallelism.single.Single"
# a rank says every second that it lives; one that the system has stopped is given up after _STOPPED seconds, one
# that is merely silent after _SILENT
_BEAT, _STOPPED, _SILENT = 1.0, 4.0, 60.0
# after the first failure: how long the others have to tell theirs, and the main rank to put its files in order
_GRACE = 5.0


def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    is_trial: bool = False,
    lock: run_folder.Lock | None = None,
) -> Any:
    """Assemble and fit, in as many processes as the parallelism wants; returns the Result.

    Raises what a rank raised, RankLost (71) when one was lost and `parallelism.max_restarts` are spent.
    """
    outlive_readers()
    job = Job(config, str(folder.absolute()), resume, is_trial)
    if config["parallelism"]["_target_"] == _SINGLE:
        return work(job, lock)
    from trainer.blueprint import draw

    strategy = draw(config).strategy
    if given_place() is not None:
        return _with_others(job, strategy.devices, lock)
    if strategy.devices == 1:
        return _alone(job, lock)
    lock = lock or run_folder.Lock(folder)
    try:
        return LocalRanks(job, strategy).run()
    finally:
        lock.release()


def launch(config: Config, folder: Path | None = None) -> Any:
    """From Python: train in a new run folder under `outputs/`, or go on in `folder`; returns the Result.

    A script that calls it under several ranks must do so below `if __name__ == "__main__":`, as for every use
    of multiprocessing.
    """
    return train(config, folder or run_folder.new(config), resume=folder is not None)


@dataclass(frozen=True)
class Job:
    """What a rank needs to know; plain values."""

    config: Config
    folder: str
    resume: bool
    is_trial: bool


def work(job: Job, lock: run_folder.Lock | None = None) -> Any:
    """One rank's part of a job; returns the Result."""
    from trainer.assembly import assemble
    from trainer.loop import fit
    from trainer.step import train_step

    run = assemble(job.config, Path(job.folder), resume=job.resume, is_trial=job.is_trial, lock=lock)
    if run.strategy.is_main or not hasattr(run.strategy, "work"):
        return fit(run)
    stop_request.can_wait = True  # the main rank decides, and says so
    try:
        run.strategy.work(run, train_step)
    finally:
        run.close()
    return None


def _alone(job: Job, lock: run_folder.Lock | None) -> Any:
    """A strategy of several ranks, of which there is one: no other process is needed."""
    store = _distributed().HashStore()
    take(Place(0, 1, 0, 1), lambda: store)
    try:
        return work(job, lock)
    finally:
        _leave()


def _distributed() -> Any:
    """torch.distributed, whose stores its type hints do not know; loaded when a job needs it."""
    import torch.distributed as dist

    return dist


def _leave() -> None:
    """Be no rank any more; others that still wait for this one hear of it at once."""
    take(None, None)
    dist = _distributed()
    if dist.is_initialized():
        with suppress(Exception):  # a group that broke need not be taken down in order
            dist.destroy_process_group()


# --- ranks on this machine ----------------------------------------------------------------------------------


@dataclass
class Rank:
    """What the launcher knows of a rank: its process, and how it ended."""

    number: int
    process: Any
    pipe: Connection
    last_beat: float = field(default_factory=time.monotonic)
    ended: bool = False
    result: dict[str, Any] | None = None
    failure: "Failure | None" = None


@dataclass(frozen=True)
class Failure:
    """Why a rank ended: `kind` is the name of an error of ours, "lost", "raised" or "peer" (another one failed)."""

    rank: int
    kind: str
    text: str

    @property
    def line(self) -> str:
        return f"rank {self.rank}: {self.text}" if self.kind != "Diverged" else self.text


class LocalRanks:
    """Starts the ranks of a job, watches them, passes signals on, and starts them again when one is lost."""

    def __init__(self, job: Job, strategy: Any) -> None:
        self._job, self._strategy = job, strategy
        self._folder = Path(job.folder)
        self._tolerates = getattr(strategy, "tolerates", lambda rank: False)
        self._ranks: list[Rank] = []
        self._passed_on: int | None = None

    def run(self) -> Any:
        """The Result of the main rank. Raises what a rank raised, or RankLost."""
        attempts = self._strategy.max_restarts + 1
        stop_request.can_wait = True
        scratch = Path(tempfile.mkdtemp(prefix="gearshift-"))
        try:
            for attempt in range(attempts):
                failure = self._attempt(scratch / f"store{attempt}", restarted=attempt > 0)
                if failure is None:
                    from trainer.finish import Result

                    assert self._ranks[0].result is not None
                    return Result(**self._ranks[0].result)
                signals.show_cursor()
                if failure.kind in _OURS:
                    raise _OURS[failure.kind](failure.line)
                if stop_request.signum is not None:
                    raise Interrupted(stop_request.signum)
                if attempt + 1 < attempts:
                    say(f"{failure.line}; restart {attempt + 1} of {attempts - 1} from the last checkpoint")
                    (self._folder / run_folder.RESULT).unlink(missing_ok=True)
            assert failure is not None
            spent = f"restarts are spent (parallelism.max_restarts={attempts - 1})"
            lost = RankLost(f"{failure.line}; {spent}; to go on: train resume {run_folder.shown(self._folder)}")
            self._record(lost)
            raise lost
        finally:
            stop_request.can_wait = False
            self._kill()
            shutil.rmtree(scratch, ignore_errors=True)

    def _attempt(self, store: Path, restarted: bool) -> Failure | None:
        """Run all ranks to their end; the failure that matters, if there was one."""
        self._start(store, restarted)
        try:
            while not all(rank.ended for rank in self._ranks):
                self._listen()
                failure = self._failure()
                if failure is not None:
                    return self._let_end(failure)
                if self._ranks[0].ended:
                    self._let_end(None)  # workers that nobody waits for
            return self._failure()
        finally:
            self._kill()

    def _start(self, store: Path, restarted: bool) -> None:
        # quiet: that a peer's connection was closed is told in our own words
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["trainer.assembly", "trainer.loop", "trainer.launching"])
        count = self._strategy.devices
        logs = self._folder / "ranks"
        with disk_errors(logs):
            logs.mkdir(exist_ok=True)
        job = Job(self._job.config, self._job.folder, self._job.resume or restarted, self._job.is_trial)
        environment = {key: value for key, value in os.environ.items() if key.startswith(("GEARSHIFT_", "HYDRA_"))}
        self._ranks = []
        for number in range(count):
            here, there = context.Pipe()
            place = Place(number, count, number, count)
            process = context.Process(
                target=_rank_process, args=(there, place, str(store), job, environment), name=f"rank {number}"
            )
            process.start()
            there.close()
            self._ranks.append(Rank(number, process, here))

    def _listen(self) -> None:
        """Take what the ranks say for up to a tenth of a second, and look who is silent."""
        if stop_request.signum not in (None, self._passed_on):
            self._passed_on = stop_request.signum
            for rank in self._running():
                os.kill(rank.process.pid, self._passed_on)
        by_source: dict[Any, Rank] = {}
        for rank in self._running():
            by_source |= {rank.pipe: rank, rank.process.sentinel: rank}
        for source in wait(list(by_source), timeout=0.1):
            rank = by_source[source]
            if not rank.ended:
                self._hear(rank)
        for rank in self._running():
            silent = time.monotonic() - rank.last_beat
            if silent > _STOPPED and _is_stopped(rank.process.pid):
                self._lost(rank, "was stopped")
            elif silent > _SILENT:
                self._lost(rank, f"gave no sign of life for {_SILENT:.0f} s")

    def _hear(self, rank: Rank) -> None:
        try:
            while rank.pipe.poll():
                kind, *values = rank.pipe.recv()
                rank.last_beat = time.monotonic()
                if kind == "done":
                    rank.result, rank.ended = values[0], True
                elif kind == "failed":
                    self._failed(rank, Failure(rank.number, *values))
            if rank.ended or rank.process.exitcode is None:
                return
        except EOFError:
            rank.process.join(_GRACE)
        if not rank.ended:
            self._lost(rank, _how_it_ended(rank.process.exitcode))

    def _lost(self, rank: Rank, how: str) -> None:
        rank.process.kill()
        self._failed(rank, Failure(rank.number, "lost", how))

    def _failed(self, rank: Rank, failure: Failure) -> None:
        rank.ended = True
        if self._tolerates(rank.number) and failure.kind not in _OURS:
            say(f"{failure.line}; the others go on")
        else:
            rank.failure = failure

    def _failure(self) -> Failure | None:
        """The failure that explains the others."""
        found = [rank.failure for rank in self._ranks if rank.failure is not None]
        order = {"lost": 0, "raised": 2, "peer": 3}
        return min(found, key=lambda f: (order.get(f.kind, 1), f.rank), default=None)

    def _let_end(self, failure: Failure | None) -> Failure | None:
        """Give the ranks a little time to end by themselves; the main one as long as it names a layer."""
        deadline = time.monotonic() + _GRACE
        main = self._ranks[0]
        while self._running() and (time.monotonic() < deadline or _names_a_layer(failure, main)):
            self._listen()
            failure = self._failure()
        return failure

    def _running(self) -> list[Rank]:
        return [rank for rank in self._ranks if not rank.ended]

    def _kill(self) -> None:
        for rank in self._ranks:
            if rank.process.is_alive() and rank.ended and rank.failure is None:
                rank.process.join(_GRACE)
            rank.process.kill()
            rank.process.join()
            rank.pipe.close()
        self._ranks = [rank for rank in self._ranks if rank.result is not None or rank.failure is not None]

    def _record(self, error: RankLost) -> None:
        """`result.json` of a run whose main rank could not write it, or did not know the whole story."""
        from trainer.finish import record_failure

        record_failure(self._folder, self._job.config, error)


def _names_a_layer(failure: Failure | None, main: Rank) -> bool:
    return failure is not None and failure.kind == "Diverged" and not main.ended


_OURS: dict[str, type[GearshiftError]] = {
    kind.__name__: kind for kind in (ConfigurationError, DataError, DiskError, Diverged, OutOfMemory, RunInUse)
}


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _is_stopped(pid: int) -> bool:
    """Whether the system has stopped a process (SIGSTOP, a debugger); False where it does not tell."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


# --- inside a rank ------------------------------------------------------------------------------------------


def _rank_process(pipe: Connection, place: Place, store: str, job: Job, environment: dict[str, str]) -> None:
    """The life of a rank that the launcher started."""
    os.setsid()  # a Ctrl-C at the terminal reaches the launcher alone, which passes it on once
    os.environ.update(environment)
    signals.install()
    mouth = threading.Lock()
    threading.Thread(target=_beat, args=(pipe, mouth), daemon=True).start()
    threading.Thread(target=_die_with_launcher, args=(pipe,), daemon=True).start()
    log = Path(job.folder, "ranks", f"{place.rank}.log")
    if place.rank != 0:
        _speak_into(log)
    message = _live(place, store, job, log)
    with mouth, suppress(OSError):
        pipe.send(message)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # what hangs in a collective with a rank that is gone is not waited for


def _live(place: Place, store: str, job: Job, log: Path) -> tuple[Any, ...]:
    try:
        take(place, lambda: _distributed().FileStore(store, place.world_size))
        outlive_readers()
        result = work(job, run_folder.HeldLock())
        _leave()
        return ("done", None if result is None else asdict(result))
    except BaseException as error:
        with suppress(OSError), log.open("a") as file:
            traceback.print_exception(error, file=file)
        if os.environ.get("GEARSHIFT_DEBUG") and place.rank == 0:
            traceback.print_exception(error)
        return ("failed", *_told(error, log))


def _told(error: BaseException, log: Path) -> tuple[str, str]:
    """A failure as it is sent: its kind and one line."""
    known = understood(error)
    if type(known).__name__ in _OURS:
        return type(known).__name__, str(known)
    if isinstance(known, Interrupted):
        return "peer", str(known)
    names = {kind.__name__ for kind in type(error).__mro__}
    words = str(error)
    by_peer = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"} & names
    if by_peer or any(
        word in words for word in ("onnection closed by peer", "onnection reset by peer", "gloo", "NCCL")
    ):
        return "peer", f"lost its connection: {one_line(error)}"
    return "raised", f"{type(error).__name__}: {one_line(error)} (trace: {run_folder.shown(log)})"


def _speak_into(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _beat(pipe: Connection, mouth: threading.Lock) -> None:
    while True:
        with mouth, suppress(OSError):
            pipe.send(("beat",))
        time.sleep(_BEAT)


def _die_with_launcher(pipe: Connection) -> None:
    """The launcher never says anything: when reading ends, it is gone."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)


# --- ranks that torchrun or srun started --------------------------------------------------------------------


class Bus:
    """How the first process tells the others what comes next: keys in a store that all of them see."""

    def __init__(self) -> None:
        dist = _distributed()
        env = os.environ
        here = given_place()
        assert here is not None
        agents = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.attempt = int(env.get("TORCHELASTIC_RESTART_COUNT", 0))
        self.lasting = dist.TCPStore(
            env["MASTER_ADDR"],
            int(env["MASTER_PORT"]),
            is_master=here.rank == 0 and not agents,
            timeout=timedelta(seconds=300),
        )
        # a restart must not read what was meant for the attempt before
        self.store = dist.PrefixStore(f"gearshift{self.attempt}", self.lasting)
        self.number = 0

    def next(self) -> str:
        self.number += 1
        return f"job{self.number}"


_bus: Bus | None = None
_is_followed = False


def bus() -> Bus:
    """The one bus of this process."""
    global _bus
    _bus = _bus or Bus()
    return _bus


def see_slurm() -> None:
    """In a step of srun with several tasks: translate its variables into torchrun's."""
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
    """The first of `node[01-04,07]`."""
    if "[" not in nodes and "," not in nodes:
        return nodes
    shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return shown.stdout.split()[0]


def is_follower() -> bool:
    """Whether this process was started as another rank than the first: Hydra is none of its business."""
    here = given_place()
    return here is not None and here.rank != 0


def follow() -> int:
    """Do what the first process says until it says that there is nothing left."""
    here = given_place()
    assert here is not None
    while True:
        key = bus().next()
        bus().store.wait([key], timedelta(days=30))
        message = json.loads(bus().store.get(key))
        if message is None:
            return 0
        devices = message.pop("devices")
        if here.local_rank >= devices:
            continue
        try:
            _take_given(key, devices)
            work(Job(**message))
        except Exception as error:
            kind, text = _told(error, Path(message["folder"], "ranks"))
            bus().store.set(f"{key}/failed/{here.rank}", json.dumps([kind, text]))
            traceback.print_exception(error)
        finally:
            _leave()


@contextmanager
def followed() -> Iterator[None]:
    """Wraps the first process's work: at its end, however it comes, the others may go."""
    global _is_followed
    here = given_place()
    if here is None or here.world_size == 1 or _is_followed:
        yield
        return
    _is_followed = True
    try:
        yield
    finally:
        _is_followed = False
        bus().store.set(bus().next(), json.dumps(None))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(1)  # the store is ours: let the others read


def _with_others(job: Job, devices: int, lock: run_folder.Lock | None) -> Any:
    """The first process's part of a job on ranks that are there already."""
    key = bus().next()
    bus().lasting.set(f"folder/{key}", job.folder)
    bus().store.set(key, json.dumps({**asdict(job), "devices": devices}))
    try:
        _take_given(key, devices)
        return work(job, lock)
    except Exception as error:
        kind, text = _told(error, Path(job.folder, "ranks"))
        raise _first_cause(key, Failure(0, kind, text), error) from error
    finally:
        _leave()


def _take_given(key: str, devices: int) -> None:
    here = given_place()
    assert here is not None
    rank = here.rank // here.local_size * devices + here.local_rank
    store = _distributed().PrefixStore(key, bus().store)
    take(Place(rank, here.machines * devices, here.local_rank, devices), lambda: store)


def _first_cause(key: str, own: Failure, error: Exception) -> Exception:
    """The failure of another rank where it explains this one's."""
    here = given_place()
    assert here is not None
    if own.kind != "peer":
        return error
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        for rank in range(1, here.world_size):
            name = f"{key}/failed/{rank}"
            if bus().store.check([name]):
                kind, text = json.loads(bus().store.get(name))
                if kind != "peer":
                    return _OURS.get(kind, RankLost)(Failure(rank, kind, text).line)
        time.sleep(0.1)
    return RankLost(own.line)


def folder_of_earlier_attempt() -> Path | None:
    """Where torchrun's restart finds the run that the attempt before had begun."""
    here = given_place()
    if here is None or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) == 0:
        return None
    name = f"folder/job{bus().number + 1}"
    return Path(bus().lasting.get(name).decode()) if bus().lasting.check([name]) else None
