"""What a data set says about itself, and what it hands over."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from trainer.data.photographs.reading import Photographs

_BYTES_A_CHUNK = 4 << 20  # of a set whose images do not lie one after the other no more than this is copied at once


@dataclass(frozen=True)
class DataFacts:
    """What can be known of a data set without reading it; models and losses are fitted to it.

    `task` is "classification" or "regression", `input_shape` (channels, height, width), `num_outputs` the
    number of classes (of values a sample for a regression), `num_*` the samples of each part. `kind` is "images"
    (uint8) or "features": float32 numbers of any scale, which no augmentation changes; (D, 1, 1) then.
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
    """Samples that are used together: uint8 images (or float32 features, or photographs) and int64 class numbers (or
    float32 values, (N, K), of a regression), contiguous, on the CPU.

    Photographs have different sizes: they are framed to the shape NCHW while they are read.
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
    """The three parts of a data set; no sample is in two of them."""

    train: Part
    val: Part
    test: Part

    def checksum(self) -> str:
        """sha256 (64 hex digits) over type, shape and bytes of every tensor; about 1 GB/s.

        Of photographs it covers the files' names and checksums in place of their pixels.
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
    """Processes that read photographs."""
    short_side: int = 0
    """Of photographs, in pixels, when they are framed for evaluation; 0: there are none."""

    @abstractmethod
    def facts(self) -> DataFacts:
        """The exact counts and shapes, without downloading or reading images."""

    @abstractmethod
    def load(self) -> Splits:
        """Reads everything. ValueError: damaged files; OSError: absent ones, or a failed download."""

    def is_present(self) -> bool:
        """Whether `load` finds every file without a download; looks at names, not at contents."""
        return True

    def check(self) -> None:
        """Raises FileNotFoundError or NotADirectoryError when `load` is bound to fail for want of files."""

    def storage(self) -> dict[str, str]:
        """Where the data are kept, for `plan`: what it is called, and a phrase."""
        return {}

    def room(self) -> float | None:
        """Bytes that are free for another layout of the training images; None: not limited, and not known."""
        return None

    def memory_taken(self) -> int | None:
        """Bytes held in memory; None: all images."""
        return None

    def seconds_to_read(self) -> float | None:
        """For one photograph, by one process; None: nothing is read in each epoch."""
        return None
