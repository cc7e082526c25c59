"""Resize a crop in two passes that both run along contiguous bytes.

Vertical first, over the interleaved bytes of whole rows; then a transposition, in pieces that fit the first-level
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

from penstock.augment.fused_cpu.fixed import less, lift
from penstock.augment.fused_cpu.memory import ALIGNMENT, aligned, borrow, whole
from penstock.augment.fused_cpu.vectors import MARGIN, NEGATIVE, RUN, SHORTS, prefetch, turn, weigh, weigh_signed
from penstock.augment.jit import njit
from penstock.augment.rows import Interpolation

BILINEAR, BICUBIC = int(Interpolation.BILINEAR), int(Interpolation.BICUBIC)
STRIP, CHUNK = 32, 512  # output rows, and bytes of them: what is summed up and transposed in the first-level cache
LINES, COLUMNS = 16, 8  # of a block that `turn` transposes
ONE = 32768  # a weight of 1
MANY = 32  # taps, from which on roundings in 16 bits would add up to too much
WORD = np.uint32(16)
# Of sums in 32 bits, which at the end have 64 to a level and are MARGIN levels too high.
FINAL_HALF, FINAL_ZERO, FINAL_BITS, FULL = np.uint16(32), np.uint16(64 * MARGIN), np.uint16(6), np.uint16(255)


class Taps(NamedTuple):
    """How `length` pixels make `size`.

    Output i is the sum of weight[i, k] · pixel[first[i] + k] over k < used[i].

    Attributes:
        first, used: int64 [size].
        weight: uint16 [size, taps], in 1/ONE; from NEGATIVE up they stand for themselves less 65536. Each row adds up
            to exactly ONE, so what is flat stays flat.
        exact: float64 [taps], scratch.
    """

    first: NDArray[np.int64]
    used: NDArray[np.int64]
    weight: NDArray[np.uint16]
    exact: NDArray[np.float64]


class Scratch(NamedTuple):
    """Memory that a thread needs to make views of `size` pixels out of crops of up to `longest` pixels a side.

    Attributes:
        taps: of one direction at a time.
        strip: uint16 [STRIP, CHUNK], rows resized vertically, in the order in which `weigh` leaves their columns.
        starts: int64 [STRIP], where its rows begin.
        turned: uint16, the whole crop resized vertically, and transposed.
        copied: uint8, a crop at the very end of a buffer, with room after it.
    """

    taps: Taps
    strip: NDArray[np.uint16]
    starts: NDArray[np.int64]
    turned: NDArray[np.uint16]
    copied: NDArray[np.uint8]


def allocate_scratch(size: int, longest: int, pixels: int) -> Scratch:
    """Memory for one thread, for images of up to `longest` a side and `pixels` in all."""
    most = 4 * (math.ceil(max(1, longest / size)) + 1)  # a cubic reaches two scales to each side
    taps = Taps(
        first=np.empty(size, np.int64),
        used=np.empty(size, np.int64),
        weight=np.empty((size, most), np.uint16),
        exact=np.empty(most, np.float64),
    )
    return Scratch(
        taps=taps,
        strip=aligned(STRIP * CHUNK, np.uint16),
        starts=np.arange(STRIP) * CHUNK,
        turned=aligned(whole(3 * longest, LINES) * whole(size, STRIP) + RUN, np.uint16),
        copied=aligned(3 * pixels + CHUNK, np.uint8),
    )


@njit
def borrow_scratch(scratch):  # type: ignore[no-untyped-def]
    """The same on loan: see `memory.borrow`."""
    taps = scratch.taps
    return Scratch(
        Taps(borrow(taps.first), borrow(taps.used), borrow(taps.weight), borrow(taps.exact)),
        borrow(scratch.strip),
        borrow(scratch.starts),
        borrow(scratch.turned),
        borrow(scratch.copied),
    )


@njit(inline=True)
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
        taps.first[i], taps.used[i] = first, 1 + (second > 0)  # there may be no second one
        taps.weight[i, 0], taps.weight[i, 1] = np.uint16(ONE - second), np.uint16(second)


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


@njit
def _weigh_rows(rows, begin, pitch, taps, cubic, y, count, n, strip):  # type: ignore[no-untyped-def]
    """strip = the n columns from `begin` on of `count` output rows from y on; the flat image's rows lie `pitch` apart.

    The input rows of the next strip are called for meanwhile.
    """
    last, most, weight = len(taps.first) - 1, taps.weight.shape[1], taps.weight.reshape(taps.weight.size)
    for r in range(count):
        i = y + r
        ahead = min(i + STRIP, last)
        begun, end = taps.first[ahead], taps.first[ahead] + taps.used[ahead]
        for row in range(begun, min(end, taps.first[min(ahead + 1, last)])):
            for column in range(0, n, ALIGNMENT):
                prefetch(rows, begin + row * pitch + column)
        first = begin + taps.first[i] * pitch
        for column in range(0, n, 2 * RUN):
            if cubic:
                weigh_signed(rows, first + column, pitch, weight, i * most, taps.used[i], strip, r * CHUNK + column)
            else:
                weigh(rows, first + column, pitch, weight, i * most, taps.used[i], strip, r * CHUNK + column)


@njit
def _turn_strip(strip, starts, n, target, begin, pitch):  # type: ignore[no-untyped-def]
    """target[begin + column · pitch + row] = the strip's n columns, which lie in pieces of even and of odd ones."""
    for column in range(0, n, 2 * COLUMNS):
        even = column // (2 * SHORTS) * (2 * SHORTS) + column % (2 * SHORTS) // 2
        for row in range(0, STRIP, LINES):
            place = begin + column * pitch + row
            turn(strip, starts, row, even, target, place, 2 * pitch)
            turn(strip, starts, row, even + SHORTS, target, place + pitch, 2 * pitch)


