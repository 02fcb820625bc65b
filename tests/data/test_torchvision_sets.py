"""MNIST- and CIFAR-like sets: tiny ones in the real formats, missing and damaged ones, and the real ones."""

import gc
import gzip
import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from trainer.data import CIFAR10, CIFAR100, MNIST, FashionMNIST
from trainer.data.split import stratified_cut

ALL_SETS = [MNIST, FashionMNIST, CIFAR10, CIFAR100]


class TinyMNIST(MNIST):
    num_images = (20, 10)


class TinyFashionMNIST(FashionMNIST):
    num_images = (20, 10)


class TinyCIFAR10(CIFAR10):
    num_images = (100, 20)


class TinyCIFAR100(CIFAR100):
    num_images = (200, 100)


def idx_bytes(array: np.ndarray) -> bytes:
    """The format of yann.lecun.com/exdb/mnist: 0, 0, 8 (unsigned byte), dimensions, big-endian sizes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_files(num_train: int = 20, num_test: int = 10) -> dict[str, bytes]:
    random = np.random.RandomState(0)
    files = {}
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        files[f"{prefix}-images-idx3-ubyte"] = idx_bytes(random.randint(0, 256, (count, 28, 28)))
        files[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(np.arange(count) % 10)
    return files


def write_idx_set(root: Path, folder: str = "MNIST/raw") -> Path:
    (root / folder).mkdir(parents=True)
    for name, content in idx_files().items():
        (root / folder / name).write_bytes(content)
    return root / folder


def cifar100_files() -> dict[str, bytes]:
    """Pickles in the authors' format: protocol 2 with byte-string keys, 3072 bytes per image."""
    random = np.random.RandomState(0)
    files = {"meta": pickle.dumps({"fine_label_names": CIFAR100.class_names}, protocol=2)}
    for name, count in (("train", 200), ("test", 100)):
        rows = random.randint(0, 256, (count, 3072)).astype(np.uint8)
        labels = [n % 100 for n in range(count)]
        content = {"data": rows, "fine_labels": labels, "coarse_labels": [n // 5 for n in labels]}
        files[name] = pickle.dumps(content, protocol=2)
    return files


def accept(monkeypatch, files: dict[str, bytes]) -> None:
    """Make torchvision expect the MD5 sums of these files, so that its integrity check is included."""
    source = torchvision.datasets.CIFAR100
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(source, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(source, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5["meta"]})


def write_cifar100(root: Path, files: dict[str, bytes]) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(("data_set", "folder"), [(TinyMNIST, "MNIST/raw"), (TinyFashionMNIST, "FashionMNIST/raw")])
def test_idx_files_are_read_as_they_were_written(tmp_path, data_set, folder):
    write_idx_set(tmp_path, folder)
    data = data_set(root=str(tmp_path), download=False, val_fraction=0.5)
    splits, files = data.load(), idx_files()
    test_pixels = np.frombuffer(files["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(10, 1, 28, 28)
    assert np.array_equal(splits.test.images_NCHW.numpy(), test_pixels)
    assert splits.test.targets_N.tolist() == list(range(10))
    assert splits.test.targets_N.dtype == torch.int64
    # the official training set, split in two; each side has one of every class's two samples
    train_pixels = np.frombuffer(files["train-images-idx3-ubyte"][16:], np.uint8).reshape(20, 784)
    together = torch.cat((splits.train.images_NCHW, splits.val.images_NCHW)).flatten(1)
    assert sorted(together.tolist()) == sorted(train_pixels.tolist())
    assert splits.val.targets_N.sort().values.tolist() == list(range(10))
    facts = data.facts()
    assert (facts.num_train, facts.num_val, facts.num_test) == (10, 10, 10)
    assert (len(splits.train), len(splits.val)) == (10, 10)


def test_a_part_of_the_training_images_is_stratified_and_leaves_the_others_alone(tmp_path):
    write_idx_set(tmp_path, "MNIST/raw")
    whole, part = (TinyMNIST(root=str(tmp_path), download=False, val_fraction=0.25, num_train=n) for n in (None, 10))
    assert (whole.facts().num_train, part.facts().num_train) == (15, 10)
    found, other = whole.load(), part.load()
    assert torch.equal(found.val.images_NCHW, other.val.images_NCHW)
    assert torch.equal(found.test.images_NCHW, other.test.images_NCHW)
    assert other.train.targets_N.bincount().tolist() == [1] * 10
    rows = found.train.images_NCHW.flatten(1).tolist()
    chosen = other.train.images_NCHW.flatten(1).tolist()
    assert len(chosen) == 10
    assert all(row in rows for row in chosen)
    for bad in (0, 16, 2.5):
        with pytest.raises(ValueError, match=f"num_train={bad}: must be"):
            TinyMNIST(root=str(tmp_path), val_fraction=0.25, num_train=bad)


def test_cifar100_pickles_are_read_with_their_fine_labels(tmp_path, monkeypatch):
    files = cifar100_files()
    accept(monkeypatch, files)
    write_cifar100(tmp_path, files)
    splits = TinyCIFAR100(root=str(tmp_path), download=False, val_fraction=0.5).load()
    rows = pickle.loads(files["test"])["data"]
    # one colour plane after another, each row by row
    assert np.array_equal(splits.test.images_NCHW.numpy(), rows.reshape(100, 3, 32, 32))
    assert splits.test.images_NCHW.is_contiguous()
    assert splits.test.targets_N.tolist() == list(range(100))
    assert splits.val.targets_N.tolist() != splits.train.targets_N.tolist()
    assert splits.val.targets_N.sort().values.tolist() == list(range(100))


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Writes five training files of 20 images and a test file; returns their rows."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    rows = np.random.RandomState(0).randint(0, 256, (120, 3072)).astype(np.uint8)
    files = {"batches.meta": pickle.dumps({"label_names": CIFAR10.class_names}, protocol=2)}
    for name, start in zip((*CIFAR10.files[:5], "test_batch"), range(0, 120, 20), strict=True):
        labels = [n % 10 for n in range(20)]
        files[name] = pickle.dumps({"data": rows[start : start + 20], "labels": labels}, protocol=2)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    for name, content in files.items():
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "train_list", [[name, md5[name]] for name in CIFAR10.files[:5]])
    monkeypatch.setattr(source, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5["batches.meta"]})
    return rows


@pytest.mark.parametrize("limit", ["1GB", "1kB"])
def test_cifar10_is_read_file_by_file_in_the_files_order(limit, cifar10, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = []

    def noted(self, *args, original=TinyCIFAR10._open, **kwargs):
        source = original(self, *args, **kwargs)
        opened.append(len(source.data))
        return source

    monkeypatch.setattr(TinyCIFAR10, "_open", noted)
    data = TinyCIFAR10(root=str(tmp_path), download=False, val_fraction=0.2, memory_limit=limit)
    splits = data.load()
    assert opened == [20] * 6
    images = torch.from_numpy(cifar10).view(120, 3, 32, 32)
    labels = torch.arange(100) % 10
    generator = torch.Generator().manual_seed(0)
    for split, indices in zip((splits.train, splits.val), stratified_cut(labels, 20, generator), strict=True):
        assert torch.equal(split.images_NCHW, images[indices])
        assert torch.equal(split.targets_N, labels[indices])
    assert torch.equal(splits.test.images_NCHW, images[100:])


@pytest.mark.parametrize(
    ("num_images", "message"), [((90, 20), "10 images too many"), ((110, 20), "100 images, not 110")]
)
def test_files_with_another_number_of_images_are_damaged(num_images, message, cifar10, tmp_path, monkeypatch):
    monkeypatch.setattr(TinyCIFAR10, "num_images", num_images)
    with pytest.raises(ValueError, match=rf"^cifar10: the files in .* are damaged \(ValueError: {message}\)"):
        TinyCIFAR10(root=str(tmp_path)).load()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_files_are_not_blamed_when_memory_is_short(error, cifar10, tmp_path, monkeypatch):
    def short(*args, **kwargs):
        raise error

    monkeypatch.setattr(TinyCIFAR10, "_open", short)
    with pytest.raises(type(error)) as caught:
        TinyCIFAR10(root=str(tmp_path)).load()
    assert caught.value is error


def test_reading_writes_nothing(tmp_path):
    write_idx_set(tmp_path)
    before = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    TinyMNIST(root=str(tmp_path), download=True).load()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == before


def damage_by_truncation(folder: Path) -> None:
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])


def damage_by_emptying(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")


def damage_by_another_file(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(b"<html>not found</html>")


def damage_by_labels_out_of_range(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(20)))


def damage_by_missing_labels(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19)))


