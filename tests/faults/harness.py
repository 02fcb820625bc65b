"""Starts, kills and compares runs: separate processes, or forks of the zygote."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util.tensor_util import make_ndarray

from tests.forks import ENVIRONMENT, TIME_LIMIT, Zygote, python_path


def but(arguments: Sequence[str], *changes: str) -> list[str]:
    """Replace or add overrides; Hydra accepts each key only once."""
    keys = {change.partition("=")[0] for change in changes}
    return [argument for argument in arguments if argument.partition("=")[0] not in keys] + list(changes)


# batch norm, dropout, ragged micro-batches and clipping all affect the result; the intervals never coincide
PARTS = [
    "threads=1", "steps=66", "batch_size=62", "accumulate=3", "clip_norm=0.5",
    "every.log=7step", "every.checkpoint=5step", "every.evaluate=11step",
]  # fmt: skip
MLP = ["model=mlp", "model.norm=batch", "model.drop_prob=0.2", "model.hidden=[16]", "preprocessing=standardize"]
LENET = ["model=lenet", "model.channels=[4,6]", "model.hidden=[16]", "model.drop_prob=0.2", "augmentation=crop",
         "augmentation.crop.padding=1"]  # fmt: skip
CONFIGURATIONS: dict[str, list[str]] = {
    "adamw": [*PARTS, *MLP, "optimizer=adamw", "schedule=cosine_warmup", "sampler=hard_examples"],
    # improvements become too small to count, so that both the plateau schedule and early stopping take effect
    "momentum": but(
        [*PARTS, *LENET], "every.evaluate=6step", "optimizer=momentum", "optimizer.lr=0.1",
        "schedule=plateau", "schedule.patience=0", "schedule.min_delta=0.3",
        "early_stopping.patience=3", "early_stopping.min_delta=0.3",
    ),
    "bf16": [*PARTS, *LENET, "precision=bf16", "optimizer=momentum", "optimizer.lr=0.1", "schedule=linear_warmup"],
    # weights this large overflow fp16 until the loss scale has decreased
    "fp16": but(
        [*PARTS, *MLP], "model.norm=none", "precision=fp16", "initializer=normal", "initializer.std=1",
        "augmentation=everything", "sampler=with_replacement",
    ),
}  # fmt: skip


# --- processes --------------------------------------------------------------------------------------------


class Process(Protocol):
    """A started run."""

    pid: int

    def wait(self, seconds: float = TIME_LIMIT) -> int | None:
        """Exit code (minus the signal number if killed by a signal); None if it still runs after `seconds`."""
        ...

    def output(self) -> str: ...


class Launcher(Protocol):
    """Starts `train` in a folder; `sitting` is the number of earlier starts of the same run."""

    def start(self, arguments: Sequence[str], folder: Path, sitting: int = 0, **more: Any) -> Process: ...


class RealProcess:
    """`python -m trainer` in its own process group."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> None:
        self._log = folder / f".output-{time.monotonic_ns()}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer", *arguments],
                cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": python_path()} | (environment or {}),
            )  # fmt: skip
        self.pid = self._process.pid

    def wait(self, seconds: float = TIME_LIMIT) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def output(self) -> str:
        return self._log.read_text()


class RealProcesses:
    def start(self, arguments: Sequence[str], folder: Path, sitting: int = 0, **more: Any) -> RealProcess:
        return RealProcess(arguments, folder, **more)


def finish(process: Process) -> int:
    """Wait for the end and return the exit code. A run that hangs is killed and fails the test."""
    code = process.wait()
    if code is None:
        os.kill(process.pid, signal.SIGKILL)
        raise AssertionError(f"the run hangs:\n{process.output()}")
    return code


def train(zygote: Zygote, folder: Path, *arguments: str, **more: Any) -> tuple[int, str]:
    """A complete run in `folder`: exit code and output."""
    process = zygote.start(arguments, folder, **more)
    return finish(process), process.output()