@njit
def _weigh_columns(turned, pitch, taps, cubic, levels):  # type: ignore[no-untyped-def]
    """levels uint8 [3 · S · S] = the lines of [width, 3, pitch] resized; each spills into the next, made after it."""
    size, most, weight = len(taps.first), taps.weight.shape[1], taps.weight.reshape(taps.weight.size)
    for channel in range(3):
        for x in range(size):
            first, line = (taps.first[x] * 3 + channel) * pitch, (channel * size + x) * size
            for y in range(0, size, RUN):
                if cubic:
                    weigh_signed(turned, first + y, 3 * pitch, weight, x * most, taps.used[x], levels, line + y)
                else:
                    weigh(turned, first + y, 3 * pitch, weight, x * most, taps.used[x], levels, line + y)


@njit
def _resize(rows, step, box, how, antialias, scratch, planes):  # type: ignore[no-untyped-def]
    """Vertically in strips that are transposed at once, then horizontally; between them levels keep 16 bits.

    Rounded to bytes there, many pixels would end a level off, which strong jitter multiplies; and a cubic overshoots:
    what is over counts until the end (torch, OpenCV). `rows` is flat, its rows lie `step` bytes apart.
    """
    top, left, height, width = box
    size, taps, cubic = planes.shape[1], scratch.taps, how == BICUBIC
    begin, pitch = top * step + 3 * left, whole(size, STRIP)
    fill_taps(taps, height, size, how, antialias)
    for y in range(0, size, STRIP):
        for column in range(0, 3 * width, CHUNK):
            n = min(CHUNK, 3 * width - column)
            _weigh_rows(rows, begin + column, step, taps, cubic, y, min(STRIP, size - y), n, scratch.strip)
            _turn_strip(scratch.strip, scratch.starts, n, scratch.turned, column * pitch + y, pitch)
    fill_taps(taps, width, size, how, antialias)
    _weigh_columns(scratch.turned, pitch, taps, cubic, planes.reshape(planes.size))


