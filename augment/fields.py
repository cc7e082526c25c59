"""Fields of numbers that an operation needs beyond its parameters, drawn from its slot's seed alone.

Pure functions of (seed, position), so every executor gets the same holes and the same noise in whatever order it
computes them. Positions are upright, y down and x to the right, in the S×S view as it stands when the operation's turn
comes.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from penstock.augment.jit import njit
from penstock.augment.philox import below, philox

# Values of the normal distribution, equally likely: noise is rounded to grey levels, so finer ones would not show
LEVELS = 4096
NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS)], np.float32)
ZERO = np.uint64(0)


@njit
def hole(seed, which, size, height, width):  # type: ignore[no-untyped-def]
    """Top and left, int64, of hole number `which`, of height × width pixels, anywhere that it fits in size × size."""
    y, x, _, _ = philox(seed, np.uint64(which), ZERO, ZERO, ZERO)
    return below(y, size - height + 1), below(x, size - width + 1)


@njit(inline=True)
def noise_words(seed, pair):  # type: ignore[no-untyped-def]
    """The random words, for red, green and blue, of pixels 2·pair and 2·pair + 1 (pixel p = y·S + x): see `normal`."""
    red, green, blue, _ = philox(seed, np.uint64(pair), ZERO, ZERO, ZERO)
    return red, green, blue


@njit(inline=True)
def normal(word, pixel):  # type: ignore[no-untyped-def]
    """A standard normal value, float32: an even pixel takes it from the word's low half, an odd one from its high."""
    shift = np.uint64(16 * (pixel & 1) + 4)
    return NORMAL[np.int64((word >> shift) & np.uint64(LEVELS - 1))]
