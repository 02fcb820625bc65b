"""Image files of every format against PIL and torchvision."""

import io

import numpy as np
import pytest
import torch
from images import bad_files, bomb, colours_of_16_bits, encoded, jpeg, pixels
from PIL import Image, ImageOps

from tests.torchvision_reference import functional
from trainer.data.photographs.decoding import BadPhotograph, decode, stored_size

SMOOTH = Image.fromarray(pixels(40, 30))


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
def test_a_jpeg_is_what_torchvision_decodes() -> None:
    from torchvision.io import ImageReadMode, decode_image

    content = jpeg(57, 43)
    expected = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    assert np.array_equal(decode(content), expected.permute(1, 2, 0).numpy())


def test_exact_formats_come_back_as_they_were() -> None:
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(decode(encoded(SMOOTH, form)), np.asarray(SMOOTH))
    assert np.array_equal(decode(encoded(SMOOTH, "WEBP", lossless=True)), np.asarray(SMOOTH))


def test_grey_has_three_equal_channels() -> None:
    grey = SMOOTH.convert("L")
    assert np.array_equal(decode(encoded(grey, "PNG")), np.repeat(np.asarray(grey)[:, :, None], 3, 2))
    of_jpeg = decode(encoded(grey))
    assert of_jpeg.shape == (40, 30, 3)
    assert (of_jpeg == of_jpeg[:, :, :1]).all()


def test_cmyk_is_converted_by_pil() -> None:
    content = encoded(SMOOTH.convert("CMYK"))
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode(content), expected)
    # the original colours, not inverted ones
    assert np.abs(decode(content).astype(int) - np.asarray(SMOOTH)).mean() < 12


def test_alpha_is_dropped_and_what_it_hides_shows() -> None:
    colours = pixels(9, 8)
    hidden = np.dstack((colours, np.zeros((9, 8), np.uint8)))
    assert np.array_equal(decode(encoded(Image.fromarray(hidden), "PNG")), colours)
    grey = np.dstack((colours[:, :, 0], np.zeros((9, 8), np.uint8)))
    assert np.array_equal(decode(encoded(Image.fromarray(grey), "PNG")), np.repeat(colours[:, :, :1], 3, 2))


def test_a_palette_is_looked_up() -> None:
    palette = SMOOTH.quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decode(encoded(palette, "PNG")), expected)
    assert np.array_equal(decode(encoded(palette, "PNG", transparency=bytes(range(16)))), expected)
    assert np.array_equal(decode(encoded(palette, "GIF")), expected)


def test_of_16_bits_the_high_8_are_kept() -> None:
    values = np.random.RandomState(0).randint(0, 65536, (7, 5, 3))
    assert np.array_equal(decode(colours_of_16_bits(values)), values >> 8)
    grey = Image.fromarray(values[:, :, 0].astype(np.uint16))
    assert np.array_equal(decode(encoded(grey, "PNG"))[:, :, 1], values[:, :, 0] >> 8)


def test_one_pixel_and_one_bit() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]
    assert decode(encoded(Image.new("1", (3, 2), 1), "PNG")).tolist() == [[[255] * 3] * 3] * 2


LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "AVIF": {"quality": 100}, "JPEG": {}, "MPO": {}}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", LOSSLESS)
def test_a_photograph_is_turned_as_its_orientation_says(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(SMOOTH, form, exif=exif, **LOSSLESS[form])
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert expected.shape[:2] == ((40, 30) if orientation < 5 else (30, 40))
    found = decode(content)
    assert np.abs(found.astype(int) - expected).max() == 0
    assert found.flags.c_contiguous
    for short_side in (None, 20, 5):  # 5: libjpeg's scaled transform
        assert stored_size(content, short_side) == decode(content, short_side).shape[:2]
    by_resize = functional.resize(torch.from_numpy(expected.copy()).permute(2, 0, 1), [20], antialias=True)
    assert torch.equal(torch.from_numpy(decode(content, 20)).permute(2, 0, 1), by_resize)


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_orientation_that_is_none_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert decode(encoded(SMOOTH, exif=exif)).shape == (40, 30, 3)
    damaged = encoded(SMOOTH, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert stored_size(damaged, None) == decode(damaged).shape[:2] == (40, 30)


def test_the_orientation_in_xmp_counts_if_exif_has_none() -> None:
    content = encoded(SMOOTH, xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>')
    assert stored_size(content, None) == decode(content).shape[:2] == (30, 40)


def test_exact_formats_of_other_suffixes() -> None:
    for form, options in (
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ("JPEG2000", {}),
        ("QOI", {}),
        ("DIB", {}),
    ):
        expected = Image.open(io.BytesIO(encoded(SMOOTH, form, **options)))
        assert np.array_equal(decode(encoded(SMOOTH, form, **options)), np.asarray(expected.convert("RGB")))
    values = np.arange(35, dtype=np.uint16).reshape(7, 5) * 1500
    grey = b"P5 5 7 65535\n" + values.astype(">u2").tobytes()
    assert np.array_equal(decode(grey)[:, :, 2], values >> 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\0\0\0\x18ftypheic" + bytes(99), "HEIC, which is not read: convert it to JPEG or PNG"),
     (b"\0\0\0\x18ftypmif1" + bytes(99), "HEIC, which is not read"),
     (b"\0\0\0\x18ftypavif" + bytes(99), "damaged: AVIF|damaged: Failed to decode"),
     (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a format that is read"),
     (b"8BPS\0\1" + bytes(99), "not an image of a format that is read")],
)  # fmt: skip
def test_formats_that_are_not_read_are_named(content: bytes, message: str) -> None:
    with pytest.raises(BadPhotograph, match=message):
        stored_size(content, None)


@pytest.mark.parametrize("name", sorted(bad_files()))
def test_bad_files_are_refused_in_a_few_words(name: str) -> None:
    content, message = bad_files()[name]
    with pytest.raises(BadPhotograph, match=message) as caught:
        decode(content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 120


def test_bombs_are_refused_from_their_header() -> None:
    for side in (9_500, 60_000):
        with pytest.raises(BadPhotograph, match="bomb"):
            stored_size(bomb(side), None)


@pytest.mark.parametrize(("height", "width"), [(90, 60), (60, 90), (61, 61), (40, 300)])
def test_max_side_is_an_antialiased_resize_of_the_short_side(height: int, width: int) -> None:
    content = encoded(Image.fromarray(pixels(height, width)), "PNG")
    expected = functional.resize(torch.from_numpy(pixels(height, width)).permute(2, 0, 1), [32], antialias=True)
    assert torch.equal(torch.from_numpy(decode(content, 32)).permute(2, 0, 1), expected)
    assert stored_size(content, 32) == expected.shape[1:]
    assert np.array_equal(decode(content, 500), pixels(height, width))  # never enlarged


@pytest.mark.parametrize("short_side", [40, 100, 151])
def test_scaled_decoding_stays_within_two_levels(short_side: int) -> None:
    content = encoded(Image.fromarray(pixels(75, 100)).resize((800, 600), Image.Resampling.BICUBIC), quality=95)
    whole = torch.from_numpy(decode(content)).permute(2, 0, 1)
    expected = functional.resize(whole, [short_side], antialias=True)
    found = torch.from_numpy(decode(content, short_side)).permute(2, 0, 1)
    difference = (found.int() - expected.int()).abs()
    assert found.shape == expected.shape
    # the fast decoder is not used above a quarter of the size
    assert difference.max() <= (2 if short_side <= 150 else 0)
    assert difference.float().mean() < 0.3
