"""Draws `augmentation.png`: training images before and after augmentation, pixel for pixel."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.contracts import Images
from trainer.planning.augmentation_strips import Strip
from trainer.reporting.drawing import load_matplotlib
from trainer.reporting.glyphs import missing_glyphs_allowed
from trainer.reporting.pixels import as_levels

# all lengths are in pixels; letters have their average width, and text is cut to the available width
_DPI = 150
_MARGIN, _HEADING, _TITLE, _LINE = 36, 60, 38, 20
_GAP, _BELOW = 14, 28  # between images, between strips
_NOTE_LETTER, _CAPTION_LETTER = 9.2, 9.5
_TILE, _LARGEST = 192, 256  # the longer side of an image, about; from where on it is made smaller
_MOST_LINES = 3  # below an image
_NARROWEST = 1100  # page, so that there is room for titles
_MANY = 8  # strips; more of them stand two side by side, with half of the images each
_GREY, _FRAME = "#666666", 200


@dataclass(frozen=True)
class _Block:
    """A strip to be drawn: uint8 tiles (K, height, width, 3), and lines of text below each."""

    title: str
    note: str
    tiles_KHWC: Tensor
    captions: list[list[str]]

    @property
    def height(self) -> int:
        lines = max(map(len, self.captions), default=0)
        return _TITLE + self.tiles_KHWC.shape[1] + lines * _LINE + _BELOW


def draw(strips: Sequence[Strip], heading: str, stored: Images) -> bytes:
    """Return a PNG of all strips, one below the other; `stored` are the images of the data set.

    Small images are enlarged by an integer factor, without interpolation.
    """
    tiles = [_tiles(strip.images_KCHW, stored) for strip in strips]
    pitch = _GAP + max(_TILE, *(images.shape[2] for images in tiles))
    across = max(len(images) for images in tiles)
    blocks = [
        _Block(strip.title, strip.note, images, [_wrapped(phrases, pitch) for phrases in strip.captions])
        for strip, images in zip(strips, tiles, strict=True)
    ]
    rows = _rows(blocks, across)
    heights = [max(block.height for block in row) for row in rows]
    width, height = max(_NARROWEST, 2 * _MARGIN - _GAP + across * pitch), _MARGIN + _HEADING + sum(heights)
    half = (across - across // 2) * pitch
    page = _Page(width, height, pitch, heading)
    top = _MARGIN + _HEADING
    for row, row_height in zip(rows, heights, strict=True):
        left = _MARGIN
        for block, end in zip(row, [*[left + half] * (len(row) - 1), width - _MARGIN + _GAP], strict=True):
            page.add(block, left, top, end - _GAP - left)
            left = end
        top += row_height
    return page.png()


def _tiles(images_KCHW: Tensor, stored: Images) -> Tensor:
    """Return tiles, uint8 (K, height, width, 3); images without one or three channels show the first one."""
    levels = as_levels(images_KCHW, stored)
    if levels.shape[1] != 3:
        levels = levels[:, :1].expand(-1, 3, -1, -1)
    height, width = levels.shape[2:]
    longer = max(height, width)
    if longer > _LARGEST:
        size = (max(1, height * _LARGEST // longer), max(1, width * _LARGEST // longer))
        levels = F.interpolate(levels, size, mode="bilinear", antialias=True)
    factor = max(1, round(_TILE / longer))
    return levels.repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1)


def _wrapped(phrases: Sequence[str], pitch: int) -> list[str]:
    """Wrap phrases into lines; a phrase that fits into one line is not split."""
    letters = int((pitch - _GAP) / _CAPTION_LETTER)
    whole = ", ".join(phrase.replace(" ", "\xa0") if len(phrase) < letters else phrase for phrase in phrases)
    return textwrap.wrap(whole, letters, max_lines=_MOST_LINES, placeholder=" ...", break_on_hyphens=False)


def _rows(blocks: list[_Block], across: int) -> list[list[_Block]]:
    """Arrange many blocks in pairs; the first, the last and an unpaired one have a row of their own."""
    if len(blocks) <= _MANY or across < 4:
        return [[block] for block in blocks]
    inner = [blocks[k : k + 2] for k in range(1, len(blocks) - 1, 2)]
    if len(blocks) % 2:
        inner[-1] = blocks[-2:-1]
    return [blocks[:1], *([_cut(b, across // len(row)) for b in row] for row in inner), blocks[-1:]]


def _cut(block: _Block, count: int) -> _Block:
    return replace(block, tiles_KHWC=block.tiles_KHWC[:count], captions=block.captions[:count])


class _Page:
    """A white page on which images are copied pixel for pixel."""

    def __init__(self, width: int, height: int, pitch: int, heading: str) -> None:
        load_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._pitch = pitch
        self._pixels = torch.full((height, width, 3), 255, dtype=torch.uint8)
        # slightly more than integers, because matplotlib truncates
        self._figure = Figure(figsize=((width + 0.01) / _DPI, (height + 0.01) / _DPI), dpi=_DPI)
        self._renderer = FigureCanvasAgg(self._figure).get_renderer()
        self._write(heading, _MARGIN, _MARGIN + 24, fontsize=13, weight="bold")

    def add(self, block: _Block, left: int, top: int, room: int) -> None:
        """Draw a block; `room` is the width available for the title and the note."""
        end = self._write(block.title, left, top + _TITLE - 14, fontsize=11, weight="bold")
        letters = max(4, int((left + room - end - 2 * _GAP) / _NOTE_LETTER))
        note = textwrap.shorten(block.note, letters, placeholder=" ...")
        self._write(note, round(end) + _GAP, top + _TITLE - 14, fontsize=8.5, color=_GREY)
        top += _TITLE
        height, width = block.tiles_KHWC.shape[1:3]
        for column, tile in enumerate(block.tiles_KHWC):
            x = left + column * self._pitch
            self._pixels[top - 1 : top + height + 1, x - 1 : x + width + 1] = _FRAME
            self._pixels[top : top + height, x : x + width] = tile
        for column, lines in enumerate(block.captions):
            for number, line in enumerate(lines, 1):
                self._write(line, left + column * self._pitch, top + height + number * _LINE, fontsize=7.5, color=_GREY)

    def _write(
        self, text: str, left: int, baseline: int, fontsize: float, color: str = "black", weight: str = "normal"
    ) -> float:
        """Draw text; returns its right end."""
        x, y = left / self._figure.bbox.width, 1 - baseline / self._figure.bbox.height
        style = {"fontsize": fontsize, "color": color, "weight": weight}
        written = self._figure.text(x, y, text, style, va="baseline", parse_math=False)
        with missing_glyphs_allowed():
            end: float = written.get_window_extent(self._renderer).x1
        return end

    def png(self) -> bytes:
        self._figure.figimage(self._pixels.numpy())
        picture = BytesIO()
        with missing_glyphs_allowed():
            self._figure.savefig(picture, format="png", dpi=_DPI)
        return picture.getvalue()