def damage_by_swapping(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes((folder / "t10k-images-idx3-ubyte").read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_truncation,
        damage_by_emptying,
        damage_by_another_file,
        damage_by_labels_out_of_range,
        damage_by_missing_labels,
        damage_by_swapping,
    ],
)
def test_damaged_idx_files_give_one_sentence(tmp_path, damage):
    damage(write_idx_set(tmp_path))
    with pytest.raises(
        ValueError, match=r"^mnist: the files in .*MNIST/raw are damaged \(.*delete that folder"
    ) as caught:
        TinyMNIST(root=str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_cifar_file_is_damage(tmp_path, monkeypatch):
    files = cifar100_files()
    accept(monkeypatch, files)
    folder = write_cifar100(tmp_path, files)
    content = bytearray(files["train"])
    content[5000] ^= 1
    (folder / "train").write_bytes(content)
    with pytest.raises(ValueError, match=r"^cifar100: the files in .*cifar-100-python are damaged"):
        TinyCIFAR100(root=str(tmp_path)).load()


@pytest.mark.parametrize("data_set", ALL_SETS)
def test_an_absent_set_that_must_not_be_downloaded(tmp_path, data_set):
    data = data_set(root=str(tmp_path), download=False)
    assert data.is_present() is False
    for verb in (data.check, data.load):
        with pytest.raises(
            FileNotFoundError, match=rf"^{data.name} is not complete in {tmp_path}/\S+; .*download=true"
        ):
            verb()
    assert list(tmp_path.iterdir()) == []


def test_presence_needs_every_file(tmp_path):
    folder = write_idx_set(tmp_path)
    data = MNIST(root=str(tmp_path), download=False)
    assert data.is_present() is True
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert data.is_present() is False


@pytest.mark.parametrize("download", [True, False])
def test_a_mistyped_root_is_refused_and_not_made(tmp_path, download):
    root = tmp_path / "dta"
    data = MNIST(root=str(root), download=download)
    for verb in (data.check, data.load):
        with pytest.raises(FileNotFoundError, match=r"^root=.*dta: must be an existing folder"):
            verb()
    assert not root.exists()


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"^root=.*file: must be a folder"):
        MNIST(root=str(tmp_path / "file")).check()


