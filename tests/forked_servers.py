"""Parameter servers forked by the zygote, because starting Python and importing torch takes two seconds.

The process that starts a server sends the server's three standard descriptors to the zygote through a socket. The
server is a child of the zygote, but otherwise as started by `subprocess.Popen`.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def listen() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0gearshift-tests-{os.getpid()}")
    listener.listen()
    return listener


def install(listener: socket.socket) -> None:
    """Make the processes forked from this one request their servers through this socket."""
    from trainer.parallelism import parameter_server

    Server.address = listener.getsockname()
    parameter_server.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=Server, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )


class Server:
    """The subset of `subprocess.Popen` that Gearshift uses."""

    address = b""

    def __init__(self, command: list[str], *, env: dict[str, str], **options: object) -> None:
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        with socket.socket(socket.AF_UNIX) as zygote:
            zygote.connect(self.address)
            note = json.dumps({"environment": env, "cwd": str(Path.cwd())}).encode()
            zygote.send(len(note).to_bytes(4, "big"))
            socket.send_fds(zygote, [note], [theirs_in, theirs_out, 2])
            self.pid = int(zygote.recv(32))
        os.close(theirs_in)
        os.close(theirs_out)
        self.stdin, self.stdout = os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb")
        self._descriptor = os.pidfd_open(self.pid)

    def wait(self, timeout: float | None = None) -> None:
        if not select.select([self._descriptor], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("parameter server", timeout or 0.0)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def read_request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return environment and working directory of the server, and its three descriptors."""
    size = int.from_bytes(connection.recv(4), "big")
    text, descriptors, _, _ = socket.recv_fds(connection, size, 3)
    while len(text) < size:
        text += connection.recv(size - len(text))
    return json.loads(text), descriptors


def serve(note: dict[str, Any], descriptors: list[int]) -> int:
    """Run a server in a fork of the zygote; returns the exit code."""
    from trainer.parallelism.parameter_server import main

    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(note["cwd"])
    os.environ.clear()
    os.environ.update(note["environment"])
    sys.path[:] = note["environment"]["PYTHONPATH"].split(os.pathsep)
    main()
    return 0