# --- moments to kill at -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """A signal that is sent `delay` seconds after the run has reached a phase."""

    signum: int
    phase: str
    delay: float
    lines: int = 0

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        where = f"{self.phase} {self.lines}" if self.phase == "line" else self.phase
        return f"{name} {1000 * self.delay:.1f} ms after {where}"

    def send(self, process: Process, folder: Path) -> bool:
        """Wait for the phase and send the signal; returns whether the run was still alive."""
        reached = {
            "start": lambda: True,
            "folder": (folder / "config.yaml").is_file,
            "line": lambda: _num_lines(folder / "metrics.jsonl") >= self.lines,
        }[self.phase]
        end = time.monotonic() + TIME_LIMIT
        while not reached() and time.monotonic() < end:
            if process.wait(0) is not None:
                return False
        process.wait(self.delay)
        while self.signum == signal.SIGINT and not _handles(process.pid, signal.SIGTERM) and time.monotonic() < end:
            # before our handlers are installed, SIGINT only raises KeyboardInterrupt
            if process.wait(0.002) is not None:
                return False
        if process.wait(0) is not None:
            return False
        with suppress(ProcessLookupError):
            os.kill(process.pid, self.signum)
        return True


def _handles(pid: int, signum: int) -> bool:
    """Whether a process handles a signal. Python handles SIGINT from the start, SIGTERM once our handlers exist."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")), 0)
    return bool(caught >> (signum - 1) & 1)


def random_kill(generator: random.Random, seconds_to_start: float, lines_now: int, lines_at_end: int) -> Kill:
    """A random moment during start-up, just after the folder appears, in training, or at the end."""
    signum = generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    phase = generator.choice(["start", "folder", "line", "line", "line", "end"])
    if phase == "folder" and lines_now == 0:
        return Kill(signum, phase, generator.choice([0, generator.uniform(0, 0.2)]))
    if phase == "line" and lines_now < lines_at_end:
        return Kill(signum, phase, generator.uniform(0, 0.03), generator.randint(lines_now + 1, lines_at_end))
    if phase == "end" and lines_now < lines_at_end:
        return Kill(signum, "line", generator.uniform(0, 1.0), lines_at_end)
    return Kill(signum, "start", generator.uniform(0, seconds_to_start))


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run, and the seconds until its first line of metrics."""

    folder: Path
    seconds_to_start: float

    @property
    def num_lines(self) -> int:
        return _num_lines(self.folder / "metrics.jsonl")


def undisturbed(launcher: Launcher, arguments: Sequence[str], folder: Path) -> Reference:
    """Run to the end without interruption."""
    begin = time.monotonic()
    process = launcher.start([*arguments, f"hydra.run.dir={folder}"], folder.parent)
    while _num_lines(folder / "metrics.jsonl") == 0 and process.wait(0.01) is None:
        pass
    seconds = time.monotonic() - begin
    assert finish(process) == 0, process.output()
    return Reference(folder, seconds)


def storm(
    launcher: Launcher, arguments: Sequence[str], folder: Path, reference: Reference, seed: int, num_kills: int
) -> list[str]:
    """Kill a run `num_kills` times at random moments, resume it each time, and let it finish; returns the kills."""
    generator = random.Random(f"{seed} {arguments}")
    kills: list[str] = []
    for sitting in range(10 * num_kills):
        exists = folder.is_dir()
        again = ["resume", str(folder)] if exists else [*arguments, f"hydra.run.dir={folder}"]
        process = launcher.start(again, folder.parent, sitting)
        lines_now = _num_lines(folder / "metrics.jsonl")
        # the last line is that of the test, which is part of the end
        kill = random_kill(generator, reference.seconds_to_start, lines_now, reference.num_lines - 1)
        hit = len(kills) < num_kills and kill.send(process, folder)
        code = finish(process)
        if hit:
            kills.append(str(kill))
        allowed = {0, -kill.signum, *([] if kill.signum == signal.SIGKILL else [128 + kill.signum])} if hit else {0}
        assert code in allowed, f"exit code {code} after {kill if hit else 'no kill'}:\n{process.output()}"
        assert "Traceback" not in process.output(), f"{kill}:\n{process.output()}"
        if not hit and len(kills) == num_kills:
            return kills
        result = folder / "result.json"
        if code == 0 and result.is_file() and json.loads(result.read_text())["exit_code"] == 0:
            return kills
    raise AssertionError(f"not complete after {10 * num_kills} starts")


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for_lines(process: Process, folder: Path, number: int) -> None:
    """Wait until a run has written this many lines of metrics."""
    end = time.monotonic() + TIME_LIMIT
    while _num_lines(folder / "metrics.jsonl") < number:
        assert process.wait(0.005) is None and time.monotonic() < end, process.output()


