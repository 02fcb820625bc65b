"""Data sets that torchvision can read and download: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100."""

import contextlib
import errno
import http.client
import io
import logging
import math
import os
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trainer.base.checks import check_whole
from trainer.base.errors import is_out_of_memory
from trainer.base.text import join_names
from trainer.data import memory
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.split import check_root, check_split_seed, cut_size, stratified_cut

DEFAULT_ROOT = "data"  # the only folder that a download may create: another name may be misspelt

CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

logger = logging.getLogger(__name__)


class TorchvisionSet(DataSet):
    """A set with a given test split; the validation split is cut from the training split, stratified.

    `root` is the folder that contains the set's own folder, in torchvision's layout. Existing files are read and never
    written. A missing set is downloaded if `download` is true. `val_fraction` is a fraction, in (0, 1), of the given
    training split. `num_train` is the number of training images to use, a stratified part of the others that
    `split_seed` chooses; None for all. `memory_limit` bounds the memory for images (bytes, text such as "500MB", or
    "auto" for half of the free memory): beyond it they are read from an unlinked file in the user's cache folder.
    """

    name: ClassVar[str]
    torchvision_class: ClassVar[str]
    folder: ClassVar[str]  # within root
    files: ClassVar[tuple[str, ...]]  # within folder, all required
    num_images: ClassVar[tuple[int, int]]  # in the given training and test splits
    input_shape: ClassVar[tuple[int, int, int]]
    class_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        root: str = DEFAULT_ROOT,
        download: bool = True,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_train: int | None = None,
        memory_limit: int | str = "auto",
    ) -> None:
        check_root(root)
        check_split_seed(split_seed)
        self.root = Path(root).expanduser()
        self.download = download
        self.num_val = cut_size("val_fraction", val_fraction, self.num_images[0])
        self.split_seed = split_seed
        others = self.num_images[0] - self.num_val
        self.num_train = others if num_train is None else check_whole("num_train", num_train, 1, others)
        self._limit = memory.parse_limit(memory_limit)

    def facts(self) -> DataFacts:
        return DataFacts(
            task="classification",
            input_shape=self.input_shape,
            num_outputs=len(self.class_names),
            num_train=self.num_train,
            num_val=self.num_val,
            num_test=self.num_images[1],
            class_names=self.class_names,
        )

    def is_present(self) -> bool:
        return all((self.root / self.folder / file).is_file() for file in self.files)

    def check(self) -> None:
        """Raises NotADirectoryError if root is not a folder, FileNotFoundError if the set cannot be found or
        downloaded.

        The latter is raised if root does not exist (only the default root may be created), or if the set is missing
        and `download` is false.
        """
        if self.root.exists() and not self.root.is_dir():
            raise NotADirectoryError(f"root={self.root}: must be a folder, but is a file")
        if not self.root.exists() and self.root != Path(DEFAULT_ROOT):
            raise FileNotFoundError(
                f"root={self.root}: must be an existing folder (a download creates only '{DEFAULT_ROOT}')"
            )
        if not self.download and not self.is_present():
            raise FileNotFoundError(
                f"{self.name} is not complete in {self.root / self.folder}; data.download=true would download it; "
                f"{self._by_hand()}"
            )

    def _by_hand(self) -> str:
        """Describe where the files of the set come from and belong, for a machine without a network."""
        archive: str = self._kind().url
        return f"by hand: unpack {archive} in {self.root}; {self._wanted()}"

    def _wanted(self) -> str:
        folder = self.root / self.folder
        missing = join_names([file for file in self.files if not (folder / file).is_file()], len(self.files))
        elsewhere = "" if os.environ.get("DATA_ROOT") else " (or set DATA_ROOT to the folder that has it)"
        return f"{folder} must hold {missing}{elsewhere}"

    def load(self) -> Splits:
        self.check()
        if not self.is_present():
            self._fetch()
        room: Callable[[int], Tensor] = self._in_memory
        if self._num_bytes > self.memory_limit:
            logger.info("%s: %s", self.name, self._layout)
            room = self._in_file
        train, test = self._read(room, train=True), self._read(room, train=False)
        generator = torch.Generator().manual_seed(self.split_seed)
        train_indices, val_indices = stratified_cut(train.targets_N, self.num_val, generator)
        if self.num_train < len(train_indices):
            _, chosen = stratified_cut(train.targets_N[train_indices], self.num_train, generator)
            train_indices = train_indices[chosen]
        return Splits(_select(train, train_indices, room), _select(train, val_indices, room), test)

    @property
    def memory_limit(self) -> int:
        """Bytes that the images may use."""
        return memory.free_share() if self._limit is None else self._limit

    def room(self) -> int:
        """Bytes of the limit that remain for another layout of the training split."""
        num_others = self.num_val + self.num_images[1]
        return self.memory_limit - num_others * math.prod(self.input_shape)

    def storage(self) -> dict[str, str]:
        """Describe what keeping the images costs."""
        return {"images": self._layout}

    def memory_taken(self) -> int:
        """Bytes held in memory; 0 for images read from disk."""
        return self._num_bytes if self._num_bytes <= self.memory_limit else 0

    @property
    def _num_bytes(self) -> int:
        return sum(self.num_images) * math.prod(self.input_shape)

    @property
    def _layout(self) -> str:
        where = f"read from a file in {memory.cache_folder(None)}" if self.memory_taken() == 0 else "in memory"
        limit = memory.as_bytes(self.memory_limit)
        return f"{memory.as_bytes(self._num_bytes)} as uint8; data.memory_limit is {limit}: {where}"

    def _open(self, root: Path, train: bool, download: bool, kind: Any = None) -> Any:
        """The torchvision data set, of its own class or `kind`, which holds everything in memory."""
        kind = kind or self._kind()
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warns about pickles as old as CIFAR's
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            # Python 3.12 and 3.13 warn about extracting without a filter; torchvision has verified the archive's md5
            warnings.filterwarnings(
                "ignore", message="Python 3.14 will, by default, filter", category=DeprecationWarning
            )
            return kind(root, train=train, download=download)

    def _kind(self) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, self.torchvision_class)

    def _pieces(self, train: bool) -> Iterator[Any]:
        """Yield a given split as one or more torchvision data sets."""
        yield self._open(self.root, train, download=False)

    def _read(self, room: Callable[[int], Tensor], train: bool) -> Part:
        count = self.num_images[0 if train else 1]
        images_NCHW, targets = room(count), list[int]()
        try:
            for piece in self._pieces(train):
                read = torch.as_tensor(piece.data)  # NHW, or NHWC from CIFAR
                read_NCHW = read.unsqueeze(1) if read.ndim == 3 else read.permute(0, 3, 1, 2)
                self._compare_with_facts(read_NCHW, piece.targets, count - len(targets))
                images_NCHW[len(targets) : len(targets) + len(read)] = read_NCHW
                targets += torch.as_tensor(piece.targets).tolist()
            if len(targets) != count:
                raise ValueError(f"{len(targets):,} images, not {count:,}")
        except Exception as error:  # torchvision's parsers raise many kinds of errors for damaged files
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            raise ValueError(
                f"{self.name}: the files in {self.root / self.folder} are damaged ({_one_line(error)});"
                " delete that folder and run again with data.download=true"
            ) from error
        return Part(images_NCHW, torch.tensor(targets, dtype=torch.int64))

    def _compare_with_facts(self, images_NCHW: Tensor, targets: Any, most: int) -> None:
        shape = tuple(images_NCHW.shape)
        if shape[1:] != self.input_shape or len(targets) != len(images_NCHW) or images_NCHW.dtype != torch.uint8:
            found = f"{images_NCHW.dtype} of shape {shape} with {len(targets)} labels"
            raise ValueError(f"{found}, not torch.uint8 of shape {(len(images_NCHW), *self.input_shape)}")
        if len(targets) > most:
            raise ValueError(f"{len(targets) - most:,} images too many")
        lowest, highest = torch.as_tensor(targets).aminmax()
        if lowest < 0 or highest >= len(self.class_names):
            raise ValueError(f"labels from {int(lowest)} to {int(highest)}, of {len(self.class_names)} classes")

    def _in_memory(self, count: int) -> Tensor:
        """Allocate memory for `count` images."""
        return torch.empty(count, *self.input_shape, dtype=torch.uint8)

    def _in_file(self, count: int) -> Tensor:
        """Map an unlinked file for `count` images, which the page cache holds as far as it fits. Raises OSError."""
        folder = memory.cache_folder(None)
        folder.mkdir(parents=True, exist_ok=True)
        shape = (count, *self.input_shape)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))  # fails here if the disk is full
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))

    def _fetch(self) -> None:
        """Download to a temporary folder, then move the files into place once all are complete.

        An interrupted or parallel download never leaves a partial file under a final name.
        """
        logger.info("downloading %s to %s", self.name, self.root)
        try:
            self.root.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=self.root) as scratch:
                with _progress_on_stderr():
                    self._open(Path(scratch), train=True, download=True)
                target = self.root / self.folder
                target.mkdir(parents=True, exist_ok=True)
                for file in self.files:
                    (Path(scratch) / self.folder / file).replace(target / file)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            number = getattr(error, "errno", None)  # distinguishes a full or read-only disk from network errors
            advice = "" if number in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT) else f"; {self._by_hand()}"
            failure = OSError(f"{self.name}: the download to {self.root} failed ({_one_line(error)}){advice}")
            failure.errno = number
            raise failure from error


