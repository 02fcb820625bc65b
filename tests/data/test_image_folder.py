"""Folders of photographs: layouts, splits, damaged files, caches, checksums."""

import errno
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from images import bad_files, colours_of_16_bits, encoded, jpeg, pixels, write_folder
from PIL import Image

from trainer.base.errors import ConfigurationError, DataError
from trainer.configuration.compose import compose
from trainer.configuration.resolve import resolve
from trainer.data import ImageFolder, Splits
from trainer.data.memory import as_bytes, parse_limit
from trainer.data.photographs import inspection
from trainer.data.photographs.caching import choose_layout
from trainer.data.photographs.decoding import stored_size

SIZE = 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gearshift"


def data_set(root: Path, **settings: Any) -> ImageFolder:
    return ImageFolder(str(root), **({"size": SIZE, "workers": 0} | settings))


def counts(root: Path, **settings: Any) -> tuple[int, int, int]:
    data = data_set(root, **settings)
    facts, splits = data.facts(), data.load()
    for part, count in (
        (splits.train, facts.num_train),
        (splits.val, facts.num_val),
        (splits.test, facts.num_test),
    ):
        assert part.images_NCHW.shape == (count, *facts.input_shape)
        assert len(part.targets_N) == count
    return facts.num_train, facts.num_val, facts.num_test


def names(splits: Splits, part: str = "train") -> list[str]:
    images: Any = getattr(splits, part).images_NCHW
    return [images._all.names[n] for n in images._numbers_N]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("train", "val"), (36, 6, 4)),
        (("train", "test"), (36, 4, 6)),
        (("train", "val", "test"), (40, 6, 6)),
        (("train",), (32, 4, 4)),
        (("",), (32, 4, 4)),
    ],
)
def test_parts_that_are_missing_are_cut_from_the_training_part(
    tmp_path: Path, parts: tuple[str, ...], expected: tuple[int, int, int]
) -> None:
    layout = {
        f"{part}/{label}".lstrip("/"): 3 if part in ("val", "test") else 20 for part in parts for label in ("a", "b")
    }
    root = write_folder(tmp_path / "root", layout)
    assert counts(root) == expected
    splits = data_set(root).load()
    whole = [name for part in ("train", "val", "test") for name in names(splits, part)]
    assert sorted(whole) == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))
    for part in ("train", "val", "test"):
        targets = getattr(splits, part).targets_N
        assert torch.bincount(targets).tolist() == [len(targets) // 2] * 2  # stratified
        assert ["ab".index(Path(name).parent.name) for name in names(splits, part)] == targets.tolist()


def test_shares_and_seed_of_the_cut(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 20, "b": 20})
    assert counts(root, val_fraction=0.25, test_fraction=0.5) == (10, 10, 20)
    tests = [names(data_set(root, val_fraction=fraction).load(), "test") for fraction in (0.1, 0.3)]
    assert tests[0] == tests[1]  # the validation fraction does not change the test split
    assert names(data_set(root, split_seed=1).load(), "test") != tests[0]
    with pytest.raises(ValueError, match=r"^val_fraction=0.6: must be below 1 - test_fraction"):
        data_set(root, val_fraction=0.6, test_fraction=0.4).facts()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 20, 39])
def test_what_the_message_about_a_small_folder_advises_works(tmp_path: Path, count: int) -> None:
    """Nobody typed the batch size of 64, or the fractions of the splits."""
    for number in range(2 * count):
        path = tmp_path / "root" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"is not read")
    words = ["data=image_folder", f"data.root={tmp_path / 'root'}", "model=linear", "data.size=8"]
    with pytest.raises(ConfigurationError) as caught:
        resolve(compose(words))
    (problem,) = caught.value.problems
    if count == 1:
        least = "must be a folder of at least 3 photographs, for training, test, val"
        assert problem == f"data.root={tmp_path / 'root'}: {least}"
        return
    advice = re.findall(r"(?<=[;,] )batch_size=\w+", problem)
    assert len(advice) == (1 if count == 2 else 2)
    for word in advice:
        assert resolve(compose([*words, word])).total_steps >= 10


