"""Ranks on this machine: starting, monitoring, signals, and restarts after a loss."""

import multiprocessing
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.base import signals
from trainer.base.awake import AwakeClock
from trainer.base.config import JsonObject
from trainer.base.errors import GearshiftError, Interrupted, RankLost
from trainer.base.fork_server import start_fork_server
from trainer.base.rank import RankInfo
from trainer.base.signals import stop_request
from trainer.launching.failures import GRACE, OURS, Failure, how_it_ended
from trainer.launching.job import Job
from trainer.launching.rank import rank_process
from trainer.reporting.console import say
from trainer.storage import run_folder
from trainer.storage.files import disk_errors

if TYPE_CHECKING:
    from trainer.parallelism.strategy import Strategy
    from trainer.training.finish import Result

# a rank sends a heartbeat every second; without one, a stopped process counts as lost after _STOPPED seconds, and any
# other after _SILENT, in which the launcher itself was not stopped
_STOPPED, _SILENT = 4.0, 60.0
# what every rank imports; the main one needs TensorBoard, too
_PRELOAD = (
    "trainer.assembly.assemble", "trainer.training.loop", "trainer.launching.rank", "torch.utils.tensorboard"
)  # fmt: skip


@dataclass
class Rank:
    """A rank as seen by the launcher: its process, and how it ended."""

    number: int
    process: BaseProcess
    pipe: Connection
    last_beat: float  # on the launcher's AwakeClock
    listens: bool = False  # whether it has sent a message, after which it handles signals
    forwarded: int | None = None  # the signal that was forwarded to it
    ended: bool = False
    result: JsonObject | None = None
    failure: "Failure | None" = None

    @property
    def pid(self) -> int:
        assert self.process.pid is not None  # it has been started
        return self.process.pid


