"""Our JPEG decoder against libjpeg-turbo's accurate path: the same pixels, or no answer, whatever the bytes are."""

from __future__ import annotations

import io
import re
import threading

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from penstock.loaders.jpeg import decode_jpeg

RNG = np.random.default_rng(0)
SUBSAMPLINGS = ("444", "422", "420", "440", "Gray")


def picture(height: int, width: int, kind: str = "photo") -> NDArray[np.uint8]:
    """Colours with large areas and edges, noise of the largest amplitude, or one colour."""
    if kind == "noise":
        return RNG.integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)
    if kind == "flat":
        return np.full((height, width, 3), RNG.integers(0, 256, 3), np.uint8)
    coarse = RNG.integers(0, 256, (height // 7 + 2, width // 9 + 2, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def encoded(image: NDArray[np.uint8], quality: int = 90, subsampling: str = "420") -> bytes:
    if subsampling == "Gray":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image[..., :1]), quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(image, quality, "RGB", subsampling, fastdct=False)


def with_pillow(image: NDArray[np.uint8], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turbo(data: bytes) -> NDArray[np.uint8]:
    return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)


def ours(data: bytes, box: tuple[int, int, int, int] | None = None) -> NDArray[np.uint8] | None:
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    out = np.full((height, width, 3), 77, np.uint8)
    return out if decode_jpeg(data, out, box) else None


def assert_same(data: bytes) -> None:
    decoded = ours(data)
    assert decoded is not None
    np.testing.assert_array_equal(decoded, turbo(data))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_every_size(subsampling: str) -> None:
    """Sides that end anywhere in a block, an MCU and a vector."""
    narrowest = 5 if subsampling in ("422", "420") else 1
    for height in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33):
        for width in (narrowest, 6, 8, 9, 16, 17, 31, 32, 33, 47, 63, 64, 65, 70):
            assert_same(encoded(picture(height, width), 92, subsampling))


@pytest.mark.parametrize("subsampling", ("422", "420"))
def test_libjpeg_s_other_way_with_few_columns_is_left_to_it(subsampling: str) -> None:
    for width in range(1, 5):
        assert ours(encoded(picture(20, width), 92, subsampling)) is None


@pytest.mark.parametrize("kind", ("photo", "noise", "flat"))
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_every_quality(subsampling: str, kind: str) -> None:
    for quality in (1, 2, 5, 10, 20, 35, 50, 65, 75, 85, 90, 95, 98, 99, 100):
        assert_same(encoded(picture(45, 77, kind), quality, subsampling))


@pytest.mark.parametrize(
    "options", ({"restart_marker_blocks": 1}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1})
)
@pytest.mark.parametrize("subsampling", (0, 1, 2))
def test_restarts(subsampling: int, options: dict[str, int]) -> None:
    assert_same(with_pillow(picture(150, 170), subsampling=subsampling, quality=80, **options))
    assert_same(with_pillow(picture(150, 170)[..., 0], quality=80, **options))


@pytest.mark.parametrize("kind", ("photo", "noise"))
def test_tables_made_for_the_image(kind: str) -> None:
    for quality in (5, 50, 95, 100):
        assert_same(with_pillow(picture(90, 110, kind), optimize=True, quality=quality))


def test_a_grey_image_may_name_any_sampling() -> None:
    data = encoded(picture(40, 40), 90, "Gray")
    assert data.count(b"\x01\x01\x11\x00") == 1
    assert_same(data.replace(b"\x01\x01\x11\x00", b"\x01\x01\x22\x00"))


def test_bytes_after_the_end_and_fill_bytes_before_markers() -> None:
    data = encoded(picture(40, 50))
    assert_same(data + b"more" * 9)
    assert_same(data[:2] + b"\xff\xff" + data[2:])


@pytest.mark.parametrize("options", ({}, {"restart_marker_rows": 1}, {"subsampling": 0}, {"subsampling": 1}))
def test_a_box_holds_what_the_whole_holds(options: dict[str, int]) -> None:
    data = with_pillow(picture(120, 200), quality=85, **options)
    whole = turbo(data)
    for _ in range(60):
        top, bottom = sorted(int(y) for y in RNG.integers(0, 121, 2))
        left, right = sorted(int(x) for x in RNG.integers(0, 201, 2))
        part = ours(data, (top, left, bottom, right))
        assert part is not None
        np.testing.assert_array_equal(part[top:bottom, left:right], whole[top:bottom, left:right])
        part[top:bottom, left:right] = 77
        assert (part == 77).all(), "written outside of the box"


def test_damage_outside_of_the_box_is_seen() -> None:
    data = encoded(picture(400, 60), 95)
    assert ours(data, (0, 0, 8, 8)) is not None
    assert ours(data[:-200] + b"\xff\xd9", (0, 0, 8, 8)) is None


