"""Worker processes that read and frame photographs ahead of time, and are replaced if they die.

Each worker has its own connection and writes to memory that it shares with this process. A worker that is killed or
stopped therefore holds no lock, leaves no partial message, and loses only its unfinished chunks.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import numpy as np
from numpy.typing import NDArray

from trainer.base import signals
from trainer.base.awake import AwakeClock
from trainer.base.errors import RankLost
from trainer.base.fork_server import start_fork_server
from trainer.data.photographs.decoding import BadPhotograph, load_libraries
from trainer.data.photographs.frames import apply_frame
from trainer.data.photographs.storage import Reader, SharedBytes, Ticket

CHUNK = 16  # photographs that a worker reads at a time
_LOSSES = 3  # worker deaths at the same chunk
_PATIENCE = 5.0  # minimum seconds for the server to start a worker, and to report its exit
_START = 60.0  # minimum seconds until a worker's first message
_POLL = 0.5  # seconds between two readings of the clock
_UNREAD_BYTES = 100_000  # sent to a worker and not answered: less than a socket buffers without blocking

logger = logging.getLogger(__name__)


@dataclass
class Chunk:
    """Photographs by number, their tickets for the reader, and their frames."""

    numbers: list[int]
    tickets: list[Ticket]
    frames: list[list[int]]
    slot: int = 0
    losses: int = 0
    message: bytes = b""
    is_done: bool = False
    problem: tuple[int, str] | None = None  # index of a photograph in the chunk, and its problem


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    last_answer: float  # on the pool's AwakeClock
    is_ready: bool = False
    unanswered: deque[Chunk] = field(default_factory=deque)

    def has_room(self, chunk: Chunk) -> bool:
        # the system charges a message with whole pages and some overhead
        taken = sum(2 * len(one.message) + 1024 for one in (*self.unanswered, chunk))
        return taken < _UNREAD_BYTES or not self.unanswered


class Workers:
    """`count` worker processes with at most `ahead` chunks in flight.

    A worker that this process waits for and that does not answer for `timeout` seconds, in which this process was not
    stopped itself, is considered dead. Raises OSError if there is no space for the output buffers.
    """

    def __init__(self, reader: Reader, size: int, *, count: int, ahead: int, timeout: float) -> None:
        self._memory = SharedBytes(ahead * CHUNK * 3 * size * size)
        self._slots = _as_slots(self._memory, size)
        self._arguments = (reader, self._memory, size)
        self._timeout, self._clock = timeout, AwakeClock()
        self._free = deque(range(ahead))
        self._backlog: deque[Chunk] = deque()
        start_server()
        self._workers: list[_Worker] = []
        # at interpreter exit, and on garbage collection
        self._finalizer = util.Finalize(self, _kill, (self._workers,), exitpriority=10)
        self._workers += [self._start() for _ in range(count)]

    def read(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, NDArray[np.uint8]]]:
        """Yield each chunk with its images (n, 3, size, size), in order; the next iteration overwrites them.

        Raises RankLost if workers die repeatedly at the same chunk.
        """
        under_way: deque[Chunk] = deque()
        while True:
            while self._free and (chunk := next(chunks, None)) is not None:
                chunk.slot = self._free.popleft()
                chunk.message = pickle.dumps((chunk.slot, chunk.tickets, chunk.frames))
                under_way.append(chunk)
                self._backlog.append(chunk)
            self._hand_out()
            if not under_way:
                return
            self._await(under_way[0])
            chunk = under_way.popleft()
            yield chunk, self._slots[chunk.slot, : len(chunk.tickets)]
            self._free.append(chunk.slot)

    def close(self) -> None:
        """Kill the workers; safe to call again."""
        self._finalizer()

    def _start(self) -> _Worker:
        for _ in range(_LOSSES):
            start_server()
            parent_end, child_end = _context().Pipe()
            process = _context().Process(target=_work, args=(child_end, *self._arguments), name="photographs")  # type: ignore[attr-defined]
            try:
                with _no_main_module(), _server_lives_only(self._timeout):
                    process.start()
                return _Worker(process, parent_end, self._clock.now())
            except (EOFError, ConnectionError):
                _kill_server()
                parent_end.close()
                logger.warning("the process that starts data workers died; starting a new one")
            finally:
                child_end.close()
        raise RankLost(f"the process that starts data workers died {_LOSSES} times")

    def _hand_out(self) -> None:
        while self._backlog:
            worker = min(self._workers, key=lambda one: len(one.unanswered))
            if not worker.has_room(self._backlog[0]):
                return
            self._send(worker, self._backlog.popleft())

    def _send(self, worker: _Worker, chunk: Chunk) -> None:
        worker.unanswered.append(chunk)
        with suppress(OSError):  # it is dead: detected when waiting for its answer
            worker.pipe.send_bytes(chunk.message)

    def _await(self, chunk: Chunk) -> None:
        began = self._clock.now()
        for worker in self._workers:
            worker.last_answer = began  # timeouts count from the start of this wait
        while not chunk.is_done:
            busy = {worker.pipe: worker for worker in self._workers if worker.unanswered}
            patience = min(self._deadline(worker) for worker in busy.values()) - self._clock.now()
            ready = wait(list(busy), timeout=min(max(0.0, patience), _POLL))
            for pipe in ready:
                self._receive(busy[pipe])  # type: ignore[index]
            if not ready:
                for worker in busy.values():
                    if self._clock.now() >= self._deadline(worker):
                        self._replace(worker, f"did not answer for {self._timeout:g} s")
            self._hand_out()

    def _deadline(self, worker: _Worker) -> float:
        return worker.last_answer + (self._timeout if worker.is_ready else max(self._timeout, _START))

    def _receive(self, worker: _Worker) -> None:
        try:
            while worker.pipe.poll():
                answer = worker.pipe.recv()
                worker.last_answer = self._clock.now()
                if worker.is_ready:
                    chunk = worker.unanswered.popleft()
                    chunk.is_done, chunk.problem = True, answer
                worker.is_ready = True
        except (EOFError, OSError):
            _join(worker.process)
            self._replace(worker, _how_it_ended(worker.process.exitcode))

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Replace a dead worker by a new process, which gets its unfinished chunks."""
        _kill([worker])
        unanswered = list(worker.unanswered)
        worker.unanswered.clear()
        if unanswered:
            unanswered[0].losses += 1
            if unanswered[0].losses == _LOSSES:
                raise RankLost(f"a data worker {reason}, {_LOSSES} times at the same photographs")
        logger.warning("a data worker %s; starting a new one", reason)
        fresh = self._start()
        worker.process, worker.pipe, worker.last_answer, worker.is_ready = (
            fresh.process,
            fresh.pipe,
            fresh.last_answer,
            False,
        )
        for chunk in unanswered:
            self._send(worker, chunk)