def _select(part: Part, indices_K: Tensor, room: Callable[[int], Tensor]) -> Part:
    """Copy the samples at these indices into memory allocated by `room`."""
    assert isinstance(part.images_NCHW, Tensor)
    images_KCHW = torch.index_select(part.images_NCHW, 0, indices_K, out=room(len(indices_K)))
    return Part(images_KCHW, part.targets_N[indices_K])


def _one_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=200, placeholder=" ...").rstrip(": ")


@contextlib.contextmanager
def _progress_on_stderr() -> Iterator[None]:
    """Redirect torchvision's progress bar to stderr, or discard it if stderr is not a terminal."""
    stream = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield


class MNIST(TorchvisionSet):
    """60,000 + 10,000 handwritten digits, grey, 28x28, 10 classes (LeCun, Cortes, Burges, 1998)."""

    name = "mnist"
    torchvision_class = "MNIST"
    folder = "MNIST/raw"
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    num_images = (60_000, 10_000)
    input_shape = (1, 28, 28)
    class_names = tuple("0123456789")

    def _by_hand(self) -> str:
        kind = self._kind()
        archives = join_names([name for name, _ in kind.resources], len(kind.resources))
        return f"by hand: unpack {archives} of {kind.mirrors[0]} into {self.root / self.folder}; {self._wanted()}"