def test_the_default_root_may_be_absent_when_a_download_is_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MNIST().check()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="mnist is not complete in data/MNIST/raw"):
        MNIST(download=False).check()


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx_set(tmp_path / "sets")
    assert TinyMNIST(root="~/sets", download=False).is_present() is True


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        """Suppresses the request log."""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the URL of a local server for it."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # torchvision leaves the socket of a refused request to the garbage collector, which warns when it closes it
    gc.disable()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
    gc.enable()


def serve_idx_set(served, monkeypatch) -> None:
    folder, address = served
    resources = []
    for name, content in idx_files().items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)


def test_a_download_makes_the_default_folder_and_leaves_nothing_else(tmp_path, monkeypatch, served, capfd):
    serve_idx_set(served, monkeypatch)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    splits = TinyMNIST().load()
    assert splits.test.targets_N.tolist() == list(range(10))
    files = sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file())
    assert files == sorted(f"data/MNIST/raw/{name}" for name in idx_files())
    assert [p.name for p in (home / "data").iterdir()] == ["MNIST"]
    assert capfd.readouterr().out == ""
    assert TinyMNIST(download=False).load().checksum() == splits.checksum()


def test_a_download_completes_a_set_of_which_files_are_missing(tmp_path, monkeypatch, served):
    serve_idx_set(served, monkeypatch)
    root = tmp_path / "root"
    folder = write_idx_set(root)
    (folder / "train-images-idx3-ubyte").unlink()
    assert len(TinyMNIST(root=str(root)).load().test) == 10


def test_cifar_is_unpacked_from_its_archive(tmp_path, monkeypatch, served):
    folder, address = served
    files = cifar100_files()
    accept(monkeypatch, files)
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = torchvision.datasets.CIFAR100
    monkeypatch.setattr(source, "url", address + source.filename)
    packed = (folder / source.filename).read_bytes()
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(packed).hexdigest())
    root = tmp_path / "root"
    root.mkdir()
    assert len(TinyCIFAR100(root=str(root)).load().test) == 100
    assert [p.name for p in root.iterdir()] == ["cifar-100-python"]


