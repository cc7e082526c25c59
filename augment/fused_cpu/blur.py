"""Gaussian blur, separable, with the symmetric taps added before they are multiplied.

One output line at a time: the lines around it are weighted into a float line, that line is mirrored at its ends and
weighted along itself, and rounded to bytes. Nothing larger than a line is kept in floats.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.jit import njit


@njit
def gaussian(sigma, radius, taps):  # type: ignore[no-untyped-def]
    """Half a normalised kernel: taps[k] is the weight at distance k, k = 0 … radius."""
    total = 0.0
    for k in range(radius + 1):
        value = np.exp(-0.5 * (k / sigma) ** 2)
        taps[k] = value
        total += value if k == 0 else 2.0 * value
    for k in range(radius + 1):
        taps[k] /= total


@njit
def _mirror(i, n):  # type: ignore[no-untyped-def]
    """Index i reflected into [0, n), the border pixel not repeated."""
    i = -i if i < 0 else i
    return 2 * (n - 1) - i if i >= n else i


@njit
def _across(plane, x, radius, taps, line):  # type: ignore[no-untyped-def]
    """line [S] = the lines of `plane` around x, weighted."""
    size = len(plane)
    centre, w = plane[x], taps[0]
    for y in range(len(line)):
        line[y] = w * np.float32(centre[y])
    for k in range(1, radius + 1):
        before, after, w = plane[_mirror(x - k, size)], plane[_mirror(x + k, size)], taps[k]
        for y in range(len(line)):
            line[y] += w * (np.float32(before[y]) + np.float32(after[y]))


@njit
def _along(padded, radius, taps, line, out):  # type: ignore[no-untyped-def]
    """out [S] bytes = `padded` [radius + S + radius], weighted along itself; line [S] is scratch."""
    size = len(line)
    centre, w = padded[radius : radius + size], taps[0]
    for y in range(len(line)):
        line[y] = w * centre[y]
    for k in range(1, radius + 1):
        before, after, w = padded[radius - k : radius - k + size], padded[radius + k : radius + k + size], taps[k]
        for y in range(len(line)):
            line[y] += w * (before[y] + after[y])
    for y in range(len(line)):
        out[y] = np.uint8(np.int32(line[y] + np.float32(0.5)))


@njit
def blur_plane(plane, sigma, radius, out):  # type: ignore[no-untyped-def]
    """Blur one channel: plane, out uint8 [S, S], distinct; sigma in pixels; radius < S."""
    size = len(plane)
    taps = np.empty(radius + 1, np.float32)
    gaussian(sigma, radius, taps)
    padded, line = np.empty(size + 2 * radius, np.float32), np.empty(size, np.float32)
    middle = padded[radius : radius + size]
    for x in range(size):
        _across(plane, x, radius, taps, middle)
        for k in range(1, radius + 1):
            padded[radius - k] = middle[k]
            padded[radius + size - 1 + k] = middle[size - 1 - k]
        _along(padded, radius, taps, line, out[x])