class LocalRanks:
    """Starts the ranks of a job, monitors them, forwards signals, and restarts them if one is lost."""

    def __init__(self, job: Job, strategy: "Strategy") -> None:
        self._job, self._strategy = job, strategy
        self._folder = Path(job.folder)
        self._tolerates = strategy.tolerates
        self._ranks: list[Rank] = []
        self._clock = AwakeClock()

    def run(self) -> "Result":
        """Run the job; returns the Result of the main rank. Raises the error of a rank, or RankLost."""
        attempts = self._strategy.max_restarts + 1
        stop_request.can_wait = True
        scratch = Path(tempfile.mkdtemp(prefix="gearshift-"))
        try:
            for attempt in range(attempts):
                failure = self._attempt(scratch / f"store{attempt}", restarted=attempt > 0)
                if failure is None:
                    from trainer.training.finish import Result

                    assert self._ranks[0].result is not None
                    stop_request.advice = None  # the main rank has told how to continue
                    return Result(**self._ranks[0].result)
                signals.show_cursor()
                if failure.kind in OURS:
                    error = OURS[failure.kind](failure.line)
                    if failure.rank != 0:  # the main rank has only lost a connection
                        self._record(error)
                    raise error
                if stop_request.signum is not None:
                    raise Interrupted(stop_request.signum)
                if attempt + 1 < attempts:
                    say(f"{failure.line}; restart {attempt + 1} of {attempts - 1} from the last checkpoint")
                    (self._folder / run_folder.RESULT).unlink(missing_ok=True)
            assert failure is not None
            spent = f"no restarts left (parallelism.max_restarts={attempts - 1})"
            lost = RankLost(f"{failure.line}; {spent}; to continue: train resume {run_folder.quoted(self._folder)}")
            self._record(lost)
            raise lost
        finally:
            stop_request.can_wait = False
            self._kill()
            shutil.rmtree(scratch, ignore_errors=True)

    def _attempt(self, store: Path, restarted: bool) -> Failure | None:
        """Run all ranks to their end; returns the failure that caused the others, if any."""
        self._start(store, restarted)
        try:
            while not all(rank.ended for rank in self._ranks):
                self._listen()
                if self._ranks[0].result is not None:
                    self._let_end(None)  # the others need not finish
                    return None
                failure = self._failure()
                if failure is not None:
                    return self._let_end(failure)
            return self._failure()
        finally:
            self._kill()

    def _start(self, store: Path, restarted: bool) -> None:
        # hide torch's own messages about closed connections: the launcher reports lost ranks
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        context = multiprocessing.get_context("forkserver")
        own = [type(self._strategy).__module__, *self._strategy.preload]
        context.set_forkserver_preload([*_PRELOAD, *own])
        start_fork_server()  # with signals blocked: the launcher forwards them to the ranks
        count = int(self._strategy.devices)
        logs = self._folder / "ranks"
        with disk_errors(logs):
            logs.mkdir(exist_ok=True)
        job = Job(self._job.config, self._job.folder, self._job.resume or restarted, self._job.is_trial)
        environment = {key: value for key, value in os.environ.items() if key.startswith(("GEARSHIFT_", "HYDRA_"))}
        self._ranks = []
        for number in range(count):
            parent_end, child_end = context.Pipe()
            info = RankInfo(number, count, number, count)
            process = context.Process(
                target=rank_process,
                args=(child_end, info, str(store), job, environment, signals.heeded()),
                name=f"rank {number}",
            )
            process.start()
            child_end.close()
            self._ranks.append(Rank(number, process, parent_end, self._clock.now()))

    def _listen(self) -> None:
        """Receive messages of the ranks for up to 0.1 s, forward signals, and detect silent ranks."""
        for rank in self._running():
            if rank.listens and stop_request.signum not in (None, rank.forwarded):
                rank.forwarded = stop_request.signum
                os.kill(rank.pid, stop_request.signum)
        by_source: dict[Any, Rank] = {}
        for rank in self._running():
            by_source |= {rank.pipe: rank, rank.process.sentinel: rank}
        for source in wait(list(by_source), timeout=0.1):
            rank = by_source[source]
            if not rank.ended:
                self._receive(rank)
        now = self._clock.now()
        for rank in self._running():
            silent = now - rank.last_beat
            if silent > _STOPPED and _is_stopped(rank.pid):
                self._lost(rank, "was stopped")
            elif silent > _SILENT:
                self._lost(rank, f"did not respond for {_SILENT:.0f} s")

    def _receive(self, rank: Rank) -> None:
        try:
            while rank.pipe.poll():
                kind, *values = rank.pipe.recv()
                rank.last_beat, rank.listens = self._clock.now(), True
                if kind == "done":
                    rank.result, rank.ended = values[0], True
                elif kind == "failed":
                    self._failed(rank, Failure(rank.number, *values))
            if rank.ended or rank.process.exitcode is None:
                return
        except EOFError:
            self._join(rank)
        if not rank.ended:
            self._lost(rank, how_it_ended(rank.process.exitcode))

    def _join(self, rank: Rank) -> None:
        """Wait for a rank that is ending, until the fork server reports its exit code."""
        deadline = self._clock.now() + _SILENT
        while rank.process.exitcode is None and self._clock.now() < deadline:
            rank.process.join(0.1)

    def _lost(self, rank: Rank, how: str) -> None:
        rank.process.kill()
        self._failed(rank, Failure(rank.number, "lost", how))

    def _failed(self, rank: Rank, failure: Failure) -> None:
        rank.ended = True
        if self._tolerates(rank.number) and failure.kind not in OURS:
            say(f"{failure.line}; the others continue")
        else:
            rank.failure = failure

    def _failure(self) -> Failure | None:
        """Return the failure that caused the others."""
        found = [rank.failure for rank in self._ranks if rank.failure is not None]
        order = {"lost": 0, "raised": 2, "peer": 3}
        return min(found, key=lambda f: (order.get(f.kind, 1), f.rank), default=None)

    def _let_end(self, failure: Failure | None) -> Failure | None:
        """Wait a few seconds for the ranks to end by themselves; longer while the main rank locates a divergence."""
        deadline = self._clock.now() + GRACE
        main = self._ranks[0]
        while self._running() and (self._clock.now() < deadline or _names_a_layer(failure, main)):
            self._listen()
            failure = self._failure()
        return failure

    def _running(self) -> list[Rank]:
        return [rank for rank in self._ranks if not rank.ended]

    def _kill(self) -> None:
        for rank in self._ranks:
            if rank.process.is_alive() and rank.ended and rank.failure is None:
                rank.process.join(GRACE)
            rank.process.kill()
            rank.process.join()
            rank.pipe.close()
        self._ranks = [rank for rank in self._ranks if rank.result is not None or rank.failure is not None]

    def _record(self, error: GearshiftError) -> None:
        """Write `result.json` for a main rank that could not write it or did not know the cause."""
        from trainer.training.finish import record_failure

        record_failure(self._folder, self._job.config, error)


def _names_a_layer(failure: Failure | None, main: Rank) -> bool:
    return failure is not None and failure.kind == "Diverged" and not main.ended


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP or a debugger); False if the platform does not report it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False