class FashionMNIST(MNIST):
    """60,000 + 10,000 pieces of clothing in MNIST's format, 10 classes (Xiao et al., arXiv 1708.07747)."""

    name = "fashion_mnist"
    torchvision_class = "FashionMNIST"
    folder = "FashionMNIST/raw"
    class_names = tuple(CLOTHES.split(","))


class CIFAR10(TorchvisionSet):
    """50,000 + 10,000 colour photographs, 32x32, 10 classes (Krizhevsky, 2009)."""

    name = "cifar10"
    torchvision_class = "CIFAR10"
    folder = "cifar-10-batches-py"
    files = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
    num_images = (50_000, 10_000)
    input_shape = (3, 32, 32)
    class_names = tuple(CIFAR10_CLASSES.split())

    def _pieces(self, train: bool) -> Iterator[Any]:
        """Open one file at a time: all pickles together take several times the memory of the images."""
        kind = self._kind()
        for file in kind.train_list if train else kind.test_list:  # name and md5
            alone = type(kind.__name__, (kind,), {"train_list": [file], "test_list": [file]})
            yield self._open(self.root, train, download=False, kind=alone)


class CIFAR100(CIFAR10):
    """50,000 + 10,000 colour photographs, 32x32, 100 classes, the fine labels (Krizhevsky, 2009)."""

    name = "cifar100"
    torchvision_class = "CIFAR100"
    folder = "cifar-100-python"
    files = ("train", "test", "meta")
    class_names = tuple(CIFAR100_CLASSES.split())