def start_server() -> None:
    """Start the fork server of the workers, which has loaded torch and has no threads."""
    context = _context()
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["trainer.data.photographs.workers", "PIL.JpegImagePlugin", "torchvision.io"])
        start_fork_server()


_answered: int | None = None  # process id of the last server that has started a worker


@contextmanager
def _server_lives_only(seconds: float) -> Iterator[None]:
    """Context manager that kills the fork server if it does not start a process in time, which ends the wait for it.

    A server that has not started any process yet may still be loading torch and has longer.
    """
    global _answered
    server = _server()
    if server is None:
        yield
        return
    watch = threading.Timer(max(seconds, _PATIENCE if server == _answered else _START), _kill_server)
    watch.daemon = True
    watch.start()
    try:
        yield
        _answered = server
    finally:
        watch.cancel()


def _server() -> int | None:
    """Process id of the fork server; multiprocessing has no public API for it."""
    from multiprocessing import forkserver

    pid: int | None = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    return pid


def _kill_server() -> None:
    """Kill the fork server and wait until it has exited; before that multiprocessing would consider it alive.

    Does not reap it: multiprocessing does that itself.
    """
    pid = _server()
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if hasattr(os, "waitid"):  # on macOS since Python 3.13
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def _context() -> multiprocessing.context.BaseContext:
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def _work(pipe: Connection, reader: Reader, memory: SharedBytes, size: int) -> None:
    """Main loop of a worker; ends when the parent process exits or kills it."""
    import torch

    signals.ignore()  # the parent process handles signals sent to the group
    signals.unblock()
    torch.set_num_threads(1)
    load_libraries()  # before the first message: slow if the server has not loaded them
    slots = _as_slots(memory, size)
    with suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            slot, tickets, frames = pickle.loads(pipe.recv_bytes())
            pipe.send(_read(reader, tickets, frames, slots[slot]))


def _read(
    reader: Reader, tickets: list[Ticket], frames: list[list[int]], out_n3SS: NDArray[np.uint8]
) -> tuple[int, str] | None:
    for index, (ticket, frame) in enumerate(zip(tickets, frames, strict=True)):
        try:
            apply_frame(reader(ticket), frame, out_n3SS[index])
        except BadPhotograph as error:
            return index, str(error)
    return None


def _as_slots(memory: SharedBytes, size: int) -> NDArray[np.uint8]:
    return memory.array.reshape(-1, CHUNK, 3, size, size)


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        if worker.process.is_alive():
            worker.process.kill()  # a stopped process reacts to no other signal
        worker.pipe.close()
    for worker in workers:
        _join(worker.process)


def _join(process: BaseProcess) -> None:
    """Wait for a process that is about to exit; if its fork server, which reports the exit, does not respond, kill the
    server."""
    process.join(_PATIENCE)
    if process.exitcode is None:
        _kill_server()
        process.join(1)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Context manager that keeps started processes from re-running the main module.

    A worker does not need it, and a script without `if __name__ == "__main__"` would train in every worker.
    """
    main = sys.modules["__main__"]
    kept: dict[str, object] = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    try:
        vars(main).update(dict.fromkeys(kept))
        yield
    finally:
        vars(main).update(kept)
