"""Checkpoints contain data only and have checksums; the previous one is kept until the next is on the disk; training
continues during a write.
"""

import errno
import io
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.base.errors import DataError, DiskError
from trainer.base.snapshot import Copied
from trainer.storage import checkpoint
from trainer.storage.checkpoint import CheckpointWriter, find_newest, load, load_newest, previous, save, snapshot
from trainer.storage.files import seal

State = dict[str, Any]


def state_of(step: int) -> State:
    """State like that of a run of a small model."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(4, 3, generator=generator),
            "bits": torch.randn(5, generator=generator).bfloat16(),
            "count": torch.tensor(step),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "place": {"step": step, "epoch": 0},
        "best": None,
        "losses": [0.1 + 0.2, float("inf"), float("-0.0")],
        "name": "\N{GREEK SMALL LETTER LAMDA}",
    }


def assert_same(one: Any, other: Any) -> None:
    """Assert equality to the last bit, and of types."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert repr(one) == repr(other)


# --- one file ---------------------------------------------------------------------------------------------


def test_a_state_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", state_of(7))
    assert_same(load(tmp_path / "last.pt"), state_of(7))


def test_plain_torch_reads_it_too(tmp_path: Path) -> None:
    """Zip readers ignore what follows the archive, so that users can load the weights with torch alone."""
    save(tmp_path / "last.pt", state_of(7))
    assert_same(torch.load(tmp_path / "last.pt", weights_only=True), state_of(7))


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """400 evenly spaced bits; torch alone loads nearly all of these files without an error."""
    path = tmp_path / "last.pt"
    save(path, state_of(7))
    sound, silent = path.read_bytes(), 0
    for number in range(400):
        bit = number * 8 * len(sound) // 400
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"last\.pt is damaged: its checksum does not match"):
            load(path)
        try:
            torch.load(io.BytesIO(damaged), weights_only=True)
            silent += 1
        except Exception:
            continue
    assert silent > 100, "the control: without a checksum much damage goes unnoticed"


@pytest.mark.parametrize("length", [0, 1, 40, 500, -48, -1])
def test_a_file_cut_short_is_noticed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "last.pt"
    save(path, state_of(7))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="is damaged"):
        load(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"last\.pt does not exist"):
        load(tmp_path / "last.pt")


class Payload:
    """Creates a file when it is unpickled without `weights_only`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("forced", [False, True])
def test_a_checkpoint_is_never_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    """With a valid checksum, and also if an environment variable makes torch trust every file."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, trace = tmp_path / "last.pt", tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save({"model": Payload(trace)}, buffer)
    path.write_bytes(seal(buffer.getvalue()))
    with pytest.raises(
        DataError, match=r"last\.pt is not a checkpoint: it must be an archive of tensors and plain values"
    ):
        load(path)
    assert not trace.exists()
    if forced:
        with pytest.warns(UserWarning, match="forcing weights_only=False"):
            torch.load(path)
        assert trace.exists(), "the control: it is harmful"


def test_what_is_no_archive_at_all_is_told(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(seal(b"not a zip file"))
    with pytest.raises(
        DataError, match=r"last\.pt is not a checkpoint: it must be an archive of tensors and plain values"
    ):
        load(tmp_path / "last.pt")


# --- the one before ---------------------------------------------------------------------------------------


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2, 3):
        save(path, state_of(step))
    assert_same(load(path), state_of(3))
    assert_same(load(previous(path)), state_of(2))
    assert {p.name for p in tmp_path.iterdir()} == {"last.pt", "last.previous.pt"}


def test_one_that_takes_no_place_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, state_of(1))
    save(path, state_of(2))
    save(path, state_of(3), keep_previous=True)
    assert_same(load(path), state_of(3))
    assert_same(load(previous(path)), state_of(1))


