"""Box blur and sharpening: small neighbourhoods, line by line, borders reflected without repeating the edge (OpenCV's).

Both work from sums: the lines around one are added up along the plane's first axis, then that line of sums along
itself. Sums are kept in 16 bits where they fit, because a vector register then holds twice as many.
Planes and output are uint8 [3, S, S], distinct; nothing here cares whether they are transposed.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.jit import njit

ZERO, HALF, ONE, FULL = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(255.0)
ROUND = np.float32(1.5 * 2**23)


@njit
def nearest(value):  # type: ignore[no-untyped-def]
    """Round float32 to a whole number, ties to even as OpenCV: adding ROUND leaves no bits for a fraction."""
    return (value + ROUND) - ROUND


@njit
def reflect(i, n):  # type: ignore[no-untyped-def]
    """Index i reflected into [0, n), as often as it takes, the edge not repeated; a single pixel is its own border."""
    period = max(1, 2 * (n - 1))
    i %= period
    return min(i, period - i)


@njit
def _extend(padded, radius):  # type: ignore[no-untyped-def]
    """Reflect the middle of `padded` [radius + S + radius] into both ends."""
    size = len(padded) - 2 * radius
    for k in range(1, radius + 1):
        padded[radius - k] = padded[radius + reflect(-k, size)]
        padded[radius + size - 1 + k] = padded[radius + reflect(size - 1 + k, size)]


@njit
def _gather(plane, radius, across, total):  # type: ignore[no-untyped-def]
    """across, total [S] = the sum of the first line's neighbours, itself included."""
    for k in range(-radius, radius + 1):
        line = plane[reflect(k, len(plane))]
        for y in range(len(across)):
            before = across[y] if k > -radius else 0
            across[y] = before + line[y]
            total[y] = across[y]


@njit
def _advance(gone, come, across, total):  # type: ignore[no-untyped-def]
    """across, total [S] = the sum one line further; whole numbers, so it never drifts."""
    for y in range(len(across)):
        across[y] = across[y] + come[y] - gone[y]
        total[y] = across[y]


@njit
def _box_plane(plane, radius, padded, total, out):  # type: ignore[no-untyped-def]
    """One channel; padded [radius + S + radius] and total [S] are scratch of one unsigned type that holds every sum.

    Along a line the sums are added up tap by tap: for the radii in use that is a few vector additions, while a running
    sum would be a chain, one pixel after the other.
    """
    size, share = len(plane), ONE / np.float32((2 * radius + 1) ** 2)
    across = padded[radius : radius + size]
    for x in range(size):
        if x == 0:
            _gather(plane, radius, across, total)
        else:
            _advance(plane[reflect(x - 1 - radius, size)], plane[reflect(x + radius, size)], across, total)
        _extend(padded, radius)
        for k in range(1, radius + 1):
            before, after = padded[radius - k : radius - k + size], padded[radius + k : radius + k + size]
            for y in range(len(total)):
                total[y] += before[y] + after[y]
        line = out[x]
        for y in range(len(line)):
            line[y] = np.uint8(np.int32(np.float32(total[y]) * share + HALF))


@njit
def box_blur(planes, radius, out):  # type: ignore[no-untyped-def]
    """Mean of (2·radius + 1)² pixels, rounded, as cv2.blur; radius < S."""
    size = planes.shape[1]
    narrow = (2 * radius + 1) ** 2 <= 257  # 257 · 255 is the most that 16 bits hold
    short, short_total = np.empty(size + 2 * radius, np.uint16), np.empty(size, np.uint16)
    long, long_total = np.empty(size + 2 * radius, np.uint32), np.empty(size, np.uint32)
    for channel in range(3):
        if narrow:
            _box_plane(planes[channel], radius, short, short_total, out[channel])
        else:
            _box_plane(planes[channel], radius, long, long_total, out[channel])


@njit
def _sharpen_line(centre, padded, own, share, line):  # type: ignore[no-untyped-def]
    """line [S] = own·centre - share·(the 3x3 sum), rounded; padded [1 + S + 1] holds sums of three across."""
    before, middle, after = padded[: len(line)], padded[1 : 1 + len(line)], padded[2 : 2 + len(line)]
    for y in range(len(line)):
        value = own * np.float32(centre[y]) - share * np.float32(np.uint16(before[y] + middle[y] + after[y]))
        value = ZERO if value < ZERO else value
        value = FULL if value > FULL else value
        line[y] = np.uint8(np.int32(nearest(value)))


@njit
def sharpen(planes, alpha, lightness, out):  # type: ignore[no-untyped-def]
    """(1 - alpha)·identity + alpha·[[-1,-1,-1], [-1, 8+lightness, -1], [-1,-1,-1]], as cv2.filter2D.

    Args:
        alpha: share of the sharpened image, 0 … 1, float32.
        lightness: added to the 8 at the centre of its kernel, float32.
    """
    size = planes.shape[1]
    own = ONE + alpha * (np.float32(8.0) + lightness)  # the 3x3 sum counts the centre in, so it is given back here
    padded = np.empty(size + 2, np.uint16)
    across = padded[1 : 1 + size]
    for channel in range(3):
        plane = planes[channel]
        for x in range(size):
            before, centre, after = plane[reflect(x - 1, size)], plane[x], plane[reflect(x + 1, size)]
            for y in range(len(across)):
                across[y] = before[y] + centre[y] + after[y]
            _extend(padded, 1)
            _sharpen_line(centre, padded, own, alpha, out[channel, x])
