"""Resize a crop in two passes that both run along contiguous bytes.

Vertical first, over the interleaved bytes of whole rows; then a transposition, in strips that fit the first-level
cache; then the horizontal pass, which along transposed rows is a vertical one again. The result stays transposed,
`[channel][x][y]`: everything after it is pointwise or separable, and the last step writes it back upright.

Weights are those of PIL and torch: a triangle, or Keys' cubic, around the output pixel's centre; stretched by the
scale when it shrinks and antialiasing is on, and then cut at the border and normalised; else continued over the border.
Sums are kept in 16 bits, a grey level being 128 (`fixed.py`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.augment.fused_cpu.fixed import HALF, high, less, lift, lifted, settle
from penstock.augment.fused_cpu.memory import borrow
from penstock.augment.jit import njit
from penstock.augment.rows import Interpolation

BILINEAR, BICUBIC = int(Interpolation.BILINEAR), int(Interpolation.BICUBIC)
STRIP = 16  # output rows that are transposed at once
ONE = 32768  # a weight of 1
NEGATIVE = 49152  # weights from here up stand for themselves less 65536
MANY = 32  # taps, from which on roundings in 16 bits would add up to too much
WORD = np.uint32(16)
W1, W2, W3 = np.uint64(16), np.uint64(32), np.uint64(48)
# A cubic's sums are MARGIN levels too high, so that what undershoots stays positive, and at the end in 1/64 of a level.
MARGIN = 128
FINAL_HALF, FINAL_ZERO, FINAL_BITS, FULL = np.uint16(32), np.uint16(64 * MARGIN), np.uint16(6), np.uint16(255)


class Taps(NamedTuple):
    """How `length` pixels make `size`.

    Output i is the sum of weight[i, k] · pixel[first[i] + k] over k < used[i].

    Attributes:
        first, used: int64 [size].
        weight: uint16 [size, taps], in 1/ONE; from NEGATIVE up they stand for themselves less 65536. Each row adds up
            to exactly ONE, so what is flat stays flat. Weights beyond those used are 0 up to a multiple of four.
        exact: float64 [taps], scratch.
    """

    first: NDArray[np.int64]
    used: NDArray[np.int64]
    weight: NDArray[np.uint16]
    exact: NDArray[np.float64]


class Scratch(NamedTuple):
    """Memory that a thread needs to make views of `size` pixels out of crops of up to `longest` pixels a side."""

    taps: Taps
    sums: NDArray[np.uint16]  # [3 · longest]
    strip: NDArray[np.uint16]  # [STRIP · 3 · longest]
    packed: NDArray[np.uint64]  # [4 · 3 · longest]
    turned: NDArray[np.uint64]  # [3 · longest · size / 4], size rounded up to whole strips


def allocate(size: int, longest: int) -> Scratch:
    """Memory for one thread."""
    most = 4 * (math.ceil(max(1, longest / size)) + 1)  # a cubic reaches two scales to each side
    pitch = math.ceil(size / STRIP) * STRIP
    taps = Taps(
        first=np.empty(size, np.int64),
        used=np.empty(size, np.int64),
        weight=np.empty((size, most), np.uint16),
        exact=np.empty(most, np.float64),
    )
    return Scratch(
        taps=taps,
        sums=np.empty(3 * max(longest, size), np.uint16),
        strip=np.empty(STRIP * 3 * longest, np.uint16),
        packed=np.empty(4 * 3 * longest, np.uint64),
        turned=np.empty(3 * longest * pitch // 4, np.uint64),
    )


@njit
def borrow_scratch(scratch):  # type: ignore[no-untyped-def]
    """The same on loan: see `memory.borrow`."""
    taps = scratch.taps
    return Scratch(
        Taps(borrow(taps.first), borrow(taps.used), borrow(taps.weight), borrow(taps.exact)),
        borrow(scratch.sums),
        borrow(scratch.strip),
        borrow(scratch.packed),
        borrow(scratch.turned),
    )


@njit
def _kernel(t, cubic, a):  # type: ignore[no-untyped-def]
    """The filter at distance t: a triangle, or Keys' cubic (1981) with its parameter."""
    t = abs(t)
    if not cubic:
        return max(0.0, 1.0 - t)
    if t < 1.0:
        return ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
    return (((t - 5.0) * t + 8.0) * t - 4.0) * a if t < 2.0 else 0.0


