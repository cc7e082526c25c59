"""The decode policy of `loaders/decode.py`, held against Pillow."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from penstock.errors import BrokenImage
from penstock.loaders.decode import decode_rgb, encode_jpeg, encode_png, image_size, is_canonical

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"


def photo(height: int = 45, width: int = 67) -> np.ndarray:
    """Smooth colours with noise: what a JPEG codec is made for, and odd sizes, where its blocks do not fit."""
    rows, columns = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(rows / (5 + k) + columns / (9 - k)) for k in range(3)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return np.clip(np.stack(planes, 2) + noise, 0, 255).astype(np.uint8)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(Image.fromarray(photo()), format, exif=exif)


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def same(data: bytes, expected: np.ndarray) -> None:
    decoded = decode_rgb(data, "x")
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, expected)
    assert image_size(data) == expected.shape[:2]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pillow_bit_for_bit(subsampling: str, progressive: bool) -> None:
    data = save(Image.fromarray(photo()), "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
    same(data, pillow(data))
    assert is_canonical(data)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photographs are not here")
def test_real_photographs_equal_pillow() -> None:
    for path in sorted(PHOTOS.glob("*/*.JPEG"))[::20]:
        same(path.read_bytes(), pillow(path.read_bytes()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    data = oriented(format, orientation)
    same(data, pillow(data))
    assert is_canonical(data) == (format == "JPEG" and orientation == 1)


def test_an_orientation_after_the_pixels_is_none() -> None:
    """PNG allows it; whoever asks for the size alone does not read so far."""
    plain, exif = save(Image.fromarray(photo()), "PNG"), Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    same(plain[:-12] + chunk + plain[-12:], photo())  # IEND is 12 bytes


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:
    data = save(Image.fromarray(photo()).convert("CMYK"), format)
    same(data, pillow(data))
    assert not is_canonical(data)


def test_jpeg_that_stores_rgb_is_read_right_but_not_canonical() -> None:
    data = save(Image.fromarray(photo()), "JPEG", keep_rgb=True, quality=95)
    numbered = data.replace(b"R\x11\x00G\x11\x00B\x11\x00", b"\x01\x11\x00\x02\x11\x00\x03\x11\x00")
    numbered = numbered.replace(b"\x03R\x00G\x00B\x00", b"\x03\x01\x00\x02\x00\x03\x00")  # only Adobe's marker tells
    for jpeg in (data, numbered):
        same(jpeg, pillow(data))
        assert not is_canonical(jpeg)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_greyscale_fills_three_channels(format: str) -> None:
    data = save(Image.fromarray(photo()).convert("L"), format)
    same(data, pillow(data))
    assert is_canonical(data) == (format == "JPEG")


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_the_high_byte(format: str) -> None:
    grey = np.random.default_rng(1).integers(0, 65536, (9, 14)).astype(np.uint16)
    same(save(Image.fromarray(grey), format), np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, 2))


def test_alpha_is_dropped_not_blended() -> None:
    rgba = np.dstack([photo(), np.random.default_rng(2).integers(0, 256, (45, 67), np.uint8)])
    for format in ("PNG", "TIFF"):
        same(save(Image.fromarray(rgba), format), rgba[:, :, :3])
    grey_alpha = Image.fromarray(rgba).convert("LA")
    same(save(grey_alpha, "PNG"), np.asarray(grey_alpha.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 160, 10))])
def test_palette_with_transparency_keeps_its_colours(
    transparency: int | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    palette = Image.fromarray(photo()).quantize(16)
    same(save(palette, "PNG", transparency=transparency), np.asarray(palette.convert("RGB")))
    assert not caplog.text  # straight to RGB, Pillow would warn


def test_one_bit_images_and_transparent_colours() -> None:
    bits = Image.fromarray(photo()).convert("1")
    same(save(bits, "PNG", transparency=1), np.asarray(bits.convert("RGB")))
    same(save(Image.fromarray(photo()), "PNG", transparency=(1, 2, 3)), photo())


def test_samples_without_a_known_range_are_refused() -> None:
    with pytest.raises(BrokenImage, match="32-bit samples"):
        decode_rgb(save(Image.fromarray(photo()[:, :, 0].astype(np.float32)), "TIFF"), "x.tif")


JPEG = save(Image.fromarray(photo(200, 200)), "JPEG", quality=90)
PNG = encode_png(photo(200, 200))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am a text", "not an image: it starts with b'hello, I am '"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # Pillow alone would run Ghostscript
        (JPEG[: len(JPEG) // 2], "truncated JPEG"),
        (JPEG[:200], "truncated JPEG"),
        (JPEG[: len(JPEG) // 2] + b"\xff\xd9", "damaged JPEG: .*premature end of data segment"),
        (PNG[: len(PNG) // 2], "truncated image"),
        (PNG[:60] + b"garbage" + PNG[67:], "damaged image"),
    ],
)
def test_broken_images_name_themselves_and_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenImage, match=rf"^a/b\.jpg: cannot decode this image \({reason}"):
        decode_rgb(data, "a/b.jpg")


@pytest.mark.parametrize("data", [JPEG + b"trailing bytes", JPEG[:-2] + b"stray" + JPEG[-2:]])
def test_blemishes_that_cost_no_pixel_are_forgiven(data: bytes) -> None:
    np.testing.assert_array_equal(decode_rgb(data, "x"), pillow(JPEG))


def test_a_damaged_header_is_no_crash() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        data = bytearray(oriented("JPEG", 6)[: rng.integers(1, 2000)])
        data[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(BrokenImage):
            assert decode_rgb(bytes(data), "x").shape[:2] == image_size(bytes(data))
        is_canonical(bytes(data))


def test_too_many_pixels_are_refused_by_their_header() -> None:
    jpeg = JPEG.replace(b"\x08\x00\xc8\x00\xc8\x03", b"\x08\xff\x00\xff\x00\x03")  # 65280 x 65280
    png = save(Image.new("1", (20_000, 10_000)), "PNG")
    for data in (jpeg, png):
        with pytest.raises(BrokenImage, match=r"limit of 178956970"):
            decode_rgb(data, "x")


def test_a_pillow_warning_neither_stops_nor_vanishes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # PNG's 40,000 lie between the warning and the error
    assert decode_rgb(PNG, "big.png").shape == (200, 200, 3)  # warnings are errors here
    assert "big.png" in caplog.text and "decompression bomb" in caplog.text
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decode_rgb(PNG, "big.png")
    assert any("decompression bomb" in str(warning.message) for warning in seen)


def test_decoding_releases_the_gil() -> None:
    data = encode_jpeg(np.kron(photo(200, 200), np.ones((20, 20, 1), np.uint8)), 90)
    thread = threading.Thread(target=decode_rgb, args=(data, "x"))
    turns = 0
    thread.start()
    while thread.is_alive():
        turns += 1
    assert turns > 100


def test_png_is_lossless_and_jpeg_keeps_its_quality() -> None:
    np.testing.assert_array_equal(decode_rgb(PNG, "x"), photo(200, 200))
    fine, coarse = (decode_rgb(encode_jpeg(photo(), quality), "x").astype(int) for quality in (95, 50))
    assert np.abs(fine - photo()).mean() < 0.9 * np.abs(coarse - photo()).mean()
    assert is_canonical(encode_jpeg(photo(), 90))
    with Image.open(io.BytesIO(encode_jpeg(photo(), 90))) as image:
        assert image.layer[0][1:3] == (2, 2) and image.layer[1][1:3] == (1, 1)  # 4:2:0