# --- what a run leaves behind -----------------------------------------------------------------------------


def differences(reference: Path, run: Path) -> list[str]:
    """All differences of a run from an uninterrupted one."""
    found: list[str] = []
    for name in ("last", "best"):
        paths = [folder / "checkpoints" / f"{name}.pt" for folder in (reference, run)]
        one, other = (torch.load(path, weights_only=True) for path in paths)
        for state in (one, other):
            state.pop("offsets", None)  # depends on wall time
            state["run"].pop("id")
            state.get("stateful", {}).get("progress", {}).pop("seconds", None)
        found += [f"{name}.pt{line}" for line in _compare(one, other)]
    found += [f"metrics.jsonl{line}" for line in _compare(metric_lines(reference), metric_lines(run))]
    found += [f"events{line}" for line in _compare(events(reference), events(run))]
    results = [json.loads((folder / "result.json").read_text()) for folder in (reference, run)]
    for result in results:
        result.pop("wall_seconds")
        result.pop("folder")
        result.pop("sha256")
    found += [f"result.json{line}" for line in _compare(*results)]
    left_over = sorted(str(path.relative_to(run)) for path in run.rglob("*.tmp"))
    return found + [f"left over: {name}" for name in left_over]


def _compare(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Differences of two nested values, which must be equal to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            yield f"{where}: {one.dtype} {tuple(one.shape)} became {other.dtype} {tuple(other.shape)}"
        elif bits := int((_bytes(one) ^ _bytes(other)).ne(0).sum()):
            yield f"{where}: {bits} of {one.numel() * one.element_size()} bytes differ"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                yield f"{where}[{key!r}]: only {'after the kill' if key in other else 'in the reference'}"
            else:
                yield from _compare(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{where}: {len(one)} became {len(other)} items"
        for index, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _compare(a, b, f"{where}[{index}]")
    elif type(one) is not type(other) or one != other:
        yield f"{where}: {one!r} became {other!r}"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def metric_lines(folder: Path) -> list[str]:
    """Lines of metrics.jsonl without the measurements of time."""
    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n") or not text
    return [
        json.dumps({key: value for key, value in json.loads(line).items() if not key.startswith("throughput/")})
        for line in text.splitlines()
    ]


def events(folder: Path) -> dict[str, dict[str, Any]]:
    """tag -> step -> value of all event files together. Raises AssertionError if an event is repeated."""
    values: dict[str, dict[str, Any]] = {}
    count: Counter[tuple[str, int]] = Counter()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in read_events(path):
            for value in event.summary.value:
                if value.tag.startswith("throughput/"):
                    continue
                count[value.tag, event.step] += 1
                values.setdefault(value.tag, {})[str(event.step)] = _content(value)
    twice = [f"{tag} at {step}" for (tag, step), number in count.items() if number > 1]
    assert not twice, f"events that are there more than once: {twice}"
    return values


def _content(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if value.tag.startswith("_hparams_/"):
        return "there"  # contains the time
    if kind == "simple_value":
        return struct.pack("<f", value.simple_value)
    if kind == "image":
        return value.image.encoded_image_string
    if value.tag == "config/text_summary":
        # the name of the folder is allowed to differ
        text = make_ndarray(value.tensor).item().decode()
        return yaml.safe_load(text.strip("`").removeprefix("yaml\n"))
    return value.SerializeToString()


def read_events(path: Path) -> Iterator[Event]:
    """Events of a file. Raises AssertionError if it ends with a partial record."""
    content, offset = path.read_bytes(), 0
    while offset < len(content):
        (length,) = struct.unpack_from("<Q", content, offset)
        record = content[offset + 12 : offset + 12 + length]
        offset += 12 + length + 4
        assert offset <= len(content), f"{path.name} ends in the middle of a record"
        yield Event.FromString(record)
