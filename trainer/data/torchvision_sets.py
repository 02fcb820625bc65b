"""Sets that torchvision knows how to read and to fetch: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100."""

import contextlib
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

from trainer.base.errors import is_out_of_memory
from trainer.data import memory
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.split import check_root, check_split_seed, cut_size, stratified_cut

DEFAULT_ROOT = "data"  # the only folder that a download may create: any other name may be a typing error

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
    """A set with a given test part; the validation part is cut from the training part, stratified.

    `root` is the folder that holds the set's own folder, as torchvision lays it out. What is there is read
    and never written. An absent set is fetched when `download` is true. `val_fraction` is a share of the
    given training part, in (0, 1). `memory_limit` bounds what the images may take (bytes, text such as "500MB", or
    "auto" for half of what is free): beyond it they are read from a nameless file in the user's cache folder.
    """

    name: ClassVar[str]
    torchvision_class: ClassVar[str]
    folder: ClassVar[str]  # within root
    files: ClassVar[tuple[str, ...]]  # within folder, all that are needed
    num_images: ClassVar[tuple[int, int]]  # of the given training and test parts
    input_shape: ClassVar[tuple[int, int, int]]
    class_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        root: str = DEFAULT_ROOT,
        download: bool = True,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        memory_limit: int | str = "auto",
    ) -> None:
        check_root(root)
        check_split_seed(split_seed)
        self.root = Path(root).expanduser()
        self.download = download
        self.num_val = cut_size("val_fraction", val_fraction, self.num_images[0])
        self.split_seed = split_seed
        self._limit = memory.parse_limit(memory_limit)

    def facts(self) -> DataFacts:
        return DataFacts(
            task="classification",
            input_shape=self.input_shape,
            num_outputs=len(self.class_names),
            num_train=self.num_images[0] - self.num_val,
            num_val=self.num_val,
            num_test=self.num_images[1],
            class_names=self.class_names,
        )

    def is_present(self) -> bool:
        return all((self.root / self.folder / file).is_file() for file in self.files)

    def check(self) -> None:
        """Raises NotADirectoryError when root is no folder, and FileNotFoundError when it does not exist
        (only the default may be made) or when the set is absent and must not be downloaded."""
        if self.root.exists() and not self.root.is_dir():
            raise NotADirectoryError(f"root={self.root}: must be a folder, but is a file")
        if not self.root.exists() and self.root != Path(DEFAULT_ROOT):
            raise FileNotFoundError(
                f"root={self.root}: must be an existing folder (a download creates none but '{DEFAULT_ROOT}')"
            )
        if not self.download and not self.is_present():
            raise FileNotFoundError(
                f"{self.name} is not complete in {self.root / self.folder}; data.download=true would fetch it"
            )

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
        return Splits(_select(train, train_indices, room), _select(train, val_indices, room), test)

    @property
    def memory_limit(self) -> int:
        """Bytes that the images may take."""
        return memory.free_share() if self._limit is None else self._limit

    def room(self) -> int:
        """Bytes of the limit that validation and test part leave to another layout of the training part."""
        num_others = self.num_val + self.num_images[1]
        return self.memory_limit - num_others * math.prod(self.input_shape)

    def storage(self) -> dict[str, str]:
        """What keeping the images costs, for people."""
        return {"images": self._layout}

    def memory_taken(self) -> int:
        """Bytes of memory that the images take; 0 for those in a file."""
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
        """The torchvision data set, of its own or another `kind`, which holds everything in memory."""
        kind = kind or self._kind()
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 complains of pickles as old as CIFAR's
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            # Python 3.12 and 3.13 of any unpacking that names no filter; torchvision has compared the archive's md5
            warnings.filterwarnings(
                "ignore", message="Python 3.14 will, by default, filter", category=DeprecationWarning
            )
            return kind(root, train=train, download=download)

    def _kind(self) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, self.torchvision_class)

    def _pieces(self, train: bool) -> Iterator[Any]:
        """A given part as torchvision data sets, one after the other."""
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
        except Exception as error:  # torchvision's parsers stumble over damaged bytes in many ways
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
        """Room for so many images."""
        return torch.empty(count, *self.input_shape, dtype=torch.uint8)

    def _in_file(self, count: int) -> Tensor:
        """Room in a file without a name, of which the system keeps in memory what fits. Raises OSError."""
        folder = memory.cache_folder(None)
        folder.mkdir(parents=True, exist_ok=True)
        shape = (count, *self.input_shape)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))  # a full disk is found here
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))

    def _fetch(self) -> None:
        """Downloads beside the set's folder and moves the files in when all are whole: an interrupted or a
        parallel download never leaves a half-written file under a name that is read."""
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
            failure = OSError(f"{self.name}: the download to {self.root} failed ({_one_line(error)})")
            failure.errno = getattr(error, "errno", None)  # tells a full or read-only disk from the network
            raise failure from error


def _select(part: Part, indices_K: Tensor, room: Callable[[int], Tensor]) -> Part:
    """These samples of a part, in a room of their own."""
    assert isinstance(part.images_NCHW, Tensor)
    images_KCHW = torch.index_select(part.images_NCHW, 0, indices_K, out=room(len(indices_K)))
    return Part(images_KCHW, part.targets_N[indices_K])


def _one_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=200, placeholder=" ...").rstrip(": ")


@contextlib.contextmanager
def _progress_on_stderr() -> Iterator[None]:
    """Keeps torchvision's progress off stdout, and off a stderr that nobody watches."""
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
        """File by file: together with their pickles they take several times what the images do."""
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
