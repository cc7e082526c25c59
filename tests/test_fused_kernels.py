"""The fused CPU kernels that torchvision has no counterpart for, each against Albumentations or plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from penstock.augment.fields import NORMAL
from penstock.augment.fused_cpu.clahe import _equalise_plane, clahe
from penstock.augment.fused_cpu.filters import box_blur, sharpen
from penstock.augment.fused_cpu.pointwise import brightness_contrast, channel_shuffle, hsv_shift, solarize
from penstock.augment.fused_cpu.scatter import coarse_dropout, gaussian_noise
from penstock.augment.philox import philox

pytest.importorskip("albumentations", reason="albumentations is not installed: pip install 'penstock[albumentations]'")

import cv2
from albucore import multiply_add
from albumentations.augmentations.blur import functional as blur
from albumentations.augmentations.pixel import functional as pixel

SIZES = (224, 32, 33, 8, 96)
SEED = 0x0123_4567_89AB_CDEF
Bytes = NDArray[np.uint8]


def images(size: int) -> dict[str, Bytes]:
    """Like a photograph (smooth, with noise), noise, flat, black, white and gray; uint8 [size, size, 3]."""
    rng = np.random.default_rng(size)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    photograph = np.clip(np.asarray(coarse) + rng.normal(0, 8, (size, size, 3)), 0, 255).astype(np.uint8)
    return {
        "photograph": photograph,
        "noise": rng.integers(0, 256, (size, size, 3), np.uint8),
        "flat": np.broadcast_to(np.array([200, 77, 31], np.uint8), (size, size, 3)).copy(),
        "black": np.zeros((size, size, 3), np.uint8),
        "white": np.full((size, size, 3), 255, np.uint8),
        "gray": photograph[..., :1].repeat(3, axis=2),
    }


def numbers(*values: float) -> list[np.float32]:
    """Parameters as rows hold them."""
    return [np.float32(value) for value in values]


def pointwise(kernel: Callable, image: Bytes, *parameters: object) -> Bytes:
    planes = image.transpose(2, 1, 0).copy()
    kernel(planes.reshape(3, -1), *parameters)
    return planes.transpose(2, 1, 0)


def filtered(kernel: Callable, image: Bytes, *parameters: object) -> Bytes:
    planes = image.transpose(2, 1, 0).copy()
    out = np.full_like(planes, 99)
    kernel(planes, *parameters, out)
    assert (planes == image.transpose(2, 1, 0)).all()
    return out.transpose(2, 1, 0)


def compare(
    size: int, ours: Callable[[Bytes], Bytes], theirs: Callable[[Bytes], Bytes], mean: float, most: int
) -> None:
    """Every kind of image within `mean` and `most` grey levels."""
    for kind, image in images(size).items():
        difference = np.abs(ours(image).astype(int) - theirs(image))
        assert difference.mean() <= mean, kind
        assert difference.max() <= most, kind


@pytest.mark.parametrize("threshold", [0, 1, 127.5, 128, 255, 256])
def test_solarize_inverts_levels_at_or_above_the_threshold(threshold: float) -> None:
    for image in images(33).values():
        expected = np.where(image >= threshold, 255 - image, image)
        assert (pointwise(solarize, image, *numbers(threshold)) == expected).all()


@pytest.mark.parametrize(("factor", "offset"), [(1.2, -10.3), (0.8, 30.7), (1.0, 0.4), (0.0, 12.9), (3.0, -300.0)])
def test_brightness_contrast_is_the_table_of_albucore(factor: float, offset: float) -> None:
    f, o = numbers(factor, offset)
    for image in images(33).values():
        assert (pointwise(brightness_contrast, image, f, o) == multiply_add(image, float(f), float(o))).all()


@pytest.mark.parametrize("sources", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_channels_are_taken_from_where_the_row_says(sources: tuple[int, int, int]) -> None:
    image = images(33)["noise"]  # more pixels than one block, and not a whole number of blocks
    assert (pointwise(channel_shuffle, image, *sources) == image[..., list(sources)]).all()


@pytest.mark.parametrize("shift", [(13.3, -20.2, 11.9), (-17.0, 25.5, -20.7), (0, 30, 0), (-180, 0, 0.5), (200, 0, 0)])
@pytest.mark.parametrize("size", SIZES)
def test_hsv_shift(size: int, shift: tuple[float, float, float]) -> None:
    """OpenCV truncates in its vectors of 32 pixels and rounds in what is left of a row; the kernel always truncates."""
    mean = 0.001 if size % 32 == 0 else 0.05 if size > 32 else 1.0
    values = numbers(*shift)
    compare(
        size,
        lambda image: pointwise(hsv_shift, image, *values),
        lambda image: pixel.shift_hsv(image, *map(float, values)),
        mean,
        1,
    )


def test_an_hsv_shift_of_nothing_changes_nothing() -> None:
    image = images(33)["noise"]
    assert (pointwise(hsv_shift, image, *numbers(0, 0, 0)) == image).all()


@pytest.mark.parametrize("radius", [1, 2, 3, 7, 8, 31])  # sums outgrow 16 bits at 8
@pytest.mark.parametrize("size", SIZES)
def test_box_blur_is_exact(size: int, radius: int) -> None:
    radius = min(radius, size - 1)  # all that a row holds
    compare(size, lambda image: filtered(box_blur, image, radius), lambda i: blur.box_blur(i, 2 * radius + 1), 0, 0)


@pytest.mark.parametrize(("alpha", "lightness"), [(0.2, 0.5), (0.5, 1.0), (0.35, 0.77), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("size", SIZES)
def test_sharpen(size: int, alpha: float, lightness: float) -> None:
    a, light = numbers(alpha, lightness)
    identity, effect = np.zeros((3, 3), np.float32), np.full((3, 3), -1, np.float32)
    identity[1, 1], effect[1, 1] = 1, 8 + light
    kernel = (1 - a) * identity + a * effect
    compare(size, lambda image: filtered(sharpen, image, a, light), lambda image: pixel.convolve(image, kernel), 0.1, 1)


@pytest.mark.parametrize(("clip_limit", "tiles"), [(1.0, 8), (2.3, 8), (4.0, 8), (3.0, 5), (40.0, 8)])
@pytest.mark.parametrize("size", SIZES)
def test_clahe(size: int, clip_limit: float, tiles: int) -> None:
    (limit,) = numbers(clip_limit)
    compare(
        size,
        lambda image: filtered(clahe, image, limit, tiles),
        lambda image: pixel.clahe(image, float(limit), (tiles, tiles)),
        0.01,
        3,  # one entry of OpenCV's table of cube roots is a tie
    )


@pytest.mark.parametrize("size", [1, 3, 20])
def test_clahe_where_tiles_outnumber_pixels(size: int) -> None:
    compare(
        size,
        lambda image: filtered(clahe, image, np.float32(2), 8),
        lambda image: pixel.clahe(image, 2.0, (8, 8)),
        0.01,
        3,
    )


def test_clahe_equalises_the_lightness_as_opencv_bit_for_bit() -> None:
    for image in images(100).values():
        plane = image[..., 1].T.copy()
        _equalise_plane(plane, np.float32(2.7), 8)
        theirs = cv2.createCLAHE(clipLimit=float(np.float32(2.7)), tileGridSize=(8, 8)).apply(image[..., 1].copy())
        assert (theirs == plane.T).all()


def words(seed: int, block: int) -> tuple[int, ...]:
    return tuple(int(word) for word in philox(np.uint64(seed), np.uint64(block), *[np.uint64(0)] * 3))


def noise_field(seed: int, size: int) -> NDArray[np.float32]:
    """Standard normal noise [size, size, 3], upright, pixel by pixel from the definition in `fields`."""
    noise = np.empty((size, size, 3), np.float32)
    for y, x, channel in np.ndindex(noise.shape):
        p = y * size + x
        noise[y, x, channel] = NORMAL[(words(seed, p // 2)[channel] >> (16 * (p % 2) + 4)) & 0xFFF]
    return noise


@pytest.mark.parametrize("size", [32, 33, 8, 1])
def test_gaussian_noise_is_the_field_of_its_seed(size: int) -> None:
    field, (sigma,) = noise_field(SEED, size), numbers(12.3)
    for image in images(size).values():
        planes = image.transpose(2, 1, 0).copy()
        gaussian_noise(planes, np.uint64(SEED), sigma)
        expected = np.clip(np.floor(image.astype(np.float32) + sigma * field + np.float32(0.5)), 0, 255)
        assert (planes.transpose(2, 1, 0) == expected).all()


def noise_of(seed: int, size: int) -> NDArray[np.float64]:
    """What the kernel adds to a gray image, [3, size, size], in units of sigma, to a few hundredths."""
    planes = np.full((3, size, size), 128, np.uint8)
    gaussian_noise(planes, np.uint64(seed), np.float32(25))
    return (planes.astype(float) - 128) / 25


def test_gaussian_noise_is_standard_normal_and_independent() -> None:
    noise = noise_of(SEED, 224)
    smooth = noise + np.random.default_rng(0).uniform(-0.02, 0.02, noise.shape)  # levels are steps of 1/25 sigma
    assert stats.kstest(smooth.ravel(), "norm").pvalue > 0.01
    red, green, blue = noise
    for a, b in ((red, green), (green, blue), (red[1:], red[:-1]), (red[:, 1:], red[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015


def test_gaussian_noise_is_keyed_by_all_of_its_seed() -> None:
    fields = [noise_of(seed, 32) for seed in (SEED, SEED + 1, SEED + 2**63)]
    assert (noise_of(SEED, 32) == fields[0]).all()
    for other in fields[1:]:
        assert abs(np.corrcoef(fields[0].ravel(), other.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(("size", "height", "width"), [(32, 9, 5), (33, 1, 33), (8, 8, 8)])
def test_coarse_dropout_fills_its_seeds_holes(size: int, height: int, width: int) -> None:
    image = images(size)["noise"]
    planes, expected = image.transpose(2, 1, 0).copy(), image.copy()
    coarse_dropout(planes, np.uint64(SEED), 5, height, width, np.float32(7))
    for which in range(5):
        y, x, *_ = words(SEED, which)
        top, left = y * (size - height + 1) >> 32, x * (size - width + 1) >> 32
        expected[top : top + height, left : left + width] = 7
    assert (planes.transpose(2, 1, 0) == expected).all()