@njit
def _fill_two(taps, length, size):  # type: ignore[no-untyped-def]
    """`fill_taps` for a triangle that does not shrink the image: the two nearest pixels, at most."""
    scale = length / size
    for i in range(size):
        place = min(max((i + 0.5) * scale - 0.5, 0.0), length - 1.0)
        first = int(place)
        second = int((place - first) * ONE + 0.5)
        taps.first[i], taps.used[i] = first, 2
        taps.weight[i, 0], taps.weight[i, 1] = np.uint16(ONE - second), np.uint16(second)
        taps.weight[i, 2], taps.weight[i, 3] = 0, 0


@njit
def fill_taps(taps, length, size, how, antialias):  # type: ignore[no-untyped-def]
    """Set `taps` to resize `length` pixels to `size`; how: an `Interpolation`."""
    if how == BILINEAR and length <= size:
        return _fill_two(taps, length, size)
    scale = length / size
    stretch = max(scale, 1.0) if antialias else 1.0
    cubic, a = how == BICUBIC, -0.5 if antialias else -0.75
    narrow, reach = 1.0 / stretch, 2.0 * stretch if cubic else stretch
    exact = taps.exact
    for i in range(size):
        centre = (i + 0.5) * scale
        low, end = int(np.floor(centre - reach + 0.5)), int(centre + reach + 0.5)
        first, beyond = max(low, 0), min(end, length)
        if antialias:
            low, end = first, beyond
        total = 0.0
        for k in range(end - low):
            exact[k] = _kernel((low + k + 0.5 - centre) * narrow, cubic, a)
            total += exact[k]
        if low < first or end > beyond:
            _replicate(exact, low, end, first, beyond - 1)
        taps.first[i], taps.used[i] = first, beyond - first
        _quantise(exact, ONE / total, taps.weight, i, beyond - first)


@njit
def _replicate(exact, low, end, first, last):  # type: ignore[no-untyped-def]
    """Give the weights of pixels low … end - 1 that lie beyond the border to the border's pixels, in place."""
    for k in range(low, end):
        weight, exact[k - low] = exact[k - low], 0.0
        exact[min(max(k, first), last) - first] += weight


