"""The contract of data sets: their facts, known without reading, and their splits."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from trainer.data.photographs.reading import Photographs

_BYTES_A_CHUNK = 4 << 20  # limits the copies made of non-contiguous images


@dataclass(frozen=True)
class DataFacts:
    """What is known about a data set without reading it; models and losses are built to match.

    `task` is "classification" or "regression", `input_shape` (channels, height, width), `num_outputs` the number of
    classes (for regression, of values per sample), `num_*` the number of samples in each split. `kind` is "images"
    (uint8) or "features": float32 values of any scale, of shape (D, 1, 1), which are never augmented.
    """

    task: str
    input_shape: tuple[int, int, int]
    num_outputs: int
    num_train: int
    num_val: int
    num_test: int
    class_names: tuple[str, ...] = ()
    kind: str = "images"


@dataclass(frozen=True, eq=False)
class Part:
    """The samples of one split, contiguous, on the CPU.

    Images are uint8 (or float32 features, or photographs); targets are int64 class indices (or, for regression,
    float32 values (N, K)). Photographs have different sizes: they are framed to the shape NCHW as they are read.
    """

    images_NCHW: Tensor | Photographs
    targets_N: Tensor

    def __len__(self) -> int:
        return len(self.targets_N)

    def select(self, indices_K: Tensor) -> "Part":
        """A copy of the K samples at these indices, in that order."""
        return Part(self.images_NCHW[indices_K], self.targets_N[indices_K])


@dataclass(frozen=True, eq=False)
class Splits:
    """The training, validation and test splits of a data set, without common samples."""

    train: Part
    val: Part
    test: Part

    def checksum(self) -> str:
        """sha256 (64 hex digits) over dtype, shape and bytes of every tensor; about 1 GB/s.

        For photographs it covers the files' names and checksums instead of their pixels.
        """
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            for tensor in (part.images_NCHW, part.targets_N):
                if isinstance(tensor, Photographs):
                    digest.update(tensor.checksum().encode())
                    continue
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
                for some in tensor.split(max(1, _BYTES_A_CHUNK * len(tensor) // max(1, tensor.nbytes))):
                    digest.update(some.contiguous().numpy().data)
        return digest.hexdigest()


class DataSet(ABC):
    """The contract of a data set. The constructor only validates its arguments (ValueError)."""

    workers: int = 0
    """Number of processes that read photographs."""
    short_side: int = 0
    """Short side, in pixels, to which photographs are resized for evaluation; 0 without photographs."""

    fixed_validation: bool = False
    """Whether the validation split is a set of its own, and not cut from the training set."""

    @abstractmethod
    def facts(self) -> DataFacts:
        """The exact counts and shapes, without downloading or reading images."""

    @abstractmethod
    def load(self) -> Splits:
        """Read everything. Raises ValueError for damaged files, OSError for missing ones or a failed download."""

    def is_present(self) -> bool:
        """Whether `load` finds every file without a download; checks names, not contents."""
        return True

    def check(self) -> None:
        """Raises FileNotFoundError or NotADirectoryError if `load` is bound to fail because files are missing."""

    def storage(self) -> dict[str, str]:
        """Where the data are kept, for `plan`: a label and a phrase."""
        return {}

    def room(self) -> float | None:
        """Bytes available for a second layout of the training images; None: no limit is known."""
        return None

    def memory_taken(self) -> int | None:
        """Bytes held in memory; None: all images."""
        return None

    def seconds_to_read(self) -> float | None:
        """Seconds to read one photograph with one process; None: nothing is read during an epoch."""
        return None
