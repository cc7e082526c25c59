"""Resize a crop, antialiased, in two passes that both run along contiguous bytes.

Vertical first, over the interleaved bytes of whole rows; then a transposition, in strips that fit the first-level
cache; then the horizontal pass, which along transposed rows is a vertical one again. The result stays transposed,
`[channel][x][y]`: everything after it is pointwise or separable, and the last step writes it back upright.

Weights are those of PIL and torch: a triangle around the output pixel's centre, stretched by the scale when it shrinks
and antialiasing is on, cut at the border, normalised.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.jit import njit

STRIP = 16  # output rows that are transposed at once: one 16-byte store per source byte column


@njit
def weights(length, size, antialias):  # type: ignore[no-untyped-def]
    """Taps of resizing `length` pixels to `size`.

    Returns:
        first, count: int64 [size], a tap's first source pixel and how many there are.
        weight: float32 [size, taps], each row's first `count` add up to 1.
    """
    scale = length / size
    support = max(scale, 1.0) if antialias else 1.0
    first, count = np.empty(size, np.int64), np.empty(size, np.int64)
    weight = np.empty((size, int(2.0 * support) + 2), np.float32)
    for i in range(size):
        centre = (i + 0.5) * scale
        low, high = max(0, int(centre - support + 0.5)), min(length, int(centre + support + 0.5))
        first[i], count[i] = low, high - low
        total = 0.0
        for k in range(high - low):
            weight[i, k] = max(0.0, 1.0 - abs(low + k - centre + 0.5) / support)
            total += weight[i, k]
        for k in range(high - low):
            weight[i, k] /= total
    return first, count, weight


@njit
def _round_to_byte(value):  # type: ignore[no-untyped-def]
    value = value + np.float32(0.5)
    value = np.float32(0.0) if value < np.float32(0.0) else value
    value = np.float32(255.0) if value > np.float32(255.0) else value
    return np.uint8(np.int32(value))


@njit
def _vertical(image, left, width, first, count, weight, y, line, row):  # type: ignore[no-untyped-def]
    """One output row: line [width*3] float32 gathers the taps' source rows, row [width*3] gets the bytes."""
    begin, end = left * 3, (left + width) * 3
    for k in range(count[y]):
        w = weight[y, k]
        source = image[first[y] + k, begin:end]
        if k == 0:
            for j in range(len(line)):
                line[j] = w * np.float32(source[j])
        else:
            for j in range(len(line)):
                line[j] += w * np.float32(source[j])
    for j in range(len(line)):
        row[j] = _round_to_byte(line[j])


@njit
def _transpose_strip(strip, rows, turned, y):  # type: ignore[no-untyped-def]
    """turned[j, y : y+rows] = strip[:rows, j]."""
    if rows == STRIP:
        for j in range(strip.shape[1]):
            target = turned[j, y : y + STRIP]
            for r in range(STRIP):
                target[r] = strip[r, j]
    else:
        for j in range(strip.shape[1]):
            for r in range(rows):
                turned[j, y + r] = strip[r, j]


@njit
def _horizontal(turned, first, count, weight, x, channel, line, out):  # type: ignore[no-untyped-def]
    """One output column of one channel: out [size] bytes along y."""
    for k in range(count[x]):
        w = weight[x, k]
        source = turned[(first[x] + k) * 3 + channel]
        if k == 0:
            for y in range(len(line)):
                line[y] = w * np.float32(source[y])
        else:
            for y in range(len(line)):
                line[y] += w * np.float32(source[y])
    for y in range(len(line)):
        out[y] = _round_to_byte(line[y])


@njit
def resize_crop(image, box, antialias, planes):  # type: ignore[no-untyped-def]
    """Crop and resize, bilinear.

    Args:
        image: uint8 [H, W, 3].
        box: top, left, height, width in source pixels.
        antialias: whether the filter stretches when it shrinks.
        planes: uint8 [3, size, size], filled transposed: [channel, x, y].
    """
    top, left, height, width = box
    size = planes.shape[1]
    rows = image[top : top + height].reshape((height, image.shape[1] * 3))
    strip, turned = np.empty((STRIP, width * 3), np.uint8), np.empty((width * 3, size), np.uint8)
    line = np.empty(width * 3, np.float32)
    first, count, weight = weights(height, size, antialias)
    for y in range(0, size, STRIP):
        used = min(STRIP, size - y)
        for r in range(used):
            _vertical(rows, left, width, first, count, weight, y + r, line, strip[r])
        _transpose_strip(strip, used, turned, y)

    first, count, weight = weights(width, size, antialias)
    column = np.empty(size, np.float32)
    for x in range(size):
        for channel in range(3):
            _horizontal(turned, first, count, weight, x, channel, column, planes[channel, x])