@njit
def _quantise(exact, unit, weight, i, count):  # type: ignore[no-untyped-def]
    """weight[i] = exact · unit in whole numbers, the rounding errors carried on, so that the sum is right."""
    so_far, given = 0.5, 0
    for k in range(count):
        so_far += exact[k] * unit
        whole = int(np.floor(so_far))
        weight[i, k], given = np.uint16(whole - given), whole
    for k in range(count, (count + 3) // 4 * 4):
        weight[i, k] = 0


@njit
def _two(lines, begin, i, taps, out, row):  # type: ignore[no-untyped-def]
    first, last, end = taps.first[i], len(lines) - 1, begin + out.shape[1]
    u, v = taps.weight[i, 0], taps.weight[i, 1]
    a, b = lines[first, begin:end], lines[min(first + 1, last), begin:end]
    target = out[row]
    for j in range(len(target)):
        settle(np.uint16(high(lifted(a[j]), u) + high(lifted(b[j]), v) + HALF), target, j)


@njit
def _three(lines, begin, i, taps, out, row):  # type: ignore[no-untyped-def]
    first, end = taps.first[i], begin + out.shape[1]
    u, v, w = taps.weight[i, 0], taps.weight[i, 1], taps.weight[i, 2]
    a, b = lines[first, begin:end], lines[first + 1, begin:end]
    c, target = lines[first + 2, begin:end], out[row]
    for j in range(len(target)):
        settle(np.uint16(high(lifted(a[j]), u) + high(lifted(b[j]), v) + high(lifted(c[j]), w) + HALF), target, j)


@njit
def _add_four(lines, begin, i, k, taps, sums):  # type: ignore[no-untyped-def]
    first, last, end = taps.first[i] + k, len(lines) - 1, begin + len(sums)
    t, u, v, w = taps.weight[i, k], taps.weight[i, k + 1], taps.weight[i, k + 2], taps.weight[i, k + 3]
    a, b = lines[first, begin:end], lines[min(first + 1, last), begin:end]
    c, d = lines[min(first + 2, last), begin:end], lines[min(first + 3, last), begin:end]
    for j in range(len(a)):
        more = high(lifted(a[j]), t) + high(lifted(b[j]), u) + high(lifted(c[j]), v) + high(lifted(d[j]), w)
        sums[j] = np.uint16(sums[j] + more)


@njit
def _fill(line, value):  # type: ignore[no-untyped-def]
    for j in range(len(line)):
        line[j] = value


@njit
def _round(sums, out, row):  # type: ignore[no-untyped-def]
    target = out[row]
    for j in range(len(target)):
        settle(sums[j], target, j)


@njit
def _resample(lines, begin, taps, at, sums, out):  # type: ignore[no-untyped-def]
    """out [R, n] = output lines at, at + 1, ... of lines[:, begin : begin + n]; bytes or lifted levels, either way.

    Two and three taps, the most frequent, are written out, so that no sum leaves its register.
    """
    total = sums[: out.shape[1]]
    for r in range(len(out)):
        i = at + r
        if taps.used[i] <= 2:
            _two(lines, begin, i, taps, out, r)
        elif taps.used[i] == 3:
            _three(lines, begin, i, taps, out, r)
        else:
            _fill(total, np.uint16(HALF + taps.used[i] // 2))  # each of its products is rounded down
            for k in range(0, taps.used[i], 4):
                _add_four(lines, begin, i, k, taps, total)
            _round(total, out, r)


@njit
def _pack(a, b, c, d, packed):  # type: ignore[no-untyped-def]
    """Four rows of 16 bits as one of 64."""
    for j in range(len(packed)):
        packed[j] = np.uint64(a[j]) | np.uint64(b[j]) << W1 | np.uint64(c[j]) << W2 | np.uint64(d[j]) << W3


@njit
def _transpose(strip, packed, turned, at):  # type: ignore[no-untyped-def]
    """turned[:, at : at+4] = the transposed strip; uint16 [16, n] into words of four of them [n, S/4]."""
    for group in range(4):
        row = 4 * group
        _pack(strip[row], strip[row + 1], strip[row + 2], strip[row + 3], packed[group])
    a, b, c, d = packed[0], packed[1], packed[2], packed[3]
    for j in range(len(turned)):
        target = turned[j, at : at + 4]
        target[0], target[1], target[2], target[3] = a[j], b[j], c[j], d[j]


@njit
def _resize_bilinear(image, box, how, antialias, scratch, planes):  # type: ignore[no-untyped-def]
    """Vertically in strips that are transposed at once, then horizontally; between them levels keep 16 bits.

    Rounded to bytes there, many pixels would end a level off, which strong jitter multiplies.
    """
    top, left, height, width = box
    size, taps = planes.shape[1], scratch.taps
    pitch = (size + STRIP - 1) // STRIP * STRIP
    rows = image[top : top + height].reshape((height, image.shape[1] * 3))
    strip = scratch.strip[: STRIP * width * 3].reshape((STRIP, width * 3))
    packed = scratch.packed[: 4 * width * 3].reshape((4, width * 3))
    turned = scratch.turned[: width * 3 * pitch // 4].reshape((width * 3, pitch // 4))
    fill_taps(taps, height, size, how, antialias)
    for y in range(0, size, STRIP):
        _resample(rows, left * 3, taps, y, scratch.sums, strip[: min(STRIP, size - y)])
        _transpose(strip, packed, turned, y // 4)

    columns = turned.view(np.uint16).reshape((width, 3 * pitch))
    fill_taps(taps, width, size, how, antialias)
    for x in range(0, size, STRIP):
        for channel in range(3):
            _resample(columns, channel * pitch, taps, x, scratch.sums, planes[channel, x : x + STRIP])


@njit
def _sign(weight):  # type: ignore[no-untyped-def]
    """All bits set where a weight is negative, none where it is not."""
    return np.uint16(0xFFFF) if weight >= NEGATIVE else np.uint16(0)


@njit
def _signed(value, weight, negative):  # type: ignore[no-untyped-def]
    """value · weight, the weight less 1 where `negative` has all its bits set; modulo 65536."""
    return np.uint16(high(value, weight) - (value & negative))


@njit
def _add_four_signed(lines, begin, i, k, taps, out):  # type: ignore[no-untyped-def]
    target = out[i]
    first, last, end = taps.first[i] + k, len(lines) - 1, begin + len(target)
    t, u, v, w = taps.weight[i, k], taps.weight[i, k + 1], taps.weight[i, k + 2], taps.weight[i, k + 3]
    nt, nu, nv, nw = _sign(t), _sign(u), _sign(v), _sign(w)
    a, b = lines[first, begin:end], lines[min(first + 1, last), begin:end]
    c, d = lines[min(first + 2, last), begin:end], lines[min(first + 3, last), begin:end]
    for j in range(len(target)):
        more = _signed(a[j], t, nt) + _signed(b[j], u, nu) + _signed(c[j], v, nv) + _signed(d[j], w, nw)
        target[j] = np.uint16(target[j] + more)


@njit
def _add_wide(lines, begin, i, k, taps, wide):  # type: ignore[no-untyped-def]
    """The same for one tap in 32 bits, where nothing is rounded."""
    weight, line = int(taps.weight[i, k]), lines[taps.first[i] + k, begin : begin + len(wide)]
    w = np.uint32(weight - 65536 if weight >= NEGATIVE else weight)
    for j in range(len(wide)):
        wide[j] = np.uint32(wide[j] + np.uint32(line[j]) * w)


@njit
def _narrow(wide, out, row):  # type: ignore[no-untyped-def]
    target = out[row]
    for j in range(len(target)):
        target[j] = np.uint16(wide[j] >> WORD)


@njit
def _resample_signed(lines, begin, taps, start, out):  # type: ignore[no-untyped-def]
    """out uint16 [S, n] = start + half of the weighted lines[:, begin : begin + n], modulo 65536."""
    wide = np.empty(out.shape[1], np.uint32)
    for i in range(len(out)):
        if taps.used[i] > MANY:
            _fill(wide, np.uint32(start * 65536 + 32768))
            for k in range(taps.used[i]):
                _add_wide(lines, begin, i, k, taps, wide)
            _narrow(wide, out, i)
        else:
            _fill(out[i], np.uint16(start + taps.used[i] // 2))
            for k in range(0, taps.used[i], 4):
                _add_four_signed(lines, begin, i, k, taps, out)


@njit
def _lift_all(levels, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = lift(levels[j])


@njit
def _round_signed(sums, out):  # type: ignore[no-untyped-def]
    """out uint8 = a cubic's final sums, rounded and clamped."""
    for j in range(len(out)):
        out[j] = np.uint8(min(np.uint16(less(np.uint16(sums[j] + FINAL_HALF), FINAL_ZERO) >> FINAL_BITS), FULL))


@njit
def _resize_any(image, box, how, antialias, scratch, planes):  # type: ignore[no-untyped-def]
    """The same in 16 bits all along: a cubic overshoots, and what is over counts until the end (torch, OpenCV)."""
    top, left, height, width = box
    size, taps = planes.shape[1], scratch.taps
    lifted, down = np.empty((height, width * 3), np.uint16), np.empty((size, width * 3), np.uint16)
    for y in range(height):
        _lift_all(image[top + y, left : left + width].reshape(width * 3), lifted[y])
    fill_taps(taps, height, size, how, antialias)
    _resample_signed(lifted, 0, taps, MARGIN * 128, down)

    turned, sums = np.empty((width, 3 * size), np.uint16), np.empty((size, size), np.uint16)
    for x in range(width):
        for channel in range(3):
            for y in range(size):
                turned[x, channel * size + y] = down[y, 3 * x + channel]
    fill_taps(taps, width, size, how, antialias)
    for channel in range(3):
        _resample_signed(turned, channel * size, taps, 0, sums)
        _round_signed(sums.reshape(size * size), planes[channel].reshape(size * size))


@njit
def resize_crop(image, values, scratch, planes):  # type: ignore[no-untyped-def]
    """Crop and resize.

    Args:
        image: uint8 [H, W, 3].
        values: float32 [8], the parameters of a CROP: see `penstock.augment.rows`.
        planes: uint8 [3, size, size], filled transposed: [channel, x, y].
    """
    box, how, antialias = (
        (int(values[0]), int(values[1]), int(values[2]), int(values[3])),
        int(values[4]),
        values[5] != 0,
    )
    few_taps = max(box[2], box[3]) * 2 < MANY * planes.shape[1]
    if how == BILINEAR and few_taps:
        _resize_bilinear(image, box, how, antialias, scratch, planes)
    else:
        _resize_any(image, box, how, antialias, scratch, planes)
