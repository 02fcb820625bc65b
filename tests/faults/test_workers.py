"""Processes that read photographs are killed, stopped and orphaned."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer import assemble, compose, fit
from trainer.base import awake
from trainer.base.errors import RankLost
from trainer.data import ImageFolder
from trainer.data.photographs import workers
from trainer.data.photographs.storage import Pixels
from trainer.data.photographs.workers import CHUNK, Chunk, Workers
from trainer.storage import checkpoint

TIMEOUT = 1.0


class Clock:
    """Replaces AwakeClock's `time`, and `wait` in the workers' module: time advances only while every process that is
    waited for is known not to answer. Load on the machine causes no timeouts, and tests do not wait for real ones.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.is_silent: Callable[[int], bool] = lambda pid: False
        self._pids: dict[Any, int] = {}
        start = Workers._start

        def start_and_see_it_begin(pool: Workers) -> Any:
            worker = start(pool)
            self._pids[worker.pipe] = worker.process.pid
            assert worker.pipe.poll(120)  # its first message, so that it is ready for chunks
            return worker

        monkeypatch.setattr(Workers, "_start", start_and_see_it_begin)
        # timeout for the workers' fork server, which a busy machine may delay
        monkeypatch.setattr(workers, "_PATIENCE", 120.0)
        monkeypatch.setattr(awake, "time", self)
        monkeypatch.setattr(workers, "wait", self.wait)

    def monotonic(self) -> float:
        return self.now

    def wait(self, pipes: Sequence[Connection], timeout: float) -> list[Any]:
        while not (ready := wait(pipes, 0.005)):
            if all(self.is_silent(self._pids[pipe]) for pipe in pipes):
                self.now += timeout
                return []
        return ready


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.RandomState(0)
    for part, count in (("train", 60), ("val", 4), ("test", 4)):
        for label in "ab":
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(random.randint(0, 256, (6, 8, 3), dtype=np.uint8))
                coarse.resize((80, 60)).save(root / part / label / f"{number}.jpg")
    return root


