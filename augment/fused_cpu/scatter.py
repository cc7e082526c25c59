"""Operations that draw numbers from their slot's seed: coarse dropout and Gaussian noise, in place.

Both are defined in upright coordinates (`penstock.augment.fields`) and work on transposed planes, uint8 [3, S, S]
as [channel, x, y], that hold the view unflipped.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.fields import hole, noise_words, normal
from penstock.augment.jit import njit

ZERO, HALF, FULL = np.float32(0.0), np.float32(0.5), np.float32(255.0)


@njit
def coarse_dropout(planes, seed, holes, height, width, fill):  # type: ignore[no-untyped-def]
    """Fill `holes` rectangles of height × width pixels, at most S, with one level, 0 … 255."""
    level = np.uint8(fill)
    for which in range(holes):
        top, left = hole(seed, which, planes.shape[1], height, width)
        for channel in range(3):
            for x in range(left, left + width):
                planes[channel, x, top : top + height] = level


@njit
def _words(seed, x, words):  # type: ignore[no-untyped-def]
    """words uint32 [3, S] = the random words of column x, one for each row and channel."""
    red, green, blue = words[0], words[1], words[2]
    for y in range(len(red)):
        r, g, b = noise_words(seed, np.uint64(y * len(red) + x) >> np.uint64(1))
        red[y], green[y], blue[y] = np.uint32(r), np.uint32(g), np.uint32(b)


@njit
def _add_noise(words, x, sigma, column):  # type: ignore[no-untyped-def]
    """column [S] += sigma · the normal values that pixels (x, y) take from their words [S]; rounded, clamped."""
    for y in range(len(column)):
        value = np.float32(column[y]) + sigma * normal(words[y], y * len(column) + x) + HALF
        value = ZERO if value < ZERO else value
        value = FULL if value > FULL else value
        column[y] = np.uint8(np.int32(value))


@njit
def gaussian_noise(planes, seed, sigma):  # type: ignore[no-untyped-def]
    """Add normal noise of `sigma` levels, float32, to each channel of each pixel.

    A word serves the two pixels of a pair, p // 2. With an even side these are neighbours in a row, so two columns
    share their words; with an odd one pairs reach over the row's end, and each column draws its own.
    """
    size = planes.shape[1]
    step = 1 + (size % 2 == 0)
    words = np.empty((3, size), np.uint32)
    for first in range(0, size, step):
        _words(seed, first, words)
        for x in range(first, first + step):
            for channel in range(3):
                _add_noise(words[channel], x, sigma, planes[channel, x])
