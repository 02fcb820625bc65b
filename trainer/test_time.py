"""Test-time augmentation: which views of an image are looked at, and how often each one counts.

Light: `train evaluate` reads its words before torch is loaded.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.errors import ConfigurationError, unknown

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("none", "flip", "ten_crop", "multi_scale")
_LECTURE_SIDE = 224
_LECTURE_SHORT_SIDES = (224, 256, 384, 480, 640)
_SMALLEST_CROP = 0.1
_KEYS = ("tta", "tta.crop")


@dataclass(frozen=True)
class TestTime:
    """Views of H x W images, all of the size H x W that the model takes; their class probabilities are averaged.

    none: the image. flip: the image and its mirror image. ten_crop: the image is enlarged to round(H / crop) x
    round(W / crop), and H x W is cut out at the four corners and in the middle, of it and of its mirror image, as
    torchvision's ten_crop does; so a crop shows the share `crop` of each side (0.875: the usual 224 of 256).
    multi_scale: ten crops at each of five scales, the image enlarged by 224/224, 256/224, 384/224, 480/224 and
    640/224, which are the lecture's short sides for crops of 224; at the first scale all five crops are the whole
    image. Enlarging is bilinear on uint8, as torchvision's resize. Photographs are enlarged from the middle part
    that a plain evaluation sees.

    Source: A "Data augmentation" (testing). Raises ConfigurationError: an unknown kind, `crop` not in 0.1..1.
    """

    __test__ = False  # no test, whatever its name

    kind: str = "none"
    crop: float = 0.875

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(unknown("option", self.kind, KINDS, "tta="))
        if not _SMALLEST_CROP <= self.crop <= 1:
            raise ConfigurationError(f"tta.crop={self.crop}: must be a number from {_SMALLEST_CROP} to 1")

    def views(self, images_NCHW: "Tensor") -> Iterator[tuple["Tensor", int]]:
        """Views of the uint8 images, each with the number of times that it counts."""
        H, W = images_NCHW.shape[2:]
        for height, width in self._sizes(H, W):
            enlarged = _resize(images_NCHW, height, width)
            for image in (enlarged,) if self.kind == "none" else (enlarged, enlarged.flip(3)):
                for (top, left), count in self._corners(height - H, width - W).items():
                    yield image[:, :, top : top + H, left : left + W], count

    def _sizes(self, H: int, W: int) -> list[tuple[int, int]]:
        if self.kind == "ten_crop":
            return [(round(H / self.crop), round(W / self.crop))]
        if self.kind == "multi_scale":
            return [(round(H * side / _LECTURE_SIDE), round(W * side / _LECTURE_SIDE)) for side in _LECTURE_SHORT_SIDES]
        return [(H, W)]

    def _corners(self, room_H: int, room_W: int) -> Counter[tuple[int, int]]:
        """Top and left of the crops, with the number of crops that are the same."""
        if self.kind in ("none", "flip"):
            return Counter([(0, 0)])
        corners = [(top, left) for top in (0, room_H) for left in (0, room_W)]
        return Counter([*corners, (round(room_H / 2), round(room_W / 2))])


def read_words(words: Sequence[str]) -> tuple[TestTime | None, list[str]]:
    """What `tta=...` and `tta.crop=...` among these words ask for (None: nothing), and the other words.

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
        problems.append(f"tta.crop={crop}: is for tta=ten_crop")
    try:
        asked = TestTime(kind) if crop is None else TestTime(kind, _number(crop))
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
    """As torchvision v2 on uint8; it is loaded only where something is enlarged."""
    if images_NCHW.shape[2:] == (height, width):
        return images_NCHW
    from torchvision.transforms.v2.functional import resize

    enlarged: Tensor = resize(images_NCHW, [height, width], antialias=True)
    return enlarged
