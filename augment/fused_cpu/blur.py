"""Gaussian blur, separable, in 16 bits (`fixed.py`), pixels at equal distances added before they are multiplied.

A channel is copied into 16 bits with its borders mirrored on all sides. Then both directions are the same weighted sum
along the flat copy, once with a line as the step and once with a pixel, a few lines at a time so that what lies between
the two stays in the first-level cache. In a sum a grey level is 128.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.fused_cpu.fixed import high
from penstock.augment.jit import njit

BITS, ONE_BIT = np.uint16(7), np.uint16(1)
HALF = np.uint16(64)
LINES = 16  # at a time
FAINT = 32  # a weight, in 1/65536, that in both directions together moves no pixel by half a level


@njit
def fill_kernel(sigma, radius, weight):  # type: ignore[no-untyped-def]
    """weight uint16 [radius + 1]: [k] at distance k > 0 in 1/65536, [0] in 1/32768; they add up to exactly one."""
    total = 1.0
    for k in range(1, radius + 1):
        total += 2.0 * np.exp(-0.5 * (k / sigma) ** 2)
    centre = 32768
    for k in range(1, radius + 1):
        weight[k] = np.uint16(np.exp(-0.5 * (k / sigma) ** 2) / total * 65536.0 + 0.5)
        centre -= int(weight[k])
    weight[0] = np.uint16(centre)


@njit
def _mirror(i, n):  # type: ignore[no-untyped-def]
    """Index i reflected into [0, n), the border pixel not repeated."""
    i = -i if i < 0 else i
    return 2 * (n - 1) - i if i >= n else i


@njit
def _lift_line(plane, x, padded, row, radius):  # type: ignore[no-untyped-def]
    """padded[row] = plane[x] in 1/128, its ends mirrored."""
    source, size = plane[x], plane.shape[1]
    line, middle = padded[row], padded[row, radius : radius + size]
    for y in range(len(middle)):
        middle[y] = np.uint16(source[y]) << BITS
    for k in range(1, radius + 1):
        line[radius - k] = middle[k]
        line[radius + size - 1 + k] = middle[size - 1 - k]


@njit
def _centre(source, at, step, weight, total):  # type: ignore[no-untyped-def]
    """total = source[at:], weighted, and its neighbours at distance 1; rounded up a little, as products are down."""
    n, u, v, lost = len(total), weight[0], weight[1], np.uint16(len(weight) // 2)
    a, b, c = source[at - step : at - step + n], source[at : at + n], source[at + step : at + step + n]
    for i in range(n):
        total[i] = np.uint16(lost + high(np.uint16(b[i] << ONE_BIT), u) + high(np.uint16(a[i] + c[i]), v))


@njit
def _one_more(source, at, step, k, weight, total):  # type: ignore[no-untyped-def]
    """total += the neighbours at distance k."""
    n, u = len(total), weight[k]
    a, b = source[at - k * step : at - k * step + n], source[at + k * step : at + k * step + n]
    for i in range(n):
        total[i] = np.uint16(total[i] + high(np.uint16(a[i] + b[i]), u))


@njit
def _two_more(source, at, step, k, weight, total):  # type: ignore[no-untyped-def]
    """total += the neighbours at distances k and k + 1."""
    n, u, v, far = len(total), weight[k], weight[k + 1], (k + 1) * step
    a, b = source[at - k * step : at - k * step + n], source[at + k * step : at + k * step + n]
    c, d = source[at - far : at - far + n], source[at + far : at + far + n]
    for i in range(n):
        total[i] = np.uint16(total[i] + high(np.uint16(a[i] + b[i]), u) + high(np.uint16(c[i] + d[i]), v))


@njit
def _weigh(source, at, step, weight, total):  # type: ignore[no-untyped-def]
    """total[i] = the sum of weight[k] · (source[at + i - k·step] + source[at + i + k·step])."""
    _centre(source, at, step, weight, total)
    for k in range(2, len(weight) - 1, 2):
        _two_more(source, at, step, k, weight, total)
    if len(weight) % 2 == 1:
        _one_more(source, at, step, len(weight) - 1, weight, total)


@njit
def _round(total, begin, out, x):  # type: ignore[no-untyped-def]
    line = out[x]
    sums = total[begin : begin + len(line)]
    for y in range(len(line)):
        line[y] = np.uint8(np.uint16(sums[y] + HALF) >> BITS)


@njit
def blur_plane(plane, weight, out):  # type: ignore[no-untyped-def]
    """Blur one channel.

    Args:
        plane, out: uint8 [S, S], distinct.
        weight: uint16 [radius + 1] from `fill_kernel`; radius < S.
    """
    size, radius = len(plane), len(weight) - 1
    pitch = size + 2 * radius
    padded = np.empty((pitch, pitch), np.uint16)
    for row in range(pitch):
        _lift_line(plane, _mirror(row - radius, size), padded, row, radius)
    flat = padded.reshape(pitch * pitch)
    across, along = np.empty(LINES * pitch, np.uint16), np.empty(LINES * pitch, np.uint16)
    for x in range(0, size, LINES):
        used = min(LINES, size - x)
        _weigh(flat, (x + radius) * pitch, pitch, weight, across[: used * pitch])
        _weigh(across, radius, 1, weight, along[: used * pitch - 2 * radius])
        for line in range(used):
            _round(along, line * pitch, out, x + line)


@njit
def _copy(plane, out):  # type: ignore[no-untyped-def]
    for x in range(len(plane)):
        for y in range(len(plane)):
            out[x, y] = plane[x, y]


@njit
def gaussian_blur(planes, sigma, radius, out):  # type: ignore[no-untyped-def]
    """Blur three channels; planes, out uint8 [3, S, S], distinct; radius < S."""
    weight = np.empty(radius + 1, np.uint16)
    fill_kernel(sigma, radius, weight)
    for channel in range(3):
        if radius == 0 or weight[1] < FAINT:
            _copy(planes[channel], out[channel])
        else:
            blur_plane(planes[channel], weight, out[channel])
