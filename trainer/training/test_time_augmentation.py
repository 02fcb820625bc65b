"""Test-time augmentation: the views of an image, and the weight of each.

Does not import torch at the top, because `train evaluate` parses its arguments with it first.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.base.errors import ConfigurationError, unknown

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("none", "flip", "ten_crop", "multi_scale")
_LECTURE_SIDE = 224
_LECTURE_SHORT_SIDES = (224, 256, 384, 480, 640)
_SMALLEST_CROP = 0.1
_USUAL_CROP = 0.875
_KEYS = ("tta", "tta.crop")
_PLAIN, _MIRRORED = False, True


@dataclass(frozen=True)
class TestTime:
    """Views of images, all of the model's input size H x W, whose class probabilities are averaged.

    - none: the image.
    - flip: the image and its mirror image.
    - ten_crop: enlarges the image to round(H / crop) x round(W / crop) and crops H x W at the four corners and the
      center, of the image and of its mirror image, as torchvision's `ten_crop`. A crop shows the fraction `crop` of
      each side (None: 0.875, the usual 224 of 256).
    - multi_scale: ten crops at each of five scales, the image enlarged by 224/224, 256/224, 384/224, 480/224 and
      640/224, the lecture's short sides for crops of 224; at the first scale all five crops are the whole image.

    Resizing is bilinear and antialiased on uint8, as in torchvision.

    Crops of a photograph are taken from the whole stored photograph (scaled down to `max_side`, if set). Its short
    side is resized to round(size / crop), or as for evaluation if `crop` is None; for multi_scale to round(size * 224
    / 224) up to round(size * 640 / 224). A smaller photograph is enlarged. none and flip use the crop of a plain
    evaluation.

    Source: CUHK ELEG 5491, "Data augmentation" (testing). Raises ConfigurationError for an unknown kind or a `crop`
    not in 0.1..1.
    """

    __test__ = False  # not a test, despite its name

    kind: str = "none"
    crop: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(unknown("option", self.kind, KINDS, "tta="))
        if self.crop is not None and not _SMALLEST_CROP <= self.crop <= 1:
            raise ConfigurationError(f"tta.crop={self.crop}: must be a number from {_SMALLEST_CROP} to 1")

    def views(self, images_NCHW: "Tensor") -> Iterator[tuple["Tensor", int]]:
        """Yield views of the uint8 images, each with its weight."""
        H, W = images_NCHW.shape[2:]
        for height, width in self._sizes(H, W):
            enlarged = _resize(images_NCHW, height, width)
            for image in (enlarged,) if self.kind == "none" else (enlarged, enlarged.flip(3)):
                for (top, left), count in self._corners(height - H, width - W).items():
                    yield image[:, :, top : top + H, left : left + W], count

    def frames(self, sizes_N2: "Tensor", size: int, short_side: int) -> "Iterator[Tensor]":
        """Yield the frames to read from photographs of these sizes for size x size views, int64 (N, 8) each.

        `short_side` is that of an evaluation. `views_of_frames` turns the images read into views.
        """
        import torch

        from trainer.data.photographs.frames import evaluation_frames

        for side in self._short_sides(size, short_side):
            middle_N8 = evaluation_frames(sizes_N2, size, side)
            if self.kind in ("none", "flip"):
                yield middle_N8
                continue
            whole_N6, middle_N2 = middle_N8.split((6, 2), 1)
            room_N2 = whole_N6[:, 4:] - size
            for at in ((0, 0), (0, 1), (1, 0), (1, 1)):
                yield torch.cat((whole_N6, room_N2 * torch.tensor(at)), 1)
            yield middle_N8
            # the center crop of the mirror image is one pixel further if the margin is odd
            top_N1, left_N1 = middle_N2.split(1, 1)
            yield torch.cat((whole_N6, top_N1, room_N2[:, 1:] - left_N1), 1)

    def views_of_frames(self, read: "Iterator[Tensor]") -> Iterator[tuple["Tensor", int]]:
        """Yield the same views as `views`, from photographs read with `frames`; consumes no more items than needed."""
        for ways, images_NCHW in zip(self._ways(), read, strict=False):
            for is_mirrored in ways:
                yield images_NCHW.flip(3) if is_mirrored else images_NCHW, 1

    def _ways(self) -> Sequence[tuple[bool, ...]]:
        """Return, for each item of `frames`, whether it is used plain, mirrored or both."""
        if self.kind in ("none", "flip"):
            return [(_PLAIN,) if self.kind == "none" else (_PLAIN, _MIRRORED)]
        crops = [(_PLAIN, _MIRRORED)] * 4 + [(_PLAIN,), (_MIRRORED,)]
        return crops * (len(_LECTURE_SHORT_SIDES) if self.kind == "multi_scale" else 1)

    def _short_sides(self, size: int, short_side: int) -> list[int]:
        if self.kind == "multi_scale":
            return [height for height, _ in self._sizes(size, size)]
        return [short_side if self.crop is None or self.kind != "ten_crop" else round(size / self.crop)]

    def _sizes(self, H: int, W: int) -> list[tuple[int, int]]:
        if self.kind == "ten_crop":
            crop = self.crop or _USUAL_CROP
            return [(round(H / crop), round(W / crop))]
        if self.kind == "multi_scale":
            return [(round(H * side / _LECTURE_SIDE), round(W * side / _LECTURE_SIDE)) for side in _LECTURE_SHORT_SIDES]
        return [(H, W)]

    def _corners(self, room_H: int, room_W: int) -> Counter[tuple[int, int]]:
        """Return top and left of the crops, with the number of equal crops."""
        if self.kind in ("none", "flip"):
            return Counter([(0, 0)])
        corners = [(top, left) for top in (0, room_H) for left in (0, room_W)]
        return Counter([*corners, (round(room_H / 2), round(room_W / 2))])


def read_words(words: Sequence[str]) -> tuple[TestTime | None, list[str]]:
    """Parse `tta=...` and `tta.crop=...` (None if absent); also return the other words.

    Raises ConfigurationError with every problem.
    """
    own = [word for word in words if word.partition("=")[0].partition(".")[0] == "tta"]
    rest = [word for word in words if word not in own]
    if not own:
        return None, rest
    values = {key: value for key, _, value in (word.partition("=") for word in own)}
    problems = [unknown("key", key.partition(".")[2], ["crop"], "tta.") for key in values if key not in _KEYS]
    if len(values) < len(own):
        problems.append(f"{' '.join(own)}: each may be given once")
    kind, crop = values.get("tta", "none"), values.get("tta.crop")
    if crop is not None and kind in KINDS and kind != "ten_crop":
        problems.append(f"tta.crop={crop}: requires tta=ten_crop")
    try:
        asked = TestTime(kind, None if crop is None else _number(crop))
    except ConfigurationError as error:
        problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return asked, rest


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"tta.crop={text}: must be a number from {_SMALLEST_CROP} to 1") from None


def _resize(images_NCHW: "Tensor", height: int, width: int) -> "Tensor":
    """Resize bilinearly with antialiasing: on the CPU with torch's uint8 kernel, elsewhere in float32 with rounding,
    which differs by at most 1 level. Same as torchvision v2, but the same on every processor."""
    if images_NCHW.shape[2:] == (height, width):
        return images_NCHW
    import torch
    from torch.nn.functional import interpolate

    if images_NCHW.device.type == "cpu":
        return interpolate(images_NCHW, (height, width), mode="bilinear", antialias=True)
    resized = interpolate(images_NCHW.float(), (height, width), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