@njit
def _fill(line, value):  # type: ignore[no-untyped-def]
    for j in range(len(line)):
        line[j] = value


@njit
def _add_wide(lines, begin, i, k, taps, wide):  # type: ignore[no-untyped-def]
    """wide [n] += one tap of output i."""
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
def _resample_wide(lines, begin, taps, start, out):  # type: ignore[no-untyped-def]
    """out uint16 [S, n] = start + half of the weighted lines[:, begin : begin + n], modulo 65536."""
    wide = np.empty(out.shape[1], np.uint32)
    for i in range(len(out)):
        _fill(wide, np.uint32(start * 65536 + 32768))
        for k in range(taps.used[i]):
            _add_wide(lines, begin, i, k, taps, wide)
        _narrow(wide, out, i)


@njit
def _lift_all(levels, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = lift(levels[j])


@njit
def _round_wide(sums, out):  # type: ignore[no-untyped-def]
    """out uint8 = the final sums, rounded and clamped."""
    for j in range(len(out)):
        out[j] = np.uint8(min(np.uint16(less(np.uint16(sums[j] + FINAL_HALF), FINAL_ZERO) >> FINAL_BITS), FULL))


@njit
def _resize_wide(image, box, how, antialias, scratch, planes):  # type: ignore[no-untyped-def]
    """`_resize` for crops that shrink far: its sums have 32 bits, so no number of taps is too many."""
    top, left, height, width = box
    size, taps = planes.shape[1], scratch.taps
    lifted, down = np.empty((height, width * 3), np.uint16), np.empty((size, width * 3), np.uint16)
    for y in range(height):
        _lift_all(image[top + y, left : left + width].reshape(width * 3), lifted[y])
    fill_taps(taps, height, size, how, antialias)
    _resample_wide(lifted, 0, taps, MARGIN * 128, down)

    turned, sums = np.empty((width, 3 * size), np.uint16), np.empty((size, size), np.uint16)
    for x in range(width):
        for channel in range(3):
            for y in range(size):
                turned[x, channel * size + y] = down[y, 3 * x + channel]
    fill_taps(taps, width, size, how, antialias)
    for channel in range(3):
        _resample_wide(turned, channel * size, taps, 0, sums)
        _round_wide(sums.reshape(size * size), planes[channel].reshape(size * size))


@njit
def _copy_rows(rows, begin, step, height, n, copied):  # type: ignore[no-untyped-def]
    for row in range(height):
        source, target = rows[begin + row * step :], copied[row * n : (row + 1) * n]
        for column in range(n):  # a memcpy, which it is not without slices
            target[column] = source[column]


@njit
def resize_crop(rows, height, width, values, scratch, planes):  # type: ignore[no-untyped-def]
    """Crop and resize.

    Args:
        rows: uint8, flat: begins with an image of height × width pixels, and goes on to the end of its buffer.
        values: float32 [8], the parameters of a CROP: see `penstock.augment.rows`.
        planes: uint8 [3, size, size], filled transposed: [channel, x, y]. Up to RUN bytes after it are lost.
    """
    box = int(values[0]), int(values[1]), int(values[2]), int(values[3])
    how, antialias = int(values[4]), values[5] != 0
    taps = 4 if how == BICUBIC else 2  # to a pixel of the view, and as many times more as it takes in
    if antialias and max(box[2], box[3]) * taps >= MANY * planes.shape[1]:
        image = rows[: height * width * 3].reshape((height, width, 3))
        return _resize_wide(image, box, how, antialias, scratch, planes)
    begin, step, n = (box[0] * width + box[1]) * 3, width * 3, box[3] * 3
    if begin + (box[2] - 1) * step + whole(n, 2 * RUN) > len(rows):  # a sum of whole runs reads more than there is
        _copy_rows(rows, begin, step, box[2], n, scratch.copied)
        rows, step, box = scratch.copied, n, (0, 0, box[2], box[3])
    _resize(rows, step, box, how, antialias, scratch, planes)
