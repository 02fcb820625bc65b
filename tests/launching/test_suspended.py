"""Runs that are suspended as a whole, and ranks that are suspended alone.

`python -m tests.launching.test_suspended 5` tries every case five times and prints what it measures.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launching.test_launching import Process, at_gate, children, end, open_gate, start_gated
from trainer import compose
from trainer.base import awake
from trainer.configuration.resolve import resolve
from trainer.launching import local
from trainer.launching.job import Job
from trainer.launching.local import _SILENT, _STOPPED, LocalRanks, Rank

TRACED = "import ctypes, os, signal; ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), signal.SIGSTOP)"


class Sleeper:
    """A process in place of a rank, which sends nothing."""

    def __init__(self, code: str = "import time; time.sleep(1000)") -> None:
        self._process = subprocess.Popen([sys.executable, "-S", "-c", code])
        self.pid, self.sentinel, self.exitcode = self._process.pid, os.pidfd_open(self._process.pid), None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait_until(self, states: str) -> "Sleeper":
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in states:
            time.sleep(0.001)
        return self


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets by how many seconds the time advances in each wait of the launcher."""
    now, gap = [0.0], [0.0]

    class Time:
        monotonic = staticmethod(lambda: now[0])

    def wait(sources: list[object], timeout: float) -> list[object]:
        now[0] += gap[0]
        return []

    monkeypatch.setattr(awake, "time", Time)
    monkeypatch.setattr(local, "wait", wait)
    return lambda seconds: gap.__setitem__(0, seconds)


@pytest.fixture
def sleeper() -> Iterator[Callable[[str], Sleeper]]:
    """Makes a process that is running (S), stopped (T) or traced (t)."""
    started: list[Sleeper] = []

    def make(state: str) -> Sleeper:
        started.append(Sleeper(TRACED) if state == "t" else Sleeper())
        if state == "T":
            os.kill(started[0].pid, signal.SIGSTOP)
        return started[0].wait_until("SR" if state == "S" else state)

    yield make
    for process in started:
        process.kill()
        os.close(process.sentinel)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("state", "gap", "limit", "how"),
    [
        ("S", 0.125, _SILENT, f"did not respond for {_SILENT:.0f} s"),
        ("T", 0.125, _STOPPED, "was stopped"),
        ("t", 0.125, _STOPPED, "was stopped"),
        # the launcher was stopped too: three times for an hour are three seconds
        ("S", 3600, 3 * 3600, None),
        ("T", 3600, 3 * 3600, None),
        ("t", 3600, 3 * 3600, None),
    ],
)
def test_silence_counts_while_the_launcher_is_awake(
    state: str, gap: float, limit: float, how: str | None, later: Callable[[float], None],
    sleeper: Callable[[str], Sleeper], tmp_path: Path,
) -> None:  # fmt: skip
    config = compose(["parallelism=ddp", "parallelism.devices=2", "device=cpu"])
    ranks = LocalRanks(Job(config, str(tmp_path), resume=False, is_trial=False), resolve(config).strategy)
    silent = Rank(1, sleeper(state), None, 0.0)  # type: ignore[arg-type]  # nothing is received
    ranks._ranks = [silent]
    later(gap)
    for _ in range(round(limit / gap)):
        ranks._listen()
        assert silent.failure is None
    later(0.125)
    ranks._listen()
    ranks._listen()
    assert (silent.failure and silent.failure.text) == how


# --- the same with real runs --------------------------------------------------------------------------------


def suspend(pids: list[int], seconds: float) -> None:
    for signum in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, signum)
        if signum == signal.SIGSTOP:
            time.sleep(seconds)


def begin(folder: Path) -> tuple[Process, list[int]]:
    """Start a run that trains until it is stopped; returns its ranks."""
    process = start_gated(folder, [10], "steps=1000000")
    ranks = at_gate(process, folder, 10)
    open_gate(folder, 10)
    return process, ranks


def survives(folder: Path, seconds: float, whole: bool) -> None:
    """Suspend the whole tree, launcher first, or one rank, and assert that the run goes on."""
    process, ranks = begin(folder)
    suspend([process.pid, *children(process.pid)] if whole else ranks[1:], seconds)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=_STOPPED + 1)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert (code, err) == (130, ""), out
    assert "rank 1:" not in out, out


def is_reported(folder: Path, seconds: float) -> float:
    """Suspend one rank; returns the seconds from then until the run has ended with a line about it."""
    process, ranks = begin(folder)
    os.kill(ranks[1], signal.SIGSTOP)
    stopped = time.monotonic()
    code, _, err = end(process, seconds)  # killed before it is continued
    assert code == 71 and err.startswith("error: rank 1: was stopped;") and len(err.splitlines()) == 1, err
    return time.monotonic() - stopped


@pytest.mark.slow
def test_a_run_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    survives(tmp_path, _STOPPED + 2, whole=True)


@pytest.mark.slow
def test_a_rank_suspended_for_three_seconds_goes_on(tmp_path: Path) -> None:
    survives(tmp_path, 3, whole=False)


def main(times: int) -> None:
    for number in range(times):
        for name, seconds in (("whole", 3), ("whole", 6), ("whole", 62), ("rank", 3), ("rank", 6), ("rank", 62)):
            with tempfile.TemporaryDirectory() as folder:
                if name == "whole" or seconds == 3:
                    survives(Path(folder), seconds, name == "whole")
                    outcome = "goes on"
                else:
                    outcome = f"reported after {is_reported(Path(folder), max(10, seconds)):.1f} s"
            print(f"{number + 1}: {name} suspended for {seconds} s: {outcome}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