def test_facts_are_told_from_names_alone(tmp_path: Path) -> None:
    for name in ("train/cat/x.JPG", "train/cat/deep/er/y.png", "train/dog/.hidden.jpg", "train/dog/z.jpeg",
                 "train/dog/notes.txt", "train/.git/a.jpg", "val/cat/v.webp", "test/dog/t.jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    facts = data_set(tmp_path).facts()
    assert (facts.num_train, facts.num_val, facts.num_test) == (3, 1, 1)
    assert facts.class_names == ("cat", "dog")
    assert (facts.task, facts.num_outputs, facts.input_shape) == ("classification", 2, (3, SIZE, SIZE))


def test_folders_that_are_none_of_ours(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert data_set(root).is_present() is False
    for verb in ("facts", "check", "load"):
        with pytest.raises(FileNotFoundError, match=r"^root=.*root: must be an existing folder"):
            getattr(data_set(root), verb)()
    root.touch()
    with pytest.raises(NotADirectoryError, match=r"^root=.*: must be a folder, but is a file"):
        data_set(root).check()
    root.unlink()
    root.mkdir()
    with pytest.raises(ValueError, match=r"^root=.*: must contain a folder of photographs for each class"):
        data_set(root).check()
    write_folder(root, {"val/a": 2})
    with pytest.raises(ValueError, match=r"^root=.*: has the folder 'val', but no folder 'train'"):
        data_set(root).check()
    write_folder(root, {"train/a": 9, "train/b": 9, "val/c": 1})
    with pytest.raises(ValueError, match=r"'val/c' is not a class of 'train'"):
        data_set(root).check()
    (root / "val/c").rename(root / "val/b")
    data_set(root).check()
    (root / "train/c").mkdir()
    with pytest.raises(ValueError, match=r"the class 'c' has no training photographs"):
        data_set(root).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": ""}, "root='': must be the name of a folder"),
        ({"size": 0}, "size=0: must be from 1 to 4096 pixels"),
        ({"evaluation_scale": 0.9}, "evaluation_scale=0.9: must be from 1 to 10"),
        ({"evaluation_scale": float("nan")}, "evaluation_scale=nan: must be"),
        ({"max_side": 0}, "max_side=0: must be null or"),
        ({"cache": "ram"}, "cache=ram: must be memory, disk or none"),
        ({"workers": -1}, "workers=-1: must be from 0 to 256"),
        ({"workers": 10**6}, "workers=1000000: must be from 0 to 256"),
        ({"timeout": 0}, "timeout=0: must be more than 0 seconds"),
        ({"on_bad_file": "stop"}, "on_bad_file=stop: must be error or skip"),
        ({"val_fraction": 1.0}, "val_fraction=1.0: must be between 0 and 1"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1: must be between 0 and 1"),
        ({"split_seed": -1}, "split_seed=-1: must be between 0 and"),
        ({"memory_limit": "much"}, "memory_limit=much: must be auto, a number of bytes"),
        ({"memory_limit": -1}, "memory_limit=-1: must be auto"),
        ({"memory_limit": True}, "memory_limit=true: must be auto"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        ImageFolder(**({"root": "x"} | settings))
    assert "\n" not in str(caught.value)


def test_limits_are_read_as_people_write_them() -> None:
    given = {"auto": None, 0: 0, 123: 123, "123": 123, "2kB": 2000, "1.5 MB": 1500000, "4GB": 4 * 10**9,
             "4GiB": 4 << 30, "1t": 10**12}  # fmt: skip
    assert {text: parse_limit(text) for text in given} == given


# --- bad files


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """20 valid photographs of two classes, ten unusual ones, and every kind of damaged file."""
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    colours = Image.fromarray(pixels(50, 40))
    odd = {
        "cmyk.jpg": encoded(colours.convert("CMYK")),
        "grey.jpg": encoded(colours.convert("L")),
        "grey16.png": encoded(Image.fromarray(pixels(40, 40)[:, :, 0].astype("uint16") * 257), "PNG"),
        "colours16.png": colours_of_16_bits(pixels(40, 40).astype("uint16") * 257),
        "alpha.png": encoded(colours.convert("RGBA"), "PNG"),
        "palette.png": encoded(colours.quantize(8), "PNG", transparency=bytes(8)),
        "dot.png": encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"),
        "other.webp": encoded(colours, "WEBP"),
        "other.gif": encoded(colours.quantize(8), "GIF"),
        "a_png.jpg": encoded(colours, "PNG"),
    }
    for name, content in odd.items():
        (root / "a" / name).write_bytes(content)
    for name, (content, _) in bad_files().items():
        (root / "b" / name).write_bytes(content)
    (root / "b" / "link.jpg").symlink_to(root / "nothing")
    return root


NUM_BAD = len(bad_files()) + 1


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("cache", ["memory", "none", "disk"])
def test_bad_files_are_left_out_with_one_line(
    mixed: Path, cache: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings: dict[str, Any] = {"on_bad_file": "skip", "cache": cache, "workers": workers}
    settings |= {"val_fraction": 0.25, "test_fraction": 0.25}
    assert sum(counts(mixed, **settings)) == 30
    (line,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert line.startswith(f"{NUM_BAD} of 40 photographs in {mixed} are skipped (train.log lists all): b/")
    assert line.endswith(f") and {NUM_BAD - 3} more") and line.count("b/") == 3 and "\n" not in line
    reported = [r.message for r in caplog.records if r.message.startswith("skipped: ")]
    reasons = {name: message for name, (_, message) in bad_files().items()} | {"link.jpg": "no such file"}
    assert len(reported) == NUM_BAD
    assert all(any(f" b/{name} (" in one and message in one for one in reported) for name, message in reasons.items())
    splits = data_set(mixed, **settings).load()
    used = {name for part in ("train", "val", "test") for name in names(splits, part)}
    assert used == {p.relative_to(mixed).as_posix() for p in mixed.rglob("*.*")} - {
        f"b/{name}" for name in (*bad_files(), "link.jpg")
    }
    for part in ("train", "val", "test"):
        images = getattr(splits, part).images_NCHW
        assert torch.isfinite(next(images.read([(torch.arange(len(images)), None)])).float()).all()


def test_the_first_bad_file_does_not_move_the_cut(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 20, "b": 20})
    before = {part: names(data_set(root).load(), part) for part in ("train", "val", "test")}
    (root / before["train"][3]).write_bytes(b"")
    after = data_set(root, on_bad_file="skip").load()
    assert names(after, "train") == before["train"][:3] + before["train"][4:]
    assert (names(after, "val"), names(after, "test")) == (before["val"], before["test"])


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_bad_files_end_a_run_with_one_line(mixed: Path, cache: str) -> None:
    assert sum(counts_of_facts(mixed)) == 40
    with pytest.raises(ValueError, match=rf"^\d+ of 40 photographs in {mixed} cannot be used: ") as caught:
        data_set(mixed, cache=cache).load()
    line = str(caught.value)
    count = int(line.split()[0])  # files whose content is damaged are found later
    assert "\n" not in line and count > 5 and line.count("b/") == 5
    assert line.endswith(f") and {count - 5} more; data.on_bad_file=skip omits such files")


def counts_of_facts(root: Path) -> tuple[int, int, int]:
    facts = data_set(root).facts()
    return facts.num_train, facts.num_val, facts.num_test


@pytest.mark.parametrize("name", sorted(bad_files()))
@pytest.mark.parametrize("settings", [{}, {"memory_limit": "80kB"}, {"cache": "disk"}], ids=str)
def test_each_kind_is_named_with_what_is_wrong(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    content, message = bad_files()[name]
    root = write_folder(tmp_path / "root", {"train/a": 10, "train/b": 10})
    (root / "train/b" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^1 of 21 photographs in .*: train/b/{name} \(.*{message}"):
        data_set(root, **settings).load()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_a_file_without_permission(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    (root / "a/003.jpg").chmod(0)
    with pytest.raises(ValueError, match=r"a/003.jpg \(cannot be read: permission denied\)"):
        data_set(root).load()
    assert sum(counts(root, on_bad_file="skip")) == 19


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path == root / "a/003.jpg":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ValueError, match=r"^1 of 20 .* a/003.jpg \(cannot be read: permission denied\)"):
        data_set(root).load()
    assert sum(counts(root, on_bad_file="skip")) == 19


def test_a_checked_file_is_checked_again_only_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    decoded = []
    decode = inspection.decode
    monkeypatch.setattr(
        inspection,
        "decode",
        lambda content, side: [decoded.append(1), decode(content, side)][1],
    )
    expected = []
    for number, change in enumerate((None, None, b"", None, jpeg(50, 50))):
        if change is not None:
            (root / "b/004.jpg").write_bytes(change)
        decoded.clear()
        total = sum(counts_with_skip(root))
        expected.append((len(decoded), total))
        if number == 0:
            (record,) = cache.glob("root-*.json")
    assert expected == [(20, 20), (0, 20), (0, 19), (0, 19), (1, 20)]
    record.write_bytes(record.read_bytes()[:-10])  # a damaged record is ignored
    assert sum(counts_with_skip(root)) == 20
    assert len(decoded) == 21


def counts_with_skip(root: Path) -> tuple[int, int, int]:
    facts = data_set(root, on_bad_file="skip").facts()
    return facts.num_train, facts.num_val, facts.num_test


def test_a_cache_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    (tmp_path / "file").touch()
    settings = {"cache_dir": str(tmp_path / "file" / "folder")}
    assert sum(counts(root, on_bad_file="skip", **settings)) == 20
    assert "cannot store the results of the check of the photographs" in caplog.text
    caplog.clear()
    assert sum(counts(root, cache="disk", **settings)) == 20
    assert "reading their files" in caplog.text


# --- manifest


def write_manifest(root: Path) -> None:
    lines = ["path\tbytes\tsha256"]
    for path in sorted(root.rglob("*.jpg")):
        content = path.read_bytes()
        lines.append(f"{path.relative_to(root).as_posix()}\t{len(content)}\t{hashlib.sha256(content).hexdigest()}")
    (root / "MANIFEST.tsv").write_text("\n".join(lines) + "\n")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # with an unchanged modification time


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_flipped_bit_is_found_by_the_manifest(tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    write_manifest(root)
    flip_a_bit(root / "a/002.jpg")
    with pytest.raises(ValueError, match=r"^1 of 20 .*: a/002.jpg \(does not match its checksum in the manifest"):
        data_set(root, cache=cache).load()
    assert sum(counts(root, cache=cache, on_bad_file="skip")) == 19
    assert "1 of 20 photographs" in caplog.text and "a/002.jpg (does not match its checksum" in caplog.text


def test_files_that_are_missing_or_not_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "root", {"train/a": 10, "train/b": 10})
    write_manifest(root)
    (root / "train/a/001.jpg").unlink()
    (root / "train/b/new.jpg").write_bytes(jpeg())
    # the 20 present files and the missing one
    with pytest.raises(ValueError, match=r"^1 of 21 .*: train/a/001.jpg \(is listed in the manifest but missing\)"):
        data_set(root).load()
    assert sum(counts(root, on_bad_file="skip")) == 20
    assert "does not list 1 photographs, which are not compared; the first is train/b/new.jpg" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"name\thash\nx\ty\n", b"path\tsha256\nonly\n", b"path\tsha256\n\xff\t\xfe\n"]
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    (root / "MANIFEST.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=r"MANIFEST.tsv is damaged: its lines must have the columns path and sha256$"):
        data_set(root).load()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_a_manifest_that_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    path = root / "MANIFEST.tsv"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to nothing": lambda: path.symlink_to("gone")}[kind]()
    with pytest.raises(ValueError, match=rf"^{path} is not a regular file: it must list the photographs, or not exist"):
        data_set(root).load()


def test_streaming_meets_damage_behind_a_header_when_it_reads(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"train/a": 10, "val/a": 1, "test/a": 1})
    (root / "train/a/truncated.jpg").write_bytes(bad_files()["truncated.jpg"][0])
    images = data_set(root, cache="none").load().train.images_NCHW
    with pytest.raises(
        DataError, match=r"^data: train/a/truncated.jpg: damaged: .*on_bad_file=skip detects such files"
    ):
        list(images.read([(torch.arange(11), None)]))
    (root / "train/a/empty.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^1 of 14 .*: train/a/empty.jpg \(empty file\)"):
        data_set(root, cache="none").load()


# --- caches


def test_what_does_not_fit_is_kept_as_it_is_then_not_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    data = data_set(root).load().train.images_NCHW
    decoded = data._all.store.nbytes
    encoded_bytes = sum(path.stat().st_size for path in root.rglob("*.jpg"))
    assert decoded == sum(3 * h * w for h, w in data._all.sizes_N2.tolist())
    assert caplog.text == ""
    for limit, layout, taken in (
        (decoded, "decoded in memory", decoded),
        (decoded - 1, "encoded in memory", encoded_bytes),
        (encoded_bytes, "encoded in memory", encoded_bytes),
        (encoded_bytes - 1, "in files", 0),
    ):
        caplog.clear()
        store = data_set(root, memory_limit=limit).load().train.images_NCHW._all.store
        assert (store.layout, store.nbytes) == (layout, taken)
        assert store.nbytes <= limit
        assert len(caplog.records) == (limit < decoded)
        assert choose_layout(decoded, encoded_bytes, limit) == layout
    assert caplog.messages[0].startswith("the decoded photographs take ")
    assert caplog.messages[0].endswith("which the encoded ones exceed, too: reading them from disk")


def test_what_a_cache_costs_is_told_before(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    store = data_set(root).load().train.images_NCHW._all.store
    rows = data_set(root, memory_limit="1GB").storage()["photographs"]
    assert rows.startswith(f"about {store.nbytes / 1000:.3g} kB decoded, ")
    assert rows.endswith("; data.memory_limit is 1 GB: decoded in memory")
    assert data_set(root, memory_limit="1kB").storage()["photographs"].endswith("1 kB: in files")
    assert data_set(root, cache="none").storage()["photographs"].endswith("; read and decoded each time")


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({}, "decoded in memory"),
        ({"memory_limit": "100kB"}, "encoded in memory"),
        ({"memory_limit": "1kB"}, "in files"),
        ({"cache": "none"}, "in files"),
        ({"max_side": 20}, "decoded in memory"),
        ({"on_bad_file": "skip"}, "decoded in memory"),
    ],
    ids=str,
)
def test_the_memory_that_a_cache_takes_is_told_before(settings: dict[str, Any], layout: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    if "on_bad_file" in settings:
        for name, (content, _) in bad_files().items():
            (root / "a" / name).write_bytes(content)
    data = data_set(root, **settings)
    reported = data.memory_taken()
    store = data.load().train.images_NCHW._all.store
    assert (store.layout, store.nbytes) == (layout, reported)


def test_where_caches_on_disk_lie_and_what_they_take(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    write_folder(tmp_path / "root-2", {"a": 10, "b": 10})
    data = data_set(root, cache="disk")
    assert data.memory_taken() == 0
    where = f"; mapped from a file, {cache}/root-*.pixels"
    assert data.storage()["photographs"].endswith(f"{where} (none yet)")
    data_set(tmp_path / "root-2", cache="disk").load()  # another data set
    kept = []
    for number in range(1, 3):
        caplog.clear()
        data_set(root, cache="disk").load()
        kept += sorted(cache.glob("root-[!2]*.pixels"), key=lambda path: path.stat().st_mtime)[-1:]
        size = as_bytes(sum(path.stat().st_size for path in kept))
        assert data.storage()["photographs"].endswith(f"{where} ({number} files, {size})")
        older = "" if number == 1 else f"; older ones there: 1, {as_bytes(kept[0].stat().st_size)}"
        assert [message.partition(")")[2] for message in caplog.messages] == [older]
        # the data set changes; another run may be using the old cache
        (root / "a/000.jpg").write_bytes(jpeg(50, 50, 77))
    assert all(path.is_file() for path in kept)


def test_what_a_killed_process_was_writing_goes_when_it_is_made_anew(tmp_path: Path, cache: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    data_set(root, cache="disk").load()
    (path,) = cache.glob("root-*.pixels")
    others = [path.with_name(name) for name in (".root-0123456789abcdef.pixels.abc", "root.txt", path.name)]
    for other in others:
        other.write_bytes(b"something else")
    path.with_name(f".{path.name}.x1y2z3").write_bytes(b"half of it")
    data_set(root, cache="disk").load()
    found = {path for path in cache.iterdir() if path.suffix not in (".lock", ".json")}
    assert found == set(others)


def test_a_cache_on_disk_is_made_once(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    expected = data_set(root).load().train.images_NCHW[:]
    for number in range(2):
        caplog.clear()
        images = data_set(root, cache="disk").load().train.images_NCHW
        assert torch.equal(images[:], expected)
        assert len(caplog.records) == (number == 0)
        (path,) = cache.glob("root-*.pixels")
    with path.open("r+b") as file:  # flip one bit
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    caplog.clear()
    assert torch.equal(data_set(root, cache="disk").load().train.images_NCHW[:], expected)
    assert caplog.messages.count(f"{path} is damaged: creating it again") == 1
    os.truncate(path, 500)
    assert torch.equal(data_set(root, cache="disk").load().train.images_NCHW[:], expected)
    (root / "a/000.jpg").write_bytes(jpeg(50, 50, 77))
    data_set(root, cache="disk").load()
    assert len(list(cache.glob("root-*.pixels"))) == 2  # different files have a separate cache
    assert not [p for p in cache.iterdir() if p.name.startswith(".")]


def test_a_cache_on_disk_that_cannot_be_made_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    root = write_folder(tmp_path / "root", {"train/a": 10, "val/a": 10, "test/a": 1, "train/b": 1})
    (root / "train/a/truncated.jpg").write_bytes(bad_files()["truncated.jpg"][0])
    with pytest.raises(ValueError, match=r"^1 of 23 .*: train/a/truncated.jpg \(damaged: "):
        data_set(root, cache="disk").load()
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_a_full_disk_is_done_without(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    monkeypatch.setattr(os, "posix_fallocate", full)
    images = data_set(root, cache="disk").load().train.images_NCHW
    assert images._all.store.layout == "in files"
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"cannot store the photographs in {cache} (No space left on device): reading their files"]
    assert not list(cache.glob("*.pixels"))


# --- checksums


def test_the_checksum_is_that_of_files_and_what_is_made_of_them(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    first = data_set(root).load().checksum()
    assert len(first) == 64
    for settings in ({"cache": "none"}, {"cache": "disk"}, {"memory_limit": 1}, {"workers": 2}):
        assert data_set(root, **settings).load().checksum() == first
    for settings in ({"split_seed": 1}, {"size": 33}, {"evaluation_scale": 1.3}, {"max_side": 20}):
        assert data_set(root, **settings).load().checksum() != first
    size = stored_size((root / "a/003.jpg").read_bytes(), None)
    (root / "a/003.jpg").write_bytes(jpeg(*size, seed=1234))  # only the content differs
    assert data_set(root).load().checksum() != first


def test_flowers(data_root: Path) -> None:
    root = data_root / "flowers"
    data = data_set(root, size=64, cache="none")
    facts = data.facts()
    assert (facts.num_train, facts.num_val, facts.num_test) == (360, 100, 40)
    assert facts.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    splits = data.load()
    assert torch.bincount(splits.train.targets_N).tolist() == [72] * 5
    assert torch.bincount(splits.test.targets_N).tolist() == [8] * 5
    assert all(name.startswith("val/") for name in names(splits, "val"))
    images = splits.val.images_NCHW[:8].float()
    assert images.shape == (8, 3, 64, 64)
    assert 40 < images.mean() < 200


# --- files that are none


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_what_would_be_read_for_ever_is_a_bad_file(policy: str, tmp_path: Path, cache: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "zero.jpg").symlink_to("/dev/zero")
    if policy == "error":
        with pytest.raises(
            ValueError, match=r"2 of 22 photographs .* cannot be used: .*a/pipe.png .is not a regular file"
        ):
            data_set(root).load()
    else:
        parts = data_set(root, on_bad_file="skip").load()
        assert sum(len(part) for part in (parts.train, parts.val, parts.test)) == 20


@pytest.mark.parametrize("kind", ["memory", "disk", "none"])
def test_names_need_not_be_utf_8(kind: str, tmp_path: Path, cache: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    odd = os.fsdecode(os.fsencode(root / "a") + b"/caf\xe9.jpg")
    (root / "a" / "003.jpg").rename(odd)
    assert len(data_set(root, cache=kind).load().checksum()) == 64
    Path(odd).write_bytes(b"")
    with pytest.raises(ValueError, match=r"a/caf\\udce9.jpg \(empty file\)"):
        data_set(root, cache=kind).load()


def test_a_manifest_with_a_short_line_is_damaged(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"a": 10, "b": 10})
    (root / "MANIFEST.tsv").write_text("sha256\tpath\n" + 64 * "0" + "\n")
    with pytest.raises(ValueError, match=r"MANIFEST.tsv is damaged: its lines must have the columns path and sha256"):
        data_set(root).load()
