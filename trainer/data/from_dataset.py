"""Any map-style torch Dataset, read once into memory."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.base.blame import with_place
from trainer.base.checks import check_whole
from trainer.base.config import Component
from trainer.base.errors import one_line
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.split import check_split_seed, cut_size, stratified_cut

_PLAIN_MODES, _WIDE_MODES = (
    ("L", "RGB"),
    ("I", "I;16", "I;16B", "I;16L", "F"),
)  # of PIL; others become RGB
_MOST_CHANNELS, _MOST_CLASSES = 4, 1_000_000


class MapStyle(Protocol):
    """A map-style dataset of pairs (image, class number)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


class FromDataset(DataSet):
    """The samples (image, class index) of map-style datasets, as uint8 tensors.

    An image is a uint8 tensor (C, H, W) or (H, W), a uint8 array (H, W) or (H, W, C), or a PIL image: 8-bit grey has 1
    channel, and any other 8-bit mode becomes RGB (alpha is dropped, palettes and CMYK are converted). All images have
    the same size and number of channels; a transform of the dataset converts others. A dataset is any object with `len`
    and an index. `train` is required; splits that are not given are cut from it, stratified: `test_fraction` and
    `val_fraction` are fractions of `train`. `num_classes`, 1 to 1,000,000, may be omitted if `train` has a list
    `classes`.

    All samples are read once, in order, and kept in memory: use `image_folder` for photographs. Raises ValueError for
    other samples; the constructor already checks the first.
    """

    def __init__(
        self,
        train: MapStyle,
        val: MapStyle | None = None,
        test: MapStyle | None = None,
        num_classes: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        for name, dataset in (("train", train), ("val", val), ("test", test)):
            if dataset is None and name != "train":
                continue
            if dataset is None or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise ValueError(f"{name}={_kind(dataset)}: must be a dataset with __len__ and __getitem__")
            if len(dataset) < 1:
                raise ValueError(f"{name}={_kind(dataset)}: has no samples")
        check_split_seed(split_seed)
        self.train, self.val, self.test, self.split_seed = train, val, test, split_seed
        self.fixed_validation = val is not None
        self.num_val = cut_size("val_fraction", val_fraction, len(train)) if val is None else len(val)
        self.num_test = cut_size("test_fraction", test_fraction, len(train)) if test is None else len(test)
        if self._num_kept() < 1:
            few = f"; train has {len(train)} samples" if len(train) < 3 else ""
            raise ValueError(f"val_fraction={val_fraction}: must leave samples for training{few}")
        names: Sequence[object] = getattr(train, "classes", None) or ()
        if num_classes is None and not names:
            raise ValueError(f"num_classes=null: must be given, because {_kind(train)} has no list `classes`")
        self.num_classes = len(names) if num_classes is None else num_classes
        check_whole("num_classes", self.num_classes, 1, _MOST_CLASSES)
        self.class_names = tuple(map(str, names)) if len(names) == self.num_classes else ()
        self.input_shape = tuple(self._sample("train", 0)[0].shape)

    def _num_kept(self) -> int:
        return len(self.train) - (self.num_val if self.val is None else 0) - (self.num_test if self.test is None else 0)

    def facts(self) -> DataFacts:
        channels, height, width = self.input_shape
        return DataFacts(
            "classification", (channels, height, width), self.num_classes,
            self._num_kept(), self.num_val, self.num_test, self.class_names,
        )  # fmt: skip

    def load(self) -> Splits:
        parts = {name: self._read(name) for name in ("train", "val", "test") if getattr(self, name) is not None}
        generator = torch.Generator().manual_seed(self.split_seed)
        for name, count in (("test", self.num_test), ("val", self.num_val)):
            if name not in parts:
                train = parts["train"]
                kept, cut = stratified_cut(train.targets_N, count, generator)
                parts["train"], parts[name] = train.select(kept), train.select(cut)
        return Splits(parts["train"], parts["val"], parts["test"])

    def _read(self, name: str) -> Part:
        count = len(getattr(self, name))
        images_NCHW = torch.empty(count, *self.input_shape, dtype=torch.uint8)
        targets_N = torch.empty(count, dtype=torch.int64)
        for number in range(count):
            image, label = self._sample(name, number)
            if image.shape != self.input_shape:
                raise ValueError(_other_shape(f"sample {number} of {name}", tuple(image.shape), self.input_shape))
            images_NCHW[number], targets_N[number] = image, label
        return Part(images_NCHW, targets_N)

    def _sample(self, name: str, number: int) -> tuple[Tensor, int]:
        """Image (C, H, W), uint8, and class. Raises ValueError for anything else."""
        where = f"sample {number} of {name}"
        try:
            image, label = getattr(self, name)[number]
        except Exception as error:  # a user's class may raise anything
            text = f"{where} cannot be read as (image, class): {one_line(error)}"
            raise ValueError(with_place(text, error)) from error
        try:
            found = int(label)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{where} has the class {_kind(label)}: must be a whole number") from error
        if found != label or not 0 <= found < self.num_classes:
            raise ValueError(f"{where} has the class {label}: must be a whole number in 0..{self.num_classes - 1}")
        return _as_image(image, where), found


def _as_image(image: Component, where: str) -> Tensor:
    found: Tensor
    if hasattr(image, "getbands"):  # PIL
        from torchvision.transforms.v2.functional import pil_to_tensor

        if image.mode in _WIDE_MODES:
            raise ValueError(
                f"{where} is a PIL image of mode {image.mode}, more than 8 bits per value; a transform of the dataset"
                " has to scale it to 8 bits"
            )
        found = pil_to_tensor(image if image.mode in _PLAIN_MODES else image.convert("RGB"))
    elif isinstance(image, Tensor):
        found = image.unsqueeze(0) if image.ndim == 2 else image
    elif hasattr(image, "__array_interface__"):
        array = torch.from_numpy(np.array(image, order="C"))  # a copy: it may be read-only, or mirrored by its strides
        found = array.permute(2, 0, 1) if array.ndim == 3 else array.unsqueeze(0)
    else:
        raise ValueError(f"{where} is {_kind(image)}: must be a tensor, an array or a PIL image")
    if found.dtype != torch.uint8:
        advice = "a transform of the dataset has to convert it to 8 bits"
        if found.is_floating_point():
            advice = "remove conversions to float, such as ToTensor, from the dataset's transform"
        raise ValueError(
            f"{where} has the type {str(found.dtype).removeprefix('torch.')}: must be uint8 (0..255); {advice}"
        )
    if found.ndim != 3 or not 1 <= found.shape[0] <= _MOST_CHANNELS:
        raise ValueError(f"{where} has the shape {tuple(found.shape)}: must be (1 to 4 channels, height, width)")
    return found


_COLOURS = {1: "grey (1 channel)", 2: "grey with alpha (2 channels)", 3: "in colour (3 channels)",
            4: "in colour with alpha (4 channels)"}  # fmt: skip


def _other_shape(where: str, found: tuple[int, ...], first: tuple[int, ...]) -> str:
    """How an image differs from the first one of the training split, and what to do."""
    if found[0] != first[0]:
        return (
            f"{where} is {_COLOURS[found[0]]}, the first one of train {_COLOURS[first[0]]}; a transform of the dataset"
            " has to make them alike, for PIL images with image.convert('RGB')"
        )
    return (
        f"{where} has the shape {found}, the first one of train {first}; a transform of the dataset has to resize them"
    )


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