def test_a_failed_download_gives_one_sentence_and_leaves_no_file(tmp_path, monkeypatch, served):
    _, address = served  # the served folder is empty
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(OSError, match=rf"^mnist: the download to {root} failed \(.*404") as caught:
        TinyMNIST(root=str(root)).load()
    assert "\n" not in str(caught.value)
    assert caught.value.errno is None
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("data_set", ALL_SETS)
def test_without_a_network_the_message_says_which_files_belong_where(tmp_path, monkeypatch, data_set):
    kind = getattr(torchvision.datasets, data_set.torchvision_class)
    nowhere = "http://127.0.0.1:9/"
    if "url" in vars(kind):
        monkeypatch.setattr(kind, "url", nowhere + kind.filename)
        source = f"unpack {nowhere}{kind.filename} in {tmp_path};"
    else:
        monkeypatch.setattr(kind, "mirrors", [nowhere])
        archives = ", ".join(f"{name}.gz" for name in data_set.files)
        source = f"unpack {archives} of {nowhere} into {tmp_path / data_set.folder};"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("DATA_ROOT", raising=False)
    with pytest.raises(OSError, match=rf"^{data_set.name}: the download to {tmp_path} failed \(") as caught:
        data_set(root=str(tmp_path)).load()
    wanted = f"{tmp_path / data_set.folder} must hold {', '.join(data_set.files)}"
    assert str(caught.value).endswith(f"; by hand: {source} {wanted} (or set DATA_ROOT to the folder that has it)")
    (tmp_path / data_set.folder).mkdir(parents=True)
    (tmp_path / data_set.folder / data_set.files[0]).touch()
    with pytest.raises(FileNotFoundError, match=r"download=true would download it; by hand: ") as caught:
        data_set(root=str(tmp_path), download=False).check()
    assert f"must hold {', '.join(data_set.files[1:])} (or" in str(caught.value)


def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch, served):
    serve_idx_set(served, monkeypatch)
    (served[0] / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(OSError, match=r"^mnist: the download to .* failed \("):
        TinyMNIST(root=str(root)).load()
    assert list(root.iterdir()) == []


def test_a_full_disk_keeps_its_error_number(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torchvision.datasets, "MNIST", full)
    with pytest.raises(OSError, match=r"^mnist: the download to .*No space left") as caught:
        MNIST(root=str(tmp_path)).load()
    assert caught.value.errno == 28


@pytest.mark.parametrize("data_set", ALL_SETS)
def test_facts_need_no_files(data_set):
    facts = data_set(root="/nowhere", val_fraction=0.2).facts()
    total, num_test = data_set.num_images
    assert (facts.num_train, facts.num_val, facts.num_test) == (total * 4 // 5, total // 5, num_test)
    assert len(set(facts.class_names)) == facts.num_outputs
    assert facts.task == "classification"


def test_class_names_are_torchvisions():
    assert list(FashionMNIST.class_names) == torchvision.datasets.FashionMNIST.classes
    assert [name[0] for name in torchvision.datasets.MNIST.classes] == list(MNIST.class_names)
    assert len(CIFAR100.class_names) == 100
    assert list(CIFAR100.class_names) == sorted(CIFAR100.class_names)


@pytest.mark.parametrize("data_set", ALL_SETS)
def test_the_files_looked_for_are_those_torchvision_reads(data_set):
    source = getattr(torchvision.datasets, data_set.torchvision_class)
    if hasattr(source, "resources"):
        expected = {name.removesuffix(".gz") for name, _ in source.resources}
        assert data_set.folder == f"{source.__name__}/raw"
    else:
        expected = {name for name, _ in source.train_list + source.test_list} | {source.meta["filename"]}
        assert data_set.folder == source.base_folder
    assert set(data_set.files) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": ""}, "root='': must be the name of a folder"),
        ({"val_fraction": 1}, "val_fraction=1: must be between 0 and 1"),
        ({"val_fraction": 1e-6}, "val_fraction=1e-06: must be between 0 and 1"),
        ({"split_seed": -3}, "split_seed=-3: must be between 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CIFAR10(**arguments)


@pytest.mark.slow
def test_real_fashion_mnist(data_root):
    data = FashionMNIST(root=str(data_root), download=False)
    splits, facts = data.load(), data.facts()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54_000, 6_000, 10_000)
    assert (facts.num_train, facts.num_val, facts.num_test) == (54_000, 6_000, 10_000)
    assert torch.bincount(splits.val.targets_N).tolist() == [600] * 10
    # https://github.com/zalandoresearch/fashion-mnist: mean 0.2860 and deviation 0.3530 of the training set
    whole = torch.cat((splits.train.images_NCHW, splits.val.images_NCHW)).double() / 255
    assert whole.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert whole.std().item() == pytest.approx(0.3530, abs=5e-5)
    assert splits.checksum() == "3472567bc2f29dff759880ba1adbcaaea85b4cc343e88118b2890871cc8bb345"


@pytest.mark.slow
def test_real_cifar10(data_root, tmp_path):
    script = data_root / "unpack.py"
    if not script.exists():
        pytest.skip(f"{data_root} has no packed CIFAR-10")
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    data = CIFAR10(root=str(tmp_path), download=False)
    splits = data.load()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(splits.val.targets_N).tolist() == [500] * 10
    assert splits.train.images_NCHW.is_contiguous()
    # the commonly used statistics: mean .4914 .4822 .4465, deviation .2470 .2435 .2616
    whole = torch.cat((splits.train.images_NCHW, splits.val.images_NCHW)).double() / 255
    assert whole.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert whole.std((0, 2, 3)).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)
    source = torchvision.datasets.CIFAR10(tmp_path, train=False)
    assert np.array_equal(splits.test.images_NCHW.permute(0, 2, 3, 1).numpy(), source.data)
    assert source.classes == list(CIFAR10.class_names)
    if sys.platform == "linux":
        done = subprocess.run(
            [sys.executable, "-c", WITHIN, tmp_path, splits.checksum()],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},  # stacks of threads count too
        )
        assert done.returncode == 0


