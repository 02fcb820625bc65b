"""Parameter servers: each process holds some of the parameters and steps when a worker pushes gradients.

Messages consist of JSON and the bytes of tensors; nothing in them is executed. A server exits when the pipe to the
process that started it is closed.
"""

import json
import math
import os
import pickle
import secrets
import select
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.base import signals
from trainer.base.config import Json
from trainer.base.torch_optimizers import plain_step
from trainer.base.trusted_packages import see_trusted_packages
from trainer.contracts import ParameterGroup
from trainer.parallelism.strategy import PeerLost

Address = tuple[str, int]
Attributes = dict[str, Any]  # of an object, by name
_TENSOR = "tensor"  # a mapping with only this key represents a tensor: dtype, shape, offset in bytes
_ALIGNMENT = 16


class ServerLost(PeerLost):
    """A parameter server does not answer."""


# --- messages ---------------------------------------------------------------------------------------------


Message = dict[str, Any]
"""What workers and servers tell each other, by name: nested dicts and lists of numbers, text and tensors."""


def encode(message: Message) -> bytes:
    """Serialize nested dicts and lists of numbers, strings and tensors: length of the JSON, JSON, tensors."""
    blocks: list[bytes | memoryview] = []
    end = 0

    def plain(value: object) -> Json:
        nonlocal end
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            padding = -len(data) % _ALIGNMENT
            blocks.extend((data.numpy().data, bytes(padding)))
            start, end = end, end + len(data) + padding
            return {_TENSOR: [str(value.dtype).removeprefix("torch."), list(value.shape), start]}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    text = json.dumps(plain(message)).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join((len(text).to_bytes(_ALIGNMENT, "little"), text, *blocks))