def read(folder: Path, disturb: Callable[[], object] = lambda: None, workers: int = 2) -> list[Tensor]:
    """Read twelve batches of 40 and act after the second."""
    images: Any = ImageFolder(str(folder), size=40, cache="none", workers=workers, timeout=TIMEOUT,
                              cache_dir=str(folder / "cache")).load().train.images_NCHW  # fmt: skip
    orders = [torch.randperm(120, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    batches = images.read([(part, None) for order in orders for part in order.split(40)])
    found = [next(batches), next(batches)]
    disturb()
    return [*found, *batches]


def readers() -> list[Any]:
    return [process for process in multiprocessing.active_children() if process.name == "photographs"]


def send(signum: int, count: int) -> list[int]:
    """Send a signal to workers; returns their process ids."""
    pids = [process.pid for process in readers()[:count]]
    for pid in pids:
        os.kill(pid, signum)
    return pids


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> list[Tensor]:
    return read(folder, workers=0)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not readers()


@pytest.mark.parametrize("count", [1, 2])
def test_killed_workers_are_replaced(
    folder: Path, undisturbed: list[Tensor], count: int, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    found = read(folder, lambda: send(signal.SIGKILL, count))
    assert_same(found, undisturbed)
    assert clock.now == 0, "nobody waits for the timeout"
    assert lines(caplog) == ["a data worker was killed by SIGKILL; starting a new one"] * count


@pytest.mark.parametrize("count", [1, 2])
def test_stopped_workers_are_replaced_after_the_timeout(
    folder: Path, undisturbed: list[Tensor], count: int, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    stopped: list[int] = []
    clock.is_silent = stopped.__contains__
    found = read(folder, lambda: stopped.extend(send(signal.SIGSTOP, count)))
    assert len(stopped) == count
    assert TIMEOUT <= clock.now <= count * TIMEOUT
    assert_same(found, undisturbed)
    assert lines(caplog) == ["a data worker did not answer for 1 s; starting a new one"] * count


def test_a_pool_that_was_suspended_itself_replaces_no_worker(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by SIGSTOP to the whole run, which wakes up before its workers have answered."""
    pool = Workers(Broken("works"), 4, count=2, ahead=6, timeout=5.0)
    nights = iter([3600.0] * 3)

    def sleep_and_wait(pipes: Sequence[Connection], timeout: float) -> list[Any]:
        night = next(nights, None)
        if night is None:
            return clock.wait(pipes, timeout)
        clock.now += night
        return []

    monkeypatch.setattr(workers, "wait", sleep_and_wait)
    chunks = (Chunk([n], [n], [[0, 0, 4, 4, 4, 4, 0, 0]]) for n in range(20))
    assert [int(images.max()) for _, images in pool.read(chunks)] == list(range(20))
    pool.close()
    assert clock.now == 3 * 3600 and lines(caplog) == []


def test_workers_leave_signals_to_the_whole_group_to_their_parent(
    folder: Path, undisturbed: list[Tensor], caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    def interrupt() -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            assert len(send(signum, 2)) == 2

    assert_same(read(folder, interrupt), undisturbed)
    assert lines(caplog) == []


def stop_the_server() -> None:
    pid = workers._server()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.usefixtures("clock")
def test_a_stopped_server_is_replaced_when_it_is_asked_for_a_worker(
    folder: Path, undisturbed: list[Tensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork server of the workers looks like a worker in a list of processes."""
    monkeypatch.setattr(workers, "_PATIENCE", 8.0)  # a shorter timeout could take a slow server for a stopped one
    assert_same(read(folder), undisturbed)
    before = workers._server()
    stop_the_server()
    assert_same(read(folder), undisturbed)
    assert lines(caplog) == ["the process that starts data workers died; starting a new one"]
    assert workers._server() != before


@pytest.mark.usefixtures("clock")
def test_a_stopped_server_does_not_keep_workers_from_being_closed(
    folder: Path, undisturbed: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 0.5)
    assert_same(read(folder, stop_the_server), undisturbed)
    assert_same(read(folder), undisturbed)  # from a new server


def test_a_server_that_is_lost_again_and_again_ends_the_run_with_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Process:
        def __init__(self, **_: Any) -> None: ...

        def start(self) -> None:
            raise EOFError("unexpected EOF")  # as after the death of the server

    monkeypatch.setattr(type(workers._context()), "Process", Process)
    with pytest.raises(RankLost, match="the process that starts data workers died 3 times"):
        read(folder)
    assert len(lines(caplog)) == 3


class Broken:
    """A reader that kills its process, or hangs and leaves a file named after the process id, at photograph 7."""

    def __init__(self, how: str, folder: Path | None = None) -> None:
        self.how, self.folder = how, folder

    def __call__(self, ticket: int) -> Pixels:
        if ticket == 7 and self.how == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if ticket == 7 and self.how == "hangs" and self.folder is not None:
            (self.folder / str(os.getpid())).touch()
            time.sleep(1000)
        return np.full((4, 4, 3), ticket, dtype=np.uint8)


@pytest.mark.parametrize(
    ("how", "message", "seconds"),
    [("dies", "was killed by SIGSEGV", 0.0), ("hangs", "did not answer for 0.5 s", 3 * 0.5)],
)
def test_what_ends_every_worker_ends_the_run_with_one_line(
    how: str, message: str, seconds: float, caplog: pytest.LogCaptureFixture, clock: Clock, tmp_path: Path
) -> None:
    clock.is_silent = lambda pid: (tmp_path / str(pid)).exists()
    pool = Workers(Broken(how, tmp_path), 4, count=2, ahead=6, timeout=0.5)
    frame = [0, 0, 4, 4, 4, 4, 0, 0]
    chunks = (Chunk([n], [n], [frame]) for n in range(20))
    done = []
    with pytest.raises(RankLost, match=rf"^a data worker {message}, 3 times at the same photographs$") as caught:
        for chunk, images in pool.read(chunks):
            done.append((chunk.numbers[0], int(images.max())))
    assert clock.now == seconds
    assert caught.value.exit_code == 71
    assert done == [(n, n) for n in range(7)]
    assert len(lines(caplog)) == 2
    pool.close()
    pool.close()
    assert not readers()


def test_a_stopped_worker_does_not_block_what_is_sent_to_it(clock: Clock) -> None:
    pool = Workers(Broken("works"), 4, count=2, ahead=2000, timeout=TIMEOUT)  # much more than a socket buffers
    frame = [0, 0, 4, 4, 4, 4, 0, 0]
    expected = [[n % 250 for n in range(start, start + CHUNK)] for start in range(0, 2100 * CHUNK, CHUNK)]
    stopped = pool._workers[0].process.pid
    clock.is_silent = lambda pid: pid == stopped
    os.kill(stopped, signal.SIGSTOP)
    chunks = (Chunk(tickets, tickets, [frame] * CHUNK) for tickets in expected)
    assert [images[:, 0, 0, 0].tolist() for _, images in pool.read(chunks)] == expected
    assert clock.now == TIMEOUT
    pool.close()


SCRIPT = """
import multiprocessing, os, sys, time
import torch
from trainer.data import ImageFolder

if __name__ == "__main__":
    images = ImageFolder(sys.argv[1], size=40, cache="none", workers=2, cache_dir=sys.argv[1] + "/cache").load()
    batches = images.train.images_NCHW.read([(torch.arange(120), None)] * 9)
    next(batches)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    how = sys.argv[2]
    if how == "waits":
        time.sleep(1000)
    if how == "raises":
        raise SystemExit(3)
    if how == "leaves":
        os._exit(3)
"""


def started(folder: Path, script: Path, how: str) -> tuple[subprocess.Popen[str], list[int]]:
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, script, folder, how], stdout=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    return process, pids


def is_running(pid: int) -> bool:
    """Whether a process is running; zombies are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("raises", 3), ("leaves", 3), ("killed", -9)])
def test_no_worker_outlives_its_parent(folder: Path, tmp_path: Path, how: str, code: int) -> None:
    process, pids = started(folder, tmp_path / "script.py", "waits" if how == "killed" else how)
    if how == "killed":
        process.kill()
    assert process.wait(120) == code
    assert_gone(pids)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_stopped_worker_goes_with_its_parent(folder: Path, tmp_path: Path) -> None:
    process, pids = started(folder, tmp_path / "script.py", "waits")
    os.kill(pids[0], signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) != 0
    assert_gone(pids)
    assert process.stdout is not None
    process.stdout.close()


TRAINING = ["data=image_folder", "data.size=224", "data.cache=none", f"data.timeout={TIMEOUT}", "model=linear",
            "batch_size=20", "epochs=4", "threads=1"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_whose_worker_is_lost_in_mid_epoch_ends_with_the_same_bits(
    folder: Path,
    tmp_path: Path,
    signum: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
) -> None:
    overrides = [*TRAINING, f"data.root={folder}", f"data.cache_dir={tmp_path}"]
    for name in ("whole", "disturbed"):
        (tmp_path / name).mkdir()
    fit(assemble(compose(overrides), tmp_path / "whole"))
    caplog.clear()
    run = assemble(compose(overrides), tmp_path / "disturbed")
    lost: list[int] = []
    clock.is_silent = lost.__contains__
    send = Workers._send

    def lose_and_send(self: Workers, worker: Any, chunk: Chunk) -> None:
        if run.step == 8 and not lost:  # in the second epoch, with a chunk that no other worker has
            lost.append(worker.process.pid)
            os.kill(lost[0], signum)
        send(self, worker, chunk)

    monkeypatch.setattr(Workers, "_send", lose_and_send)
    assert fit(run).status == "completed"
    assert clock.now == (TIMEOUT if signum == signal.SIGSTOP else 0)
    assert lost and not readers()
    assert sum("starting a new one" in line for line in lines(caplog)) == 1
    one, other = (checkpoint.load(tmp_path / name / "checkpoints/last.pt") for name in ("whole", "disturbed"))
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
