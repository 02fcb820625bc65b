"""Processes for tests, forked from one that has imported everything: a start takes tenths of a second, not five.

Tests of the start itself (imports, the installed program, a signal while Python loads) need a real start.
"""

import atexit
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIME_LIMIT = 300.0
# one thread, so that the last bit does not depend on the load of the machine
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Fork:
    """A process forked by a Zygote, with methods of `subprocess.Popen` and `output()`."""

    def __init__(self, zygote: "Zygote", pid: int, out: Path, err: Path) -> None:
        self.pid, self._zygote, self._out, self._err = pid, zygote, out, err
        self.returncode: int | None = None
        # the process stays a zombie until it is reaped, so its number is not reused
        self._descriptor = os.pidfd_open(pid)

    def wait(self, seconds: float = TIME_LIMIT) -> int | None:
        """Exit code (minus the signal number if killed by a signal); None if it still runs after `seconds`."""
        if self.returncode is None and select.select([self._descriptor], [], [], max(0.0, seconds))[0]:
            self.returncode = self._zygote.reap(self.pid)
            os.close(self._descriptor)
        return self.returncode

    def poll(self) -> int | None:
        return self.wait(0)

    def communicate(self, timeout: float = TIME_LIMIT) -> tuple[str, str]:
        """Wait for the end; returns stdout and stderr. Raises TimeoutExpired."""
        if self.wait(timeout) is None:
            raise subprocess.TimeoutExpired(["train"], timeout)
        return self._out.read_text(errors="surrogateescape"), self._err.read_text()

    def output(self) -> str:
        """Output so far."""
        return self._out.read_text() if self._out.exists() else ""

    def errors(self) -> str:
        """Stderr so far, if separate."""
        return self._err.read_text()

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()


class Zygote:
    """A process that has imported everything and forks `train` with any command line."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/faults/zygote.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": python_path()},
        )  # fmt: skip
        self._is_ready = False

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        sitting: int = 0,
        *,
        fault: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        terminal: str | None = None,
        apart: bool = False,
        out: Path | None = None,
        session: bool = False,
        spare: bool = False,
        code: str | None = None,
        pictures: bool = False,
    ) -> Fork:
        """Run `train` with these arguments in a folder.

        `sitting` counts the starts of one run; `fault`: see `faults.install`; `terminal`: path of the controlling
        terminal; `apart`: keep stderr separate from stdout; `out`: file for stdout; `session`: start a new session;
        `spare`: fork the fork server that multiprocessing would start, too; `code`: Python to run instead of `train`;
        `pictures`: draw the pictures (by default, small placeholders are written instead).
        """
        return self._start(
            {
                "arguments": list(arguments), "cwd": str(folder), "sitting": sitting, "fault": fault,
                "environment": dict(os.environ) | ENVIRONMENT | (environment or {}), "terminal": terminal,
                "session": session, "spare": spare, "code": code, "pictures": pictures,
            },
            apart,
            out,
        )  # fmt: skip

    def call(self, function: Callable[..., Any], *arguments: Any) -> Fork:
        """Call a function in a separate process with this process's import path."""
        payload = self._folder / f"call-{self._count}"
        payload.write_bytes(pickle.dumps((function, arguments)))
        job = {"call": str(payload), "path": sys.path, "cwd": str(Path.cwd()), "environment": dict(os.environ)}
        return self._start(job, apart=False)

    def reap(self, pid: int) -> int:
        return os.waitstatus_to_exitcode(int(self._ask({"reap": pid})))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(TIME_LIMIT)

    def _start(self, job: dict[str, Any], apart: bool, out: Path | None = None) -> Fork:
        self._count += 1
        if out is None:
            out = self._folder / f"output-{self._count}"
            out.touch()
        err = self._folder / f"errors-{self._count}" if apart else out
        err.touch()
        return Fork(self, int(self._ask(job | {"out": str(out), "err": str(err)})), out, err)

    def _ask(self, question: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        if not self._is_ready:
            assert self._read() == "ready"
            self._is_ready = True
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@cache
def shared() -> Zygote:
    """The Zygote of this process, shared by all its tests."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    zygote = Zygote(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(zygote.close)
    return zygote


def train(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A complete run of `train` in a folder, including its ranks; the result is like that of `subprocess.run`."""
    process = shared().start(arguments, folder, environment=environment, apart=True, spare=True)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(["train", *arguments], process.returncode, out, err)


def python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
