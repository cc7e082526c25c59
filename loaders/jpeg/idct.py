"""The inverse cosine transform, bit for bit libjpeg's accurate one ("islow"), eight columns at once.

A one-dimensional transform of eight numbers is the even half plus or minus the odd half, each a small matrix of
cosines in integers. libjpeg multiplies by fewer, derived constants (Loeffler, Ligtenberg and Moschytz, 1989); sums of
integers are the same in any order, so here each output is a sum of products. Two products of 16-bit numbers that lie
side by side, added, are one instruction (x86's pmaddwd): so the numbers go in pairs, 0 with 4, 2 with 6, 1 with 5 and
3 with 7, from where the entropy decoder puts them (huffman.py) on.

The first pass is over the columns and keeps two more bits; the second one is over the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from numba import types

from penstock.loaders.jpeg.lanes import INT, LONG, SHORT, Lanes, Memory, emitted

FRACTION = 13  # bits of the constants
ONE = 1 << FRACTION
KEPT = 2  # bits that the first pass keeps
# cos(k pi / 16) * sqrt(2) * 2 ** 13, but as sums of libjpeg's constants, each of which was rounded by itself. Rows are
# outputs; columns the inputs of a pair.
PAIR_2_6 = ((10703, 4433), (4433, -10704))
PAIR_1_5 = ((11363, 6437), (9633, -11362), (6437, 2261), (2260, 9633))
PAIR_3_7 = ((9633, 2260), (-2259, -6436), (-11362, 9633), (-6436, -11363))
# libjpeg-turbo adds two numbers in 16 bits, which is exact up to here; damaged files and absurd tables go beyond.
LARGEST = 16383


BLOCKS = 2  # transformed at once
LANES = 8 * BLOCKS


@emitted(types.uint64)
def inverse_dct(
    coefficients: Memory, tables: Memory, table: Any, other_table: Any, planes: Memory, to: Any, other: Any, stride: Any
) -> Any:
    """Transform two blocks to 8 x 8 bytes each at `to` and `other`, and clear them.

    Their coefficients, int16, are where huffman.PLACES says. A table, int16 at the byte offset `table`, has for each
    its quantiser, and 64 on its bound, LARGEST over the quantiser. Returns not 0 if there are numbers too large for
    exact arithmetic in 16 bits.
    """
    pairs, excess = _dequantised(coefficients, tables.at(table), tables.at(other_table))
    columns = _transform(pairs, 1 << (FRACTION - KEPT - 1), FRACTION - KEPT)
    beyond = reduce(or_, (row + (LARGEST + 1) for row in columns)) & ~(2 * LARGEST + 1)
    middle = 128 << (FRACTION + KEPT + 3)
    rounding = 1 << (FRACTION + KEPT + 2)
    left, right = _bytes(_transform(_transposed(columns), middle + rounding, FRACTION + KEPT + 3))
    _write_block(left, right, 0, planes.at(to), stride)
    _write_block(left, right, 8, planes.at(other), stride)
    return (beyond | excess.as_lanes(INT)).where("!=", 0)


def _dequantised(coefficients: Memory, table: Memory, other: Memory) -> tuple[list[Lanes], Lanes]:
    """The four pairs of rows, int16 [block][column][row of the pair] each, and where they are out of bounds."""
    pairs, excesses = [], []
    for pair in range(4):
        at = coefficients.at(64 * pair)
        levels = at.load(SHORT, 2 * LANES)
        at.store(levels.constants([0] * 2 * LANES))
        quantisers, bounds = (
            table.at(which + 32 * pair).load(SHORT, 16).join(other.at(which + 32 * pair).load(SHORT, 16))
            for which in (0, 128)
        )
        pairs.append(levels * quantisers)
        excesses.append(levels.magnitude().beyond(bounds))
    return pairs, reduce(or_, excesses)


def _transform(pairs: Sequence[Lanes], bias: int, shift: int) -> list[Lanes]:
    """Eight outputs, int32 [lane] each, of the pairs (0, 4), (2, 6), (1, 5), (3, 7), int16 [lane][2] each."""
    difference = _products(pairs[0], (ONE, -ONE)) + bias
    total = difference + (pairs[0].as_lanes(INT) >> 16 << FRACTION + 1)
    more = [_products(pairs[1], weights) for weights in PAIR_2_6]
    even = [total + more[0], difference + more[1], difference - more[1], total - more[0]]
    odd = [_products(pairs[2], a) + _products(pairs[3], b) for a, b in zip(PAIR_1_5, PAIR_3_7, strict=True)]
    first = [e + o for e, o in zip(even, odd, strict=True)]
    second = [e - o for e, o in zip(even, odd, strict=True)]
    return [output >> shift for output in (*first, *reversed(second))]


def _products(pair: Lanes, weights: tuple[int, int]) -> Lanes:
    products = pair.signed(INT)
    products *= products.constants(weights * LANES)
    return products.pick(range(0, 2 * LANES, 2)) + products.pick(range(1, 2 * LANES, 2))


def _side_by_side(low: Lanes, high: Lanes) -> Lanes:
    """Two int32 lanes, whose numbers fit 16 bits, as one."""
    return low & 0xFFFF | high << 16


def _transposed(rows: Sequence[Lanes]) -> list[Lanes]:
    """From eight rows, int32 [block][column] each, to four pairs of columns, int16 [block][row][column of the pair]."""
    halves = []
    for upper, lower in zip(rows[:4], rows[4:], strict=True):
        left = _pick(upper, lower, (0, 1, 2, 3, 8, 9, 10, 11))
        right = _pick(upper, lower, (4, 5, 6, 7, 12, 13, 14, 15))
        halves.append(_side_by_side(left, right))  # the columns' pairs of the upper row, then of the lower one
    low, high = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
    quarters = [(_pick(halves[0], halves[1], order), _pick(halves[2], halves[3], order)) for order in (low, high)]
    first, second = (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)
    return [_pick(*quarter, order).as_lanes(SHORT) for order in (first, second) for quarter in quarters]


def _pick(lanes: Lanes, other: Lanes, order: Sequence[int]) -> Lanes:
    """In each block the eight lanes of that order, 0 to 7 from the first operand and 8 to 15 from the other."""
    places = [8 * block + i % 8 + i // 8 * LANES for block in range(BLOCKS) for i in order]
    return lanes.pick(places, other)


def _bytes(columns: Sequence[Lanes]) -> tuple[Lanes, Lanes]:
    """Eight columns, int32 [block][row] each, as the left and the right half of rows of bytes, [block][row] x 4."""
    pairs = [_side_by_side(columns[x], columns[x + 2]).as_lanes(SHORT).clamp(0, 255) for x in (0, 1, 4, 5)]
    left, right = ((pairs[i] | pairs[i + 1] << 8).as_lanes(INT) for i in (0, 2))
    return left, right


def _write_block(left: Lanes, right: Lanes, first: int, planes: Memory, stride: Any) -> None:
    rows = left.pick([first + i // 2 + i % 2 * LANES for i in range(16)], right).as_lanes(LONG)
    for row in range(8):
        planes.put(rows.lane(row))
        planes = planes.at(stride)