def decode(data: bytes) -> Message:
    """Deserialize the result of `encode`; tuples become lists."""
    size = int.from_bytes(data[:_ALIGNMENT], "little")
    body = torch.frombuffer(bytearray(data), dtype=torch.uint8)[_ALIGNMENT + size :]

    def rich(value: Json) -> object:
        if isinstance(value, list):
            return [rich(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.keys() != {_TENSOR}:
            return {key: rich(item) for key, item in value.items()}
        name, shape, start = value[_TENSOR]
        dtype = getattr(torch, name)
        return body[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    message = rich(json.loads(data[_ALIGNMENT : _ALIGNMENT + size]))
    assert isinstance(message, dict)
    return message


def settings(group: ParameterGroup) -> ParameterGroup:
    """Return the settings of a parameter group that can be sent to a server: numbers, flags, strings, lists of them."""
    return {key: value for key, value in group.items() if key not in ("params", "name") and _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


# --- a server ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """Setup that a server receives through its pipe: its parameters, and the optimizer to reconstruct for them.

    `groups` contains, for every parameter group, its settings and the indices of this server's parameters.
    """

    key: bytes
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    optimizer: type[Optimizer]
    attributes: Attributes
    groups: list[tuple[ParameterGroup, list[int]]]

    @classmethod
    def of(cls, key: bytes, optimizer: Optimizer, parameters: Sequence[Tensor]) -> "Setup":
        """Create the setup of a server that holds these parameters of the optimizer."""
        index = {id(parameter): number for number, parameter in enumerate(parameters)}
        attributes = {
            name: value
            for name, value in vars(optimizer).items()
            if name not in ("state", "param_groups") and not name.startswith("_optimizer_")  # hooks
        }
        groups = [
            (
                {name: value for name, value in group.items() if name != "params"},
                [index[id(parameter)] for parameter in group["params"] if id(parameter) in index],
            )
            for group in optimizer.param_groups
        ]
        shapes, dtypes = [tuple(p.shape) for p in parameters], [p.dtype for p in parameters]
        return cls(key, shapes, dtypes, type(optimizer), attributes, groups)


class ParameterServer:
    """Parameters and their optimizer, with one thread per connected worker.

    The main worker (rank 0) is always answered. After a `load`, the others wait until it has taken a step, and
    gradients that they push meanwhile are dropped, because they belong to weights that have been replaced.
    """

    def __init__(self, setup: Setup) -> None:
        self._parameters = [
            nn.Parameter(torch.zeros(shape, dtype=dtype))
            for shape, dtype in zip(setup.shapes, setup.dtypes, strict=True)
        ]
        self._groups: list[ParameterGroup] = [
            {**given, "params": [self._parameters[index] for index in indices]} for given, indices in setup.groups
        ]
        optimizer = setup.optimizer.__new__(setup.optimizer)
        optimizer.__setstate__(
            {
                **setup.attributes,
                "state": defaultdict(dict),
                "param_groups": [group for group in self._groups if group["params"]],
            }
        )
        self._optimizer = optimizer
        self._changed = threading.Condition()
        self._is_open = False
        self._step = 0  # the main worker's
        self._updates = 0
        self._staleness: list[int] = []

    def serve(self, connection: Connection) -> None:
        """Answer one worker until it disconnects."""
        with connection:
            try:
                _without_delay(connection)
                is_main = decode(connection.recv_bytes())["rank"] == 0
                seen = 0
                while True:
                    message = decode(connection.recv_bytes())
                    with self._changed:
                        answer = self._answer(message, is_main, seen)
                        seen = self._updates
                    if answer is not None:
                        connection.send_bytes(answer)
            except (EOFError, OSError):
                pass

    def _answer(self, message: Message, is_main: bool, seen: int) -> bytes | None:
        """Handle a message; `seen` is the number of updates that the worker's weights include."""
        kind = message["kind"]
        if kind == "publish":
            self._step, self._is_open = message["step"], True
            self._changed.notify_all()
            return None
        if kind == "optimizer":
            return encode({"state": [self._optimizer.state.get(p, {}) for p in self._parameters]})
        if kind == "staleness":
            answer = encode({"staleness": self._staleness})
            self._staleness = []
            return answer
        if kind == "load":
            self._load(message)
        if kind == "push" and (is_main or self._is_open):
            self._update(message, seen)
        if not is_main:
            self._changed.wait_for(lambda: self._is_open)
        return encode({"weights": self._parameters, "step": self._step})

    def _update(self, message: Message, seen: int) -> None:
        for parameter, gradient in zip(self._parameters, message["gradients"], strict=True):
            parameter.grad = gradient
        self._set_groups(message["groups"])
        plain_step(self._optimizer, None)
        self._staleness.append(self._updates - seen)
        self._updates += 1

    def _load(self, message: Message) -> None:
        self._is_open = False
        if "weights" in message:
            with torch.no_grad():
                for parameter, weight in zip(self._parameters, message["weights"], strict=True):
                    parameter.copy_(weight)
            return
        self._set_groups(message["groups"])
        self._optimizer.state.clear()
        for parameter, state in zip(self._parameters, message["state"], strict=True):
            if state:
                self._optimizer.state[parameter] = state

    def _set_groups(self, groups: list[ParameterGroup]) -> None:
        for group, given in zip(self._groups, groups, strict=True):
            for name, value in given.items():
                group[name] = tuple(value) if isinstance(value, list) else value


def main() -> None:
    """Run a server process: read the setup from stdin, print the port, and exit when stdin is closed."""
    signals.ignore()  # the main worker, which may need the weights, ends the server
    signals.unblock()
    torch.set_num_threads(1)
    see_trusted_packages()  # the optimizer may be a class of the user's
    try:
        setup: Setup = pickle.load(sys.stdin.buffer)
    except EOFError:
        return  # the run ended before it set the server up
    server = ParameterServer(setup)
    listener = Listener(("127.0.0.1", 0), backlog=64, authkey=setup.key)
    threading.Thread(target=_accept, args=(listener, server), daemon=True).start()
    print(listener.address[1], flush=True)
    sys.stdin.buffer.read()
    os._exit(0)


def _accept(listener: Listener, server: ParameterServer) -> None:
    while True:
        try:
            connection = listener.accept()
        except (AuthenticationError, EOFError, OSError):
            continue  # an unauthorized client, or a worker that died while connecting
        threading.Thread(target=server.serve, args=(connection,), daemon=True).start()


def _without_delay(connection: Connection) -> None:
    """Set TCP_NODELAY: send small packets immediately instead of waiting for an acknowledgment."""
    with socket.socket(fileno=os.dup(connection.fileno())) as again:
        again.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# --- clients ----------------------------------------------------------------------------------------------


class ServerProcess:
    """Handle of the main worker on a server process, which ends with it."""

    def __init__(self) -> None:
        path = os.pathsep.join(entry or "." for entry in sys.path)
        with signals.blocked():  # until it ignores them
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from trainer.parallelism.parameter_server import main; main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # so that Ctrl-C does not reach the server
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def set_up(self, setup: Setup) -> None:
        """Send the setup. Raises ServerLost."""
        assert self._process.stdin is not None
        try:
            pickle.dump(setup, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ServerLost("a parameter server ended before it was set up") from error

    def address(self, timeout: float) -> Address:
        """Wait until the server listens, and return its address. Raises ServerLost."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise ServerLost(f"a parameter server did not start within {timeout:g} s")
        return "127.0.0.1", int(line)

    def close(self) -> None:
        """End the process; idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Servers:
    """The connections of one worker to all servers."""

    def __init__(self, addresses: Sequence[Address], key: bytes, rank: int, timeout: float | None) -> None:
        """Connect; `timeout` is in seconds per answer, None: no limit while the server lives. Raises ServerLost."""
        self._timeout = timeout
        self._connections: list[Connection] = []
        for number, address in enumerate(addresses):
            try:
                connection = Client(address, authkey=key)
                _without_delay(connection)
                connection.send_bytes(encode({"rank": rank}))
            except (EOFError, OSError) as error:
                self.close()
                raise self._lost(number, "is gone") from error
            self._connections.append(connection)

    def __len__(self) -> int:
        return len(self._connections)

    def ask(self, messages: Sequence[Message]) -> list[Message]:
        """Send `messages[i]` to server i and return the answers. Raises ServerLost."""
        self.tell(messages)
        return [self._receive(number) for number in range(len(messages))]

    def tell(self, messages: Sequence[Message]) -> None:
        """Send `messages[i]` to server i, without an answer. Raises ServerLost."""
        for number, message in enumerate(messages):
            try:
                self._connections[number].send_bytes(encode(message))
            except OSError as error:
                raise self._lost(number, "is gone") from error

    def _receive(self, number: int) -> Message:
        connection = self._connections[number]
        try:
            if not connection.poll(self._timeout):
                raise self._lost(number, f"has not answered for {self._timeout:g} s")
            return decode(connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._lost(number, "is gone") from error

    def _lost(self, number: int, how: str) -> ServerLost:
        return ServerLost(f"parameter server {number} {how}")

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections = []


def new_key() -> bytes:
    """Return a random secret shared by the processes of one run."""
    return secrets.token_bytes(32)
