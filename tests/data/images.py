"""Small valid, unusual and damaged image files."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth colour image with some noise, uint8 (height, width, 3)."""
    random = np.random.RandomState(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / (7 + c) + seed) * np.cos(columns / (9 + c)) for c in range(3)]
    return np.clip(np.stack(waves, 2) + random.randint(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def jpeg(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    return encoded(Image.fromarray(pixels(height, width, seed)), quality=92)


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG from a header and unfiltered rows, for formats that PIL does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def colours_of_16_bits(values: np.ndarray) -> bytes:
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0), rows)


def bomb(side: int) -> bytes:
    """A small file that claims to have side x side pixels."""
    return png(struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"\0" * 100)


def bad_files() -> dict[str, tuple[bytes, str]]:
    """File name -> content and expected message."""
    return {
        "bomb.png": (bomb(60_000), "decompression bomb"),
        "empty.jpg": (b"", "empty file"),
        "header.jpg": (jpeg()[:300], "damaged"),
        "long.png": (encoded(Image.new("RGB", (1, 60)), "PNG"), "1x60 pixels"),
        "real_numbers.tiff": (encoded(Image.new("F", (9, 9)), "TIFF"), "32-bit floats"),
        "smaller_bomb.png": (bomb(9_500), "decompression bomb: 9500x9500"),
        "text.jpg": (b"not found\n" * 50, "not an image"),
        "truncated.jpg": (jpeg(200, 200)[:-2000], "damaged"),
        "truncated.png": (encoded(Image.fromarray(pixels(60, 60)), "PNG")[:-3000], "damaged"),
    }


def write_folder(root: Path, layout: dict[str, int], size: tuple[int, int] = (48, 64)) -> Path:
    """Write `layout[folder]` photographs of different sizes and contents into each folder."""
    seed = 0
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            seed += 1
            height, width = size[0] + 3 * (seed % 5), size[1] + 7 * (seed % 3)
            content = jpeg(height, width, seed) if seed % 2 else jpeg(width, height, seed)
            (root / folder / f"{number:03}.jpg").write_bytes(content)
    return root