def test_the_newest_sound_one_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "last.pt"
    assert load_newest(path) is None
    save(path, state_of(1))
    save(path, state_of(2))
    newest = load_newest(path)
    assert newest is not None and newest["place"]["step"] == 2
    path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        newest = load_newest(path)
    assert newest is not None and newest["place"]["step"] == 1
    assert caplog.messages == [f"{path} is damaged: its checksum does not match; falling back to the previous one"]
    path.unlink()
    newest = load_newest(path)
    assert newest is not None and newest["place"]["step"] == 1
    previous(path).write_bytes(b"damaged")
    with pytest.raises(DataError, match="no checkpoint is left to continue from"):
        load_newest(path)


def test_a_particular_one_is_found(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save(path, state_of(1))
    save(path, state_of(2))
    for step, where in ((1, previous(path)), (2, path)):
        found = find_newest(path, lambda state, step=step: bool(state["place"]["step"] == step))
        assert found is not None and found[0] == where and found[1]["place"]["step"] == step
    assert find_newest(path, lambda state: False) is None


# --- writing while training goes on -----------------------------------------------------------------------


class Disk:
    """Replaces `save`: records what is written, and is as slow as a test requires."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[str] = []
        self.states: list[State] = []
        self.may_write = threading.Semaphore(0)
        self.save = save
        monkeypatch.setattr(checkpoint, "save", self._save)

    def _save(self, path: Path, state: State, keep_previous: bool = False) -> None:
        assert self.may_write.acquire(timeout=120)
        self.save(path, state, keep_previous)
        self.written.append(f"{path.stem} {state['step']}")
        self.states.append(state)

    def write(self, number: int) -> None:
        self.may_write.release(number)


def put(writer: CheckpointWriter, step: int, is_best: bool = False, at_once: bool = True) -> None:
    writer.put(lambda: {"step": step}, (lambda last: {"step": step}) if is_best else None, at_once)


def test_best_is_written_before_the_last_that_speaks_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    writer = CheckpointWriter(tmp_path / "checkpoints", lambda: disk.written.append("logs"))
    disk.write(100)
    put(writer, 1)
    writer.finish()
    put(writer, 2, is_best=True)
    writer.finish()
    assert disk.written == ["logs", "last 1", "logs", "best 2", "last 2"]
    assert load(tmp_path / "checkpoints/best.pt") == load(tmp_path / "checkpoints/last.pt") == {"step": 2}


def test_a_newer_last_takes_the_place_of_one_that_waits_but_no_best_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    writer = CheckpointWriter(tmp_path, lambda: None)
    put(writer, 1)
    while writer._waiting:
        pass  # wait until the thread is writing
    put(writer, 2, is_best=True)
    put(writer, 3)
    put(writer, 4)
    disk.write(100)
    writer.finish()
    assert disk.written == ["last 1", "best 2", "last 4"]


def test_a_large_one_is_not_collected_while_another_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    monkeypatch.setattr(checkpoint, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_LARGE", 12)
    writer = CheckpointWriter(tmp_path, lambda: None)
    collected: list[int] = []

    def put_weights(step: int, numbers: int, at_once: bool = False) -> None:
        def last() -> State:
            collected.append(step)
            return {"step": step, "model": [torch.zeros(numbers)]}

        def best(last: State | None) -> State:
            assert last is not None or step == 3
            return {"step": step, "model": [torch.ones(numbers)]} if last is None else Copied(last)

        writer.put(last, best, at_once)

    put_weights(1, 2)
    put_weights(2, 3)  # the first one was small
    put_weights(3, 3)
    put_weights(4, 3, at_once=True)
    disk.write(100)
    writer.wait()
    put_weights(5, 3)
    writer.finish()
    assert collected == [1, 2, 4, 5]
    assert disk.written[-2:] == ["best 5", "last 5"]
    last, best = disk.states[-1], disk.states[-2]
    assert last["model"][0] is best["model"][0], "one copy serves both files"


def test_what_is_asked_for_too_often_is_thinned_but_no_best_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, now = Disk(monkeypatch), [100.0]
    monkeypatch.setattr(checkpoint, "_LEAST_SECONDS", 0.25)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    writer = CheckpointWriter(tmp_path, lambda: None)
    disk.write(100)
    for step, seconds, is_best in ((1, 0.0, False), (2, 0.1, True), (3, 0.1, False), (4, 0.1, False), (5, 0.1, False)):
        now[0] += seconds
        put(writer, step, is_best, at_once=False)
        while writer._thread is not None:
            pass  # writing takes no time in this test
    assert disk.written == ["last 1", "best 2", "last 4"]
    put(writer, 6, is_best=True, at_once=True)
    writer.finish()
    assert disk.written[3:] == ["best 6", "last 6"]
    put(writer, 7, is_best=True, at_once=False)
    writer.finish()
    assert disk.written[5:] == ["best 7"], "the end of a run that fails before its turn comes"


def test_training_may_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values at the time of `put` are written, even if the tensors change later."""
    disk = Disk(monkeypatch)
    writer = CheckpointWriter(tmp_path, lambda: None)
    weight, moments = torch.zeros(3), [torch.ones(2)]
    writer.put(lambda: {"step": 1, "model": {"weight": weight}, "moments": moments}, None, True)
    weight.fill_(5)
    moments[0].fill_(5)
    moments.append(torch.ones(1))
    disk.write(100)
    writer.finish()
    written = load(tmp_path / "last.pt")
    assert_same(written, {"step": 1, "model": {"weight": torch.zeros(3)}, "moments": [torch.ones(2)]})


def test_a_snapshot_shares_no_memory_and_carries_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    copy = snapshot({"a": [weight, (weight, 3)], "view": weight[0]})
    assert not copy["a"][0].requires_grad
    assert copy["a"][0].data_ptr() != weight.data_ptr()
    assert copy["view"].untyped_storage().nbytes() == 2 * 4, "a view does not drag its base along"
    assert copy["a"][0].stride() == weight.stride(), "nor is its layout another one"
    assert_same(copy["a"][0], weight.detach())
    assert copy["a"][1][1] == 3 and isinstance(copy["a"][1], tuple)


def fail(error: int) -> Callable[..., None]:
    def failing(*arguments: Any, **options: Any) -> None:
        raise OSError(error, os.strerror(error))

    return failing


@pytest.mark.parametrize("next_call", ["put", "finish"])
def test_a_full_disk_is_told_at_the_next_occasion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_call: str
) -> None:
    writer = CheckpointWriter(tmp_path, lambda: None)
    put(writer, 1)
    writer.finish()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail(errno.ENOSPC))
        put(writer, 2)
        thread = writer._thread
        if thread is not None:
            thread.join()
        with pytest.raises(DiskError, match=r"cannot write .*/last\.pt: the disk is full"):
            put(writer, 3) if next_call == "put" else writer.finish()
    assert load(tmp_path / "last.pt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    put(writer, 4)
    writer.finish()
    assert load(tmp_path / "last.pt") == {"step": 4}, "with room again it goes on"


def test_no_checkpoint_counts_logs_that_could_not_be_made_safe(tmp_path: Path) -> None:
    def sync() -> None:
        raise DiskError("cannot write metrics.jsonl: the disk is full")

    writer = CheckpointWriter(tmp_path, sync)
    put(writer, 1)
    with pytest.raises(DiskError, match="metrics"):
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_over_is_removed(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", state_of(1))
    (tmp_path / ".last.pt.123.tmp").write_bytes(b"half of a checkpoint")
    CheckpointWriter(tmp_path, lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_that_a_signal_made_goes_with_the_first_new_one(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path / "last.pt", {"step": step})
    writer = CheckpointWriter(tmp_path, lambda: None, keep_previous=True)
    steps = []
    for step in (3, 4):
        put(writer, step)
        writer.finish()
        steps.append((load(previous(tmp_path / "last.pt"))["step"], load(tmp_path / "last.pt")["step"]))
    assert steps == [(1, 3), (3, 4)]