# the set has 184 MB, one of its files 31 MB
WITHIN = """
import resource, sys
import torchvision.datasets
from trainer.data import CIFAR10
data = CIFAR10(root=sys.argv[1], memory_limit="20MB")
lines = open("/proc/self/status").read().splitlines()
taken = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (taken + 250_000_000,) * 2)
assert data.load().checksum() == sys.argv[2]
"""


def test_what_does_not_fit_the_limit_is_read_from_a_file(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole, limited = (FashionMNIST(str(data_root), memory_limit=limit) for limit in ("1GB", "20MB"))
    assert "in memory" in whole.storage()["images"] and "read from a file" in limited.storage()["images"]
    in_memory, in_file = whole.load(), limited.load()
    assert in_memory.checksum() == in_file.checksum()
    assert isinstance(in_file.train.images_NCHW, torch.Tensor)
    assert list((tmp_path / "gearshift").iterdir()) == []  # the file has no name
    assert whole.room() > 54_000 * 784 > limited.room()


def test_a_limit_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory_limit=much: must be auto, a number of bytes, or a size such as"):
        FashionMNIST(str(tmp_path), memory_limit="much")


@pytest.mark.slow
def test_data_cifar100_is_trained_from_files_in_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded handwritten digits, enlarged to 32x32 colour pixels, as digits 0..9 of the 100 classes."""
    from sklearn.datasets import load_digits

    from trainer import assemble, compose, fit

    digits = load_digits()
    grey_NHW = (digits.images * 255 / 16).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    rows = grey_NHW.reshape(-1, 1, 1024).repeat(3, 1).reshape(-1, 3072)
    files = {"meta": pickle.dumps({"fine_label_names": CIFAR100.class_names}, protocol=2)}
    for name, part in (("train", slice(0, 1500)), ("test", slice(1500, 1797))):
        labels = digits.target[part].tolist()
        content = {"data": rows[part], "fine_labels": labels, "coarse_labels": labels}
        files[name] = pickle.dumps(content, protocol=2)
    accept(monkeypatch, files)
    monkeypatch.setattr(CIFAR100, "num_images", (1500, 297))
    write_cifar100(tmp_path, files)
    overrides = [
        "data=cifar100",
        f"data.root={tmp_path}",
        "model=lenet",
        "model.channels=[8,16]",
        "epochs=5",
        "threads=1",
    ]
    result = fit(assemble(compose(overrides), tmp_path / "run"))
    assert (result.status, result.epochs) == ("completed", 5)
    assert result.test["test/accuracy"] > 0.9
