"""Philox4x32-10, the counter-based generator behind every random value in Penstock.

A pure function from (counter, key) to 128 random bits: no state, so a value does not depend on what was drawn
before it, in which process, or in which order.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.jit import njit

MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # golden ratio, sqrt(3) - 1
LOW, WORD = np.uint64(0xFFFFFFFF), np.uint64(32)


@njit(inline=True)
def philox(key: np.uint64, c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64):  # type: ignore[no-untyped-def]
    """128 random bits as four 32-bit words, each in a uint64.

    Args:
        key: 64 bits. c0, c1, c2, c3: the counter's words; only their low 32 bits count.
    """
    key_0, key_1 = key & LOW, key >> WORD
    c0, c1, c2, c3 = c0 & LOW, c1 & LOW, c2 & LOW, c3 & LOW
    for _ in range(10):
        product_0, product_1 = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> WORD) ^ c1 ^ key_0,
            product_1 & LOW,
            (product_0 >> WORD) ^ c3 ^ key_1,
            product_0 & LOW,
        )
        key_0, key_1 = (key_0 + WEYL_0) & LOW, (key_1 + WEYL_1) & LOW
    return c0, c1, c2, c3


@njit(inline=True)
def unit(word: np.uint64) -> np.float64:
    """A word as a float in [0, 1), all 32 bits used."""
    return np.float64(word) * 2.0**-32


@njit(inline=True)
def below(word: np.uint64, limit: int) -> np.int64:
    """A word as an integer in [0, limit), by multiply and shift (bias under limit / 2**32)."""
    return np.int64((word * np.uint64(limit)) >> WORD)
