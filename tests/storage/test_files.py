"""Atomic writes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.base.errors import DataError, DiskError
from trainer.storage.files import disk_error, seal, unseal, write_atomic


def calls_of(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Names of the given functions of `os`, in the order of their calls."""
    calls: list[str] = []

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            return function(*arguments)

        return call

    for name in names:
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))
    return calls


def failing(error: int) -> Callable[..., Any]:
    def fail(*arguments: Any) -> Any:
        raise OSError(error, os.strerror(error))

    return fail


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order: fsync of the file, rename, fsync of the folder."""
    calls = calls_of(monkeypatch, "fsync", "replace")
    write_atomic(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"]
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_error_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, broken, failing(errno.ENOSPC))
    with pytest.raises(DiskError, match=rf"^cannot write {path}: the disk is full$") as caught:
        write_atomic(path, b"new")
    assert caught.value.exit_code == 74
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_signal_in_the_middle_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_before_can_be_kept(tmp_path: Path) -> None:
    path, keep = tmp_path / "file", tmp_path / "before"
    for content in (b"1", b"2", b"3"):
        write_atomic(path, content, keep)
    assert (path.read_bytes(), keep.read_bytes()) == (b"3", b"2")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_file_itself_never_goes_away_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any rename, also twice at the same one: there is always a complete file of that name."""
    path, keep, rename = tmp_path / "file", tmp_path / "before", os.replace
    write_atomic(path, b"0")
    for number in range(1, 4):

        def replace(source: Path, target: Path) -> None:
            assert path.read_bytes() in (b"0", b"1", b"2", b"3")
            if target == path:
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, "replace", replace)
            write_atomic(path, b"lost", keep)
        write_atomic(path, str(number).encode(), keep)
        assert (path.read_bytes(), keep.read_bytes()) == (str(number).encode(), str(number - 1).encode())
        assert len(list(tmp_path.iterdir())) == 2


def test_without_hard_links_the_file_before_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    path, keep = tmp_path / "file", tmp_path / "before"
    for content in (b"1", b"2"):
        write_atomic(path, content, keep)
    assert (path.read_bytes(), keep.read_bytes()) == (b"2", b"1")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"^cannot write .*/nowhere/file: No such file or directory$"):
        write_atomic(tmp_path / "nowhere/file", b"")


def test_an_error_without_words_is_told_as_it_is() -> None:
    assert str(disk_error(Path("file"), OSError("odd"))) == "cannot write file: odd"


def test_what_was_sealed_comes_back(tmp_path: Path) -> None:
    for content in (b"", b"x", os.urandom(1000)):
        (tmp_path / "file").write_bytes(seal(content))
        assert unseal(tmp_path / "file") == content


def test_every_single_bit_and_every_length_is_guarded(tmp_path: Path) -> None:
    """All bits of a small file, content and checksum, and all shorter and some longer files."""
    path, sealed = tmp_path / "file", seal(b"some content")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DataError, match="is damaged: its checksum does not match"):
            unseal(path)
    for content in (*(sealed[:length] for length in range(len(sealed))), sealed + b"\0"):
        path.write_bytes(content)
        with pytest.raises(DataError):
            unseal(path)
