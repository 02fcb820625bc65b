"""A sequence of named operations."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from trainer.augmentation.bordered import Bordered
from trainer.augmentation.geometry import Crop, HorizontalFlip
from trainer.augmentation.operation import Operation, OperationLike, Rows, most
from trainer.augmentation.warp import Fill, changed, check_fill, resample, resampling
from trainer.base.chunks import BufferPool, Change, by_chunks
from trainer.contracts import Augmentation, adapt, missing_members


class Pipeline(Augmentation):
    """Applies operations in the order in which they are given.

    Neighbouring operations that map coordinates (rotate, translate, scale, ...) with the same `fill` are composed into
    one resampling: an image is interpolated once, and pixels that one operation moves out of the frame can be moved
    back in by the next. An operation that also mixes labels (mixup, cutmix) is applied after all others, to the
    preprocessed batch.

    An operation's parameters are stored in the table under `<its name>.<parameter>`, for example "crop.offset_y".
    Raises ValueError if there is no operation, if an argument is not an operation, or if more than one mixes samples.
    """

    def __init__(self, **operations: OperationLike) -> None:
        if not operations:
            raise ValueError("operations={}: must name at least one (or choose augmentation=none)")
        self.operations = {name: _adapted(name, operation) for name, operation in operations.items()}
        self._fills = {name: _fill(name, item) for name, item in self.operations.items() if item.maps_coordinates}
        self._pool = BufferPool()
        mixing = [name for name, operation in self.operations.items() if operation.mixes]
        if len(mixing) > 1:
            raise ValueError(f"{', '.join(mixing)}: only one operation can mix samples")
        self.mixing = mixing[0] if mixing else None
        unmixed = [name for name in self.operations if name != self.mixing]
        self._steps = [list(group) for _, group in groupby(unmixed, key=self._kind)]

    def notices(self, input_shape: tuple[int, int, int], class_names: Sequence[str]) -> list[str]:
        """Return a line, with the setting that helps, for each operation that does not suit such images."""
        side, used = (
            min(input_shape[1:]),
            {name: item for name, item in self.operations.items() if item.probability > 0},
        )
        found = [(name, item.notice(side, _are_characters(class_names))) for name, item in used.items()]
        return [f"{name}: {notice[0]}; set augmentation.{name}.{notice[1]}" for name, notice in found if notice]

    def _kind(self, name: str) -> tuple[bool, str]:
        """Key that is equal for neighbouring operations that are computed together."""
        return name in self._fills, self._fills.get(name, name)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        """Return an epoch's table: a CPU tensor per parameter, with one row per sample."""
        table: Rows = {}
        for name, operation in self.operations.items():
            try:
                drawn = operation.draw(num_samples, input_shape, generator)
            except ValueError as error:  # prefixed with the operation's name in the configuration
                raise ValueError(f"{name}.{error}") from error
            table |= {f"{name}.{parameter}": column for parameter, column in drawn.items()}
        return table

    def __call__(self, images_NCHW: Tensor, rows: Rows, skip: int = 0) -> Tensor:
        """Return the augmented images, of integers 0..255, given these samples' rows of the table.

        uint8 images are not modified; float32 images may be overwritten. The first `skip` operations are assumed to be
        applied already.
        """
        images_NCHW, changes = self.begin(images_NCHW, rows, skip)
        return by_chunks(images_NCHW, changes, BufferPool()) if changes else images_NCHW

    def begin(self, images_NCHW: Tensor, rows: Rows, skip: int = 0) -> tuple[Tensor, list[Change]]:
        """Like a call, but do not apply the last operations that can run chunk by chunk.

        Return them as changes for `by_chunks`, together with the images.
        """
        by_name = _by_name(rows)
        done = list(self.operations)[:skip]
        prepared: list[Change] = []  # not applied yet
        for step in self._steps:
            names = [name for name in step if name not in done]
            if not names:
                continue
            change = self._prepare(names, images_NCHW, by_name)
            if change is not None:
                prepared.append(change)
                continue
            if prepared:
                images_NCHW, prepared = by_chunks(images_NCHW, prepared, self._pool), []
            images_NCHW = self._apply(names, images_NCHW, by_name)
        return images_NCHW, prepared

    def _prepare(self, names: list[str], images_NCHW: Tensor, rows: dict[str, Rows]) -> Change | None:
        """The step as a change that can be applied chunk by chunk; None if it has to be applied to the whole batch."""
        fill = self._fills.get(names[0])
        if fill is None:
            return self.operations[names[0]].prepare(images_NCHW, rows[names[0]])
        matrices_N33 = self._matrices(names, images_NCHW, rows)
        return resampling(images_NCHW, matrices_N33, fill) if most(changed(matrices_N33)) else None

    def _apply(self, names: list[str], images_NCHW: Tensor, rows: dict[str, Rows]) -> Tensor:
        operation, fill = self.operations[names[0]], self._fills.get(names[0])
        if not operation.keeps_values:
            images_NCHW = images_NCHW.to(torch.float32)
        if fill is None:
            return operation(images_NCHW, rows[names[0]])
        return resample(images_NCHW, self._matrices(names, images_NCHW, rows), fill)

    def _matrices(self, names: list[str], images_NCHW: Tensor, rows: dict[str, Rows]) -> Tensor:
        """Compose the operations' maps; each leads from output to input, so they are multiplied in order."""
        height, width = images_NCHW.shape[2:]
        first, *rest = [self.operations[name].matrix(rows[name], height, width) for name in names]
        for matrix_N33 in rest:
            first = first @ matrix_N33
        return first

    def frames(self, rows: Rows, sizes_N2: Tensor, output_hw: tuple[int, int]) -> Tensor | None:
        """Frames to crop from stored images of these sizes, int64_N8 (see `framing`), if the first operation provides
        them.

        If a horizontal flip follows, the width of images to be flipped is negative. After cropping these frames, call
        the pipeline with `skip=framed`.
        """
        names, by_name = list(self.operations), _by_name(rows)
        found = self.operations[names[0]].frames(by_name[names[0]], sizes_N2, output_hw)
        if found is not None and self.framed == 2:
            found[by_name[names[1]]["applied"], 5] *= -1
        return found

    @property
    def framed(self) -> int:
        """Number of leading operations that `frames` covers."""
        return 2 if isinstance([*self.operations.values(), None][1], HorizontalFlip) else 1

    def border(self, images_NCHW: Tensor, room: float = math.inf) -> "PaddedImages | None":
        """A layout of a whole data set from which the pipeline's leading flip and crop are read faster.

        None if the pipeline does not start with them, or if the layout takes more than `room` bytes.
        """
        found = self._moves()
        needed = self.border_bytes(tuple(images_NCHW.shape))
        if found is None or needed is None or needed > room:
            return None
        return PaddedImages(self, images_NCHW, *found)

    def border_bytes(self, shape: tuple[int, ...]) -> int | None:
        """Bytes of that layout for a set of shape (N, C, H, W); None if there is no such layout."""
        found = self._moves()
        return None if found is None else Bordered.size(shape, found[3])

    def _moves(self) -> tuple[list[str], str | None, str, int] | None:
        """The leading flip and crop: all names, the flip's name, the crop's name, and its padding."""
        names: list[str] = []
        flip = crop = None
        padding = 0
        for name, operation in self.operations.items():
            if isinstance(operation, HorizontalFlip) and flip is None:
                flip = name
            elif isinstance(operation, Crop) and crop is None:
                crop, padding = name, operation.padding
            else:
                break
            names.append(name)
        return None if crop is None else (names, flip, crop, padding)

    def mix(self, images_NCHW: Tensor, partners_NCHW: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Mix preprocessed images with their partners; also return `lam`, the weight of each image's own label,
        float32_N."""
        assert self.mixing is not None
        return self.operations[self.mixing].mix(images_NCHW, partners_NCHW, _by_name(rows)[self.mixing])


class PaddedImages:
    """A data set stored with borders, and the pipeline that reads from it."""

    def __init__(
        self, pipeline: Pipeline, images_NCHW: Tensor, names: list[str], flip: str | None, crop: str, padding: int
    ) -> None:
        self._pipeline, self._names, self._flip, self._crop, self._padding = pipeline, names, flip, crop, padding
        self._bordered = Bordered(images_NCHW, padding)
        self.images_NCHW = self._bordered.images_NCHW

    def begin(self, indices_N: Tensor, rows: Rows) -> tuple[Tensor, list[Change]]:
        """The samples at these indices, given their rows, as returned by `Pipeline.begin`."""
        offset_y_N, offset_x_N = rows[f"{self._crop}.offset_y"], rows[f"{self._crop}.offset_x"]
        flipped_N = None if self._flip is None else rows[f"{self._flip}.applied"]
        if flipped_N is not None and self._names[0] == self._flip:
            # the crop of a flipped image is the flipped crop from the opposite side
            offset_x_N = torch.where(flipped_N, 2 * self._padding - offset_x_N, offset_x_N)
        images_NCHW = self._bordered.read(indices_N, offset_y_N, offset_x_N, flipped_N)
        return self._pipeline.begin(images_NCHW, rows, skip=len(self._names))


def _are_characters(class_names: Sequence[str]) -> bool:
    """Whether the classes are named like digits and letters: "7", "7 - seven", "g"."""
    return bool(class_names) and all(re.fullmatch(r"[^\W_]( - \w+)?", name) for name in class_names)


def _adapted(name: str, operation: OperationLike) -> Operation:
    missing = ", ".join(missing_members(Operation, operation))
    if missing:
        raise ValueError(
            f"{name}={operation}: must be an operation (it has no {missing}; remove it by ~augmentation.{name})"
        )
    return adapt("augmentation", Operation, operation)  # type: ignore[type-abstract]


def _fill(name: str, operation: Operation) -> Fill:
    try:
        return check_fill(operation.fill)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


def _by_name(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = defaultdict(dict)
    for key, values in rows.items():
        name, _, parameter = key.partition(".")
        found[name][parameter] = values
    return found