def test_what_it_does_not_do_it_leaves() -> None:
    image = picture(50, 60)
    cmyk, rgb = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(cmyk, "JPEG")
    Image.fromarray(image).save(rgb, "JPEG", keep_rgb=True)
    progressive = with_pillow(image, progressive=True)
    odd = simplejpeg.encode_jpeg(image, 90, "RGB", "411")
    for data in (cmyk.getvalue(), rgb.getvalue(), progressive, odd):
        assert ours(data) is None
    out = np.empty((50, 60, 3), np.uint8)
    assert not decode_jpeg(b"", out) and not decode_jpeg(b"\xff\xd8\xff\xd9", out)
    assert not decode_jpeg(encoded(picture(50, 61)), out)  # not the size that was promised


def test_an_array_of_bytes_will_do() -> None:
    data = encoded(picture(31, 47))
    out, same = np.empty((2, 31, 47, 3), np.uint8)
    assert decode_jpeg(data, out) and decode_jpeg(np.frombuffer(bytearray(data), np.uint8), same)
    np.testing.assert_array_equal(out, same)


def test_damage_is_left_to_libjpeg() -> None:
    data = encoded(picture(60, 80), 90)
    assert ours(data[:-2]) is None  # no end
    assert ours(data[:-40] + b"\xff\xd9") is None  # cut short under an end
    assert ours(data[:-2] + b"\0\0" + data[-2:]) is None  # bytes before the end
    assert ours(data[:-2] + b"\xff\xd0" + data[-2:]) is None  # a restart that is none


def test_numbers_beyond_16_bits_are_left_to_libjpeg() -> None:
    """Coefficients times quantisers that no encoder would write; libjpeg-turbo's arithmetic wraps around there."""
    noise, white = picture(40, 48, "noise"), np.full((40, 48, 3), 255, np.uint8)
    for image in (noise, white):
        data = encoded(image, 100, "444")
        for quantiser in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            absurd = re.sub(rb"(\xff\xdb\x00C.).{64}", rb"\1" + bytes([quantiser] * 64), data, flags=re.DOTALL)
            decoded = assert_true_means_same(absurd, image.shape)
            assert decoded or quantiser > 1
            assert not decoded or quantiser < 64


def test_a_torn_profile_is_left_to_libjpeg() -> None:
    """It warns, though the pixels are there."""
    image = picture(20, 30)
    data = with_pillow(image, icc_profile=bytes(100_000))
    assert_same(data)
    first, second = (match.start() for match in re.finditer(rb"ICC_PROFILE\0", data))
    wrong_number = data[: first + 12] + b"\2" + data[first + 13 :]
    end = second - 2 + int.from_bytes(data[second - 2 : second], "big")
    part_lost = data[: second - 4] + data[end:]
    for torn in (wrong_number, part_lost):
        assert not decode_jpeg(torn, np.empty(image.shape, np.uint8))


def mutations(data: bytes, count: int) -> list[bytes]:
    """Flipped bits, changed, swapped, lost and doubled bytes, cuts."""
    found = []
    for _ in range(count):
        broken = bytearray(data)
        for _ in range(RNG.integers(1, 4)):
            at, other = (int(i) for i in RNG.integers(2, len(broken), 2))
            kind = RNG.integers(0, 7)
            if kind < 3:
                broken[at] ^= 1 << int(RNG.integers(0, 8))
            elif kind == 3:
                broken[at] = int(RNG.integers(0, 256))
            elif kind == 4:
                broken[at], broken[other] = broken[other], broken[at]
            elif kind == 5:
                del broken[at : at + int(RNG.integers(1, 40))]
            else:
                broken[at:at] = broken[other : other + int(RNG.integers(1, 40))]
        found.append(bytes(broken))
    return found


def assert_true_means_same(data: bytes, shape: tuple[int, ...]) -> bool:
    out = np.zeros(shape, np.uint8)
    if not decode_jpeg(data, out):
        return False
    np.testing.assert_array_equal(out, turbo(data))
    return True


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_no_damage_gives_other_pixels_than_libjpeg(subsampling: str) -> None:
    image = picture(41, 50)
    data = encoded(image, 90, subsampling)
    decoded = sum(assert_true_means_same(broken, image.shape) for broken in mutations(data, 600))
    assert 0 < decoded < 600


def test_no_damage_to_restarts_gives_other_pixels() -> None:
    image = picture(64, 64)
    data = with_pillow(image, restart_marker_blocks=2, quality=90)
    for broken in mutations(data, 600):
        assert_true_means_same(broken, image.shape)


def test_threads_do_not_meet() -> None:
    files = [encoded(picture(64 + 9 * i, 300 - 20 * i), 90, SUBSAMPLINGS[i % 5]) for i in range(10)]
    expected, wrong = [turbo(data) for data in files], []

    def work(start: int) -> None:
        for i in range(100):
            which = (start + i) % len(files)
            decoded = ours(files[which])
            if decoded is None or not np.array_equal(decoded, expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
