"""Decoding of image files to uint8 RGB pixels, (height, width, 3)."""

import functools
import io
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.photographs.frames import resize, short_side_size

if TYPE_CHECKING:
    from PIL.Image import Image

Decoder = Callable[[torch.Tensor, int, bool], torch.Tensor]  # bytes, mode, whether to turn it as EXIF says
Pixels = NDArray[np.uint8]  # (height, width, 3), contiguous

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_MOST_PIXELS = 89_478_485  # PIL's warning threshold for decompression bombs: 256 MB of RGB
_MOST_ELONGATED = 50  # long side / short side; framing a longer image would take gigabytes
_RGB = 3  # torchvision.io.ImageReadMode.RGB
_header_lock = threading.Lock()


class BadPhotograph(ValueError):
    """Why a file cannot be used, in a few words."""


def stored_size(content: bytes, max_side: int | None) -> tuple[int, int]:
    """(height, width) of the pixels that `decode` returns, from the file's header. Raises BadPhotograph."""
    _, size = _open(content)
    return _scaled(size, max_side)


def decode(content: bytes, max_side: int | None = None) -> Pixels:
    """Decode an image file; with `max_side`, scale it down so that the short side is at most that.

    Grey, palette, CMYK and alpha images are converted to RGB as by PIL's `convert("RGB")`: alpha is dropped, so
    transparent pixels show their colour. Of 16-bit values the high 8 bits are kept. Of several frames the first is
    used. The EXIF orientation is not applied, as in torchvision's ImageFolder.

    A JPEG that is stored at a quarter of its size or less is decoded at 1/2, 1/4 or 1/8 scale (libjpeg's scaled
    transform), to at least twice the stored size, and resized from there: for a 12-megapixel photograph stored at 256
    pixels this is 5 times as fast, and within 2 levels of decoding at full size. Raises BadPhotograph.
    """
    image, whole = _open(content)
    size = _scaled(whole, max_side)
    try:
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            pixels = _from_jpeg(content, image, whole, size)
        else:
            pixels = _to_rgb(image)
    except BadPhotograph:
        raise
    except Exception as error:  # decoders raise errors of any kind for damaged files
        words = str(error).rpartition("cpp:")[2].partition(", ")[2] or str(error)
        raise BadPhotograph(f"damaged: {words.splitlines()[0][:80] if words else type(error).__name__}") from error
    return pixels if pixels.shape[:2] == size else resize(pixels, *size)


def _from_jpeg(content: bytes, image: "Image", whole: tuple[int, int], size: tuple[int, int]) -> Pixels:
    if min(whole) >= 4 * min(size):
        image.draft("RGB", (2 * size[1], 2 * size[0]))
        return _to_rgb(image)
    decode_jpeg = _torchvision_decoder()
    if decode_jpeg is None:
        return _to_rgb(image)
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return np.ascontiguousarray(decode_jpeg(data, _RGB, False).permute(1, 2, 0).numpy())


def load_libraries() -> None:
    """Load the libraries for decoding, which are otherwise loaded with the first photograph."""
    from PIL import Image

    Image.preinit()
    _torchvision_decoder()


@functools.cache
def _torchvision_decoder() -> Decoder | None:
    """`None` if torchvision no longer provides it (deprecated in 0.29).

    PIL decodes to the same pixels but takes a third longer.
    """
    try:
        import torchvision.io  # noqa: F401

        decoder: Decoder = torch.ops.image.decode_jpeg
        return decoder
    except (ImportError, AttributeError):
        return None


def _open(content: bytes) -> "tuple[Image, tuple[int, int]]":
    """PIL's image with its header read, and its (height, width). Raises BadPhotograph for files that are not safe to
    decode."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise BadPhotograph("empty file")
    try:
        # PIL warns about large images, and warnings may be errors; the size is checked below instead
        with _header_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadPhotograph("a decompression bomb: more than 178 million pixels") from error
    except UnidentifiedImageError as error:
        raise BadPhotograph("not an image of a known format") from error
    except Exception as error:
        raise BadPhotograph(f"damaged: {str(error)[:80] or type(error).__name__}") from error
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise BadPhotograph(f"a decompression bomb: {width}x{height} pixels")
    if max(width, height) > _MOST_ELONGATED * min(width, height):
        raise BadPhotograph(f"{width}x{height} pixels: one side is more than {_MOST_ELONGATED} times the other")
    return image, (height, width)


def _scaled(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    return size if max_side is None or min(size) <= max_side else short_side_size(*size, max_side)


def _to_rgb(image: "Image") -> Pixels:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise BadPhotograph(f"32-bit {'integers' if image.mode == 'I' else 'floats'} instead of colours")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
