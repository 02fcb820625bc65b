"""Decoding of image files to uint8 RGB pixels, (height, width, 3)."""

import functools
import io
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.photographs.frames import resize, short_side_size

if TYPE_CHECKING:
    from PIL.Image import Image

Decoder = Callable[[torch.Tensor, int, bool], torch.Tensor]  # bytes, mode, whether to turn it as EXIF says
Pixels = NDArray[np.uint8]  # (height, width, 3), contiguous

READ = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".qoi",
)  # fmt: skip
_NOT_READ = (
    ".heic", ".heif", ".hif", ".avifs", ".jxl", ".jxr", ".svg", ".psd", ".xcf", ".eps", ".ai", ".pfm", ".exr", ".hdr",
    ".dcm", ".nii", ".fit", ".fits", ".tga", ".pcx", ".sgi", ".dds", ".ico", ".icns", ".xbm", ".xpm", ".wmf", ".emf",
    ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2",
)  # fmt: skip
SUFFIXES = READ + _NOT_READ
"""Files that are taken for photographs, in lower case. Those in formats that are not read are bad files."""
# in the order in which they are tried; each is recognized by its first bytes
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
_MOST_PIXELS = 89_478_485  # PIL's warning threshold for decompression bombs: 256 MB of RGB
_MOST_ELONGATED = 50  # long side / short side; framing a longer image would take gigabytes
_RGB = 3  # torchvision.io.ImageReadMode.RGB
_ORIENTATION = 0x0112  # the EXIF tag
_header_lock = threading.Lock()


class BadPhotograph(ValueError):
    """Why a file cannot be used, in a few words."""


class _Opened(NamedTuple):
    """A file of which only the header was read."""

    image: "Image"
    size: tuple[int, int]  # (height, width) in the file
    orientation: int  # of EXIF: 1 upright, 2 to 8 mirrored or turned

    @property
    def upright(self) -> tuple[int, int]:
        height, width = self.size
        return (width, height) if self.orientation >= 5 else (height, width)


def stored_size(content: bytes, max_side: int | None) -> tuple[int, int]:
    """(height, width) of the pixels that `decode` returns, from the file's header. Raises BadPhotograph."""
    opened = _open(content)
    return _scaled(opened.upright, max_side)


def decode(content: bytes, max_side: int | None = None) -> Pixels:
    """Decode an image file; with `max_side`, scale it down so that the short side is at most that.

    Grey, palette, CMYK and alpha images are converted to RGB as by PIL's `convert("RGB")`: alpha is dropped, so
    transparent pixels show their colour. Of 16-bit values the high 8 bits are kept. Of several frames the first is
    used. The photograph is turned upright as its EXIF (or XMP) orientation says, as by PIL's `exif_transpose`.

    A JPEG that is stored at a quarter of its size or less is decoded at 1/2, 1/4 or 1/8 scale (libjpeg's scaled
    transform), to at least twice the stored size, and resized from there: for a 12-megapixel photograph stored at 256
    pixels this is 5 times as fast, and within 2 levels of decoding at full size. Raises BadPhotograph.
    """
    opened = _open(content)
    image, size = opened.image, _scaled(opened.upright, max_side)
    try:
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            pixels = _from_jpeg(content, opened, min(size))
        else:
            pixels = _to_rgb(image)
        pixels = _turned(pixels, opened.orientation)
    except BadPhotograph:
        raise
    except Exception as error:  # decoders raise errors of any kind for damaged files
        words = str(error).rpartition("cpp:")[2].partition(", ")[2] or str(error)
        raise BadPhotograph(f"damaged: {words.splitlines()[0][:80] if words else type(error).__name__}") from error
    return pixels if pixels.shape[:2] == size else resize(pixels, *size)


def _from_jpeg(content: bytes, opened: _Opened, short_side: int) -> Pixels:
    if min(opened.size) >= 4 * short_side:
        height, width = _scaled(opened.size, short_side)
        opened.image.draft("RGB", (2 * width, 2 * height))
        return _to_rgb(opened.image)
    decode_jpeg = _torchvision_decoder()
    if decode_jpeg is None:
        return _to_rgb(opened.image)
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return np.ascontiguousarray(decode_jpeg(data, _RGB, False).permute(1, 2, 0).numpy())


def load_libraries() -> None:
    """Load the libraries for decoding, which are otherwise loaded with the first photograph."""
    _formats()
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


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow can read (AVIF since 11.3, QOI since 9.5)."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(content: bytes) -> _Opened:
    """Read a file's header. Raises BadPhotograph for files that are not safe to decode."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise BadPhotograph("empty file")
    try:
        # PIL warns about large images, and warnings may be errors; the size is checked below instead
        with _header_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=_formats())
            orientation = _orientation(image)
    except Image.DecompressionBombError as error:
        raise BadPhotograph("a decompression bomb: more than 178 million pixels") from error
    except UnidentifiedImageError as error:
        raise BadPhotograph(_unidentified(content)) from error
    except Exception as error:
        raise BadPhotograph(f"damaged: {str(error)[:80] or type(error).__name__}") from error
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise BadPhotograph(f"a decompression bomb: {width}x{height} pixels")
    if max(width, height) > _MOST_ELONGATED * min(width, height):
        raise BadPhotograph(f"{width}x{height} pixels: one side is more than {_MOST_ELONGATED} times the other")
    return _Opened(image, (height, width), orientation)


def _unidentified(content: bytes) -> str:
    """What a file is that no decoder knows: the brand of an ISO media file is in its bytes 8 to 12."""
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis"):
        return "damaged: AVIF" if "AVIF" in _formats() else "AVIF, which needs Pillow 11.3 or later"
    if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        return "HEIC, which is not read: convert it to JPEG or PNG"
    return "not an image of a format that is read"


def _orientation(image: "Image") -> int:
    """EXIF's orientation, 1 to 8; 1 if there is none or it is damaged."""
    from PIL.Image import Image as AnyImage

    if image.format == "TIFF":  # PIL itself turns it
        return 1
    try:
        # that of PNG would decode the whole image to look for EXIF behind the pixels
        found = AnyImage.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # of any kind for damaged EXIF; the pixels are fine
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Upright pixels: 5 to 8 are mirrored at the diagonal after the flips; contiguous."""
    if orientation == 1:
        return pixels
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(1, 0, 2) if orientation >= 5 else pixels)


def _scaled(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    return size if max_side is None or min(size) <= max_side else short_side_size(*size, max_side)


def _to_rgb(image: "Image") -> Pixels:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise BadPhotograph(f"32-bit {'integers' if image.mode == 'I' else 'floats'} instead of colours")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
