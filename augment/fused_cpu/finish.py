"""The last step: bytes become normalised numbers in the batch, turned upright and flipped on the way.

Normalisation is a table of 256 values per channel, in the output's own bits: exact for any output type. For float32
it is computed instead where that gives the very same bits, because vectors do not look things up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.augment.fused_cpu.memory import ALIGNMENT, aligned
from penstock.augment.fused_cpu.vectors import LANE, LEVELS, TERMS, normalise, turn
from penstock.augment.jit import njit


@njit
def _turn_pixels(planes, left_right, up_down, image):  # type: ignore[no-untyped-def]
    size = len(image)
    for y in range(size):
        row = image[size - 1 - y if up_down else y]
        for x in range(size):
            for channel in range(3):
                row[x, channel] = planes[channel, size - 1 - x if left_right else x, y]


@njit
def upright(planes, left_right, up_down, starts, image):  # type: ignore[no-untyped-def]
    """image uint8 [S, S, 3] (rows, columns, channels) = transposed planes, flipped; starts: scratch, int64 [3 · S]."""
    size, pitch = len(image), 3 * len(image)
    if size < LANE:
        return _turn_pixels(planes, left_right, up_down, image)
    for x in range(size):
        for channel in range(3):
            starts[3 * x + channel] = (channel * size + (size - 1 - x if left_right else x)) * size
    source, target, step = planes.reshape(size * pitch), image.reshape(size * pitch), -pitch if up_down else pitch
    for y in range(0, size, LANE):
        y = min(y, size - LANE)  # the last blocks overlap those before
        first = (size - 1 - y if up_down else y) * pitch
        for j in range(0, pitch, 2 * LANE):
            j = min(j, pitch - 2 * LANE)
            turn(source, starts, j, y, target, first + j, step)


@njit
def look_up(image, table, out):  # type: ignore[no-untyped-def]
    """out [S, S, 3] = table[channel, byte] of an upright image, uint8 [S, S, 3]."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for channel in range(3):
                out[y, x, channel] = table[channel, image[y, x, channel]]


@njit
def _look_up_some(levels, table, begin, end, out):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        out[i] = table[i % 3, levels[i]]


@njit
def stream(levels, table, terms, out):  # type: ignore[no-untyped-def]
    """out = the levels of whole pixels, normalised by `terms`; both flat. By the table where vectors do not fit."""
    begin = min(-out.ctypes.data % ALIGNMENT // out.itemsize, len(levels))
    end = begin + (len(levels) - begin) // LEVELS * LEVELS
    _look_up_some(levels, table, 0, begin, out)
    for at in range(begin, end, LEVELS):
        normalise(levels, terms, begin % 3, out, at)
    _look_up_some(levels, table, end, len(levels), out)


def normalisation(mean: tuple[float, ...], std: tuple[float, ...], table: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The terms by which `stream` gives what is in the `table` of float32 bits; none if it fails at any level.

    A division by a constant is two products with its reciprocal, of which a float32 holds the first half and another
    one the rest; fused with the addition, they are rounded once, as the division is, but for the rarest of cases.
    """
    inverse = 1 / np.array(std, np.float32).astype(np.float64)
    rows = [_halves(np.full(3, 1 / 255)), np.array(mean, np.float32)[None], _halves(inverse)]
    terms = np.tile(np.concatenate(rows), TERMS // 3 + 1)[:, :TERMS].reshape(-1)
    levels, values = np.arange(256, dtype=np.uint8).repeat(3), aligned(3 * 256, np.uint32)
    stream(levels, table, terms, values)
    return terms if np.array_equal(values, table.T.reshape(-1)) else terms[:0]


def _halves(value: NDArray[np.float64]) -> NDArray[np.float32]:
    first = value.astype(np.float32)
    return np.stack([first, (value - first).astype(np.float32)])
