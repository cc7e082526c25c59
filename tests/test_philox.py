"""The generator equals the paper's: known answers published with Random123 (kat_vectors, philox 4x32 10)."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.augment.philox import below, philox, unit

ONES = 0xFFFFFFFF
ANSWERS = [
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (0xFFFFFFFF_FFFFFFFF, (ONES, ONES, ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        0x299F31D0_A4093822,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("key", "counter", "expected"), ANSWERS)
def test_known_answers(key, counter, expected):
    assert philox(np.uint64(key), *map(np.uint64, counter)) == expected


def test_words_become_floats_below_one_and_integers_below_a_limit():
    assert unit(np.uint64(0)) == 0.0
    assert unit(np.uint64(ONES)) < 1.0
    assert [below(np.uint64(word), 3) for word in (0, 0x55555556, ONES)] == [0, 1, 2]
