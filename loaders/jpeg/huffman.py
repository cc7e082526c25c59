"""Entropy decoding: Huffman codes and the bits that follow them, up to two coefficients for each look-up.

A code is followed by the bits of a value. Most codes with their bits, and often two in a row, fit into WIDTH bits, so
a table over the next WIDTH bits says at once which coefficients they hold and how far to move. What does not fit is
decoded by the lengths of the codes. The buffer is refilled before each look-up, without a branch (Fabian Giesen,
"Reading bits in far too many ways", part 2, 2018), from a word that was loaded one look-up earlier.

Codes: ITU-T T.81, annexes C and F.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy import uint64 as u64
from numpy.typing import NDArray

from penstock.augment.jit import njit
from penstock.loaders.jpeg.lanes import Memory, emitted, pointer, shifted

WIDTH = 11  # bits looked up at once
DC_WIDTH = 9
LONGEST = 16  # bits of a code
SPECIFICATION = 16 + 256  # bytes of a table in the file: how many codes of each length, then their symbols
# How far an entry moves on in the block: 1 to 16 for a coefficient, or one of these.
END_OF_BLOCK = 64
UNKNOWN = 127  # not in the table
LARGEST_SIZE = 6  # bits of the values in the table
BAD = 17  # the length of what is no code

# Where a block's coefficients lie in memory, by their order in the file: [pair of rows][block][column][row of the
# pair], as the inverse transform takes two blocks at once (idct.py). What is past the block's end goes behind it.
BEYOND = 128
ROW_PLACES = {0: (0, 0), 4: (0, 1), 2: (1, 0), 6: (1, 1), 1: (2, 0), 5: (2, 1), 3: (3, 0), 7: (3, 1)}


def _zigzag() -> list[tuple[int, int]]:
    """Row and column of each coefficient, in the file's order."""
    cells = [(row, column) for row in range(8) for column in range(8)]
    return sorted(cells, key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))


def _places() -> NDArray[np.uint8]:
    pairs = [(*ROW_PLACES[row], column) for row, column in _zigzag()]
    inside = [pair * 32 + column * 2 + second for pair, second, column in pairs]
    return np.array(inside + [BEYOND] * (63 + UNKNOWN + 1 - 64), np.uint8)


PLACES = _places()


class Codes(NamedTuple):
    """The Huffman tables of a scan, [slot] first: 0 to 3 DC, 4 to 7 AC.

    Attributes:
        known: uint8 [8, SPECIFICATION] the table in the file that each was built from.
        usable: bool [8] whether it was valid.
        limits: int64 [8, 18] by length, what the next 16 bits stay below if their code is at most that long.
        offsets: int64 [8, 18] by length, what to add to a code for the place of its symbol.
        single: uint32 [4, 2 ** WIDTH] one coefficient: bits, how far to move on, value; a byte, a byte, two bytes.
            If it is UNKNOWN: that, the length of the code if it is within WIDTH, its symbol.
        pairs: uint32 [4, 2 ** WIDTH] one or two: bits in all (6 bits), how far to the first (5), how far to the last
            (7), the value of the first (7) and of the last (7).
        dc: uint16 [4, 2 ** DC_WIDTH] bits in all, those of the value; 0 if the code is longer.
    """

    known: NDArray[np.uint8]
    usable: NDArray[np.uint8]
    limits: NDArray[np.int64]
    offsets: NDArray[np.int64]
    single: NDArray[np.uint32]
    pairs: NDArray[np.uint32]
    dc: NDArray[np.uint16]


def new_codes() -> Codes:
    return Codes(
        known=np.zeros((8, SPECIFICATION), np.uint8),
        usable=np.zeros(8, np.uint8),
        limits=np.zeros((8, 18), np.int64),
        offsets=np.zeros((8, 18), np.int64),
        single=np.zeros((4, 1 << WIDTH), np.uint32),
        pairs=np.zeros((4, 1 << WIDTH), np.uint32),
        dc=np.zeros((4, 1 << DC_WIDTH), np.uint16),
    )


@njit
def build(codes, slot):  # type: ignore[no-untyped-def]
    """Build the tables of `known[slot]`. False if it is no Huffman code, or one with symbols that mean nothing here."""
    known = codes.known[slot]
    if not _lengths(known, codes.limits[slot], codes.offsets[slot]):
        return False
    if slot < 4:
        return _build_dc(known, codes.dc[slot])
    return _build_single(known, codes.single[slot - 4]) and _build_pairs(codes.single[slot - 4], codes.pairs[slot - 4])


@njit
def _lengths(known, limits, offsets):  # type: ignore[no-untyped-def]
    """Canonical codes: those of one length follow each other, all ones is no code."""
    code = place = np.int64(0)
    for length in range(1, LONGEST + 1):
        count = np.int64(known[length - 1])
        offsets[length] = place - code
        place, code = place + count, code + count
        if code >= 1 << length:
            return False
        limits[length] = code << (LONGEST - length)
        code <<= 1
    limits[BAD] = 1 << LONGEST  # where a search ends
    return place <= 256


@njit(inline=True)
def _fill(table, start, count, entry):  # type: ignore[no-untyped-def]
    for i in range(count):
        table[start + i] = entry
    return start + count


@njit
def _build_dc(known, table):  # type: ignore[no-untyped-def]
    at, place = 0, 16
    for length in range(1, LONGEST + 1):
        for _ in range(known[length - 1]):
            size = np.int64(known[place])
            place += 1
            if size > 11:
                return False
            if length <= DC_WIDTH:
                at = _fill(table, at, 1 << (DC_WIDTH - length), length + size | size << 8)
    _fill(table, at, (1 << DC_WIDTH) - at, 0)
    return True


@njit
def _build_single(known, table):  # type: ignore[no-untyped-def]
    at, place = 0, 16
    for length in range(1, LONGEST + 1):
        for _ in range(known[length - 1]):
            symbol = np.int64(known[place])
            run, size = symbol >> 4, symbol & 15
            place += 1
            if size > 10 or (size == 0 and 0 < run < 15):
                return False
            if length + size <= WIDTH and size <= LARGEST_SIZE:
                at = _fill_values(table, at, length, size, END_OF_BLOCK if symbol == 0 else run + 1)
            elif length <= WIDTH:
                at = _fill(table, at, 1 << (WIDTH - length), UNKNOWN | length << 8 | symbol << 16)
    _fill(table, at, (1 << WIDTH) - at, UNKNOWN)
    return True


@njit(inline=True)
def _fill_values(table, at, length, size, step):  # type: ignore[no-untyped-def]
    """All values of `size` bits after a code of that length."""
    for bits in range(1 << size):
        value = bits - (1 << size) + 1 if bits < (1 << size) >> 1 else bits
        entry = (length + size) | step << 8 | (value & 0xFFFF) << 16
        at = _fill(table, at, 1 << (WIDTH - length - size), entry)
    return at


@njit
def _build_pairs(single, table):  # type: ignore[no-untyped-def]
    for i in range(1 << WIDTH):
        first = np.int64(single[i])
        bits, step, value = first & 255, first >> 8 & 255, first >> 16
        if bits == UNKNOWN:
            table[i] = 1 << 6 | UNKNOWN << 11
            continue
        second = np.int64(single[i << bits & (1 << WIDTH) - 1])
        both = step != END_OF_BLOCK and bits + (second & 255) <= WIDTH
        last = step + (second >> 8 & 255) if both else step
        table[i] = np.uint32(
            (bits + (second & 255) if both else bits)
            | (1 if step == END_OF_BLOCK else step) << 6
            | last << 11
            | (value & 127) << 18
            | ((second >> 16 if both else value) & 127) << 25
        )
    return True


class Reader(NamedTuple):
    """`Codes`, the stream and PLACES as compiled code walks through them: each is a pointer to the first element."""

    stream: Any
    known: Any
    limits: Any
    offsets: Any
    single: Any
    pairs: Any
    dc: Any
    places: Any


@njit(inline=True)
def new_reader(stream, codes, places):  # type: ignore[no-untyped-def]
    return Reader(
        pointer(stream),
        pointer(codes.known),
        pointer(codes.limits),
        pointer(codes.offsets),
        pointer(codes.single),
        pointer(codes.pairs),
        pointer(codes.dc),
        pointer(places),
    )


@emitted(types.uint64)
def _load_big_endian(stream: Memory, position: Any) -> Any:
    """The eight bytes from `position` on, the first one on top."""
    return stream.builder.bswap(stream.at(position).word())


class Bits(NamedTuple):
    """Where in the stream we are, all uint64.

    Attributes:
        buffer: the next bits on top; `valid` of them are valid, 56 or more after `_refill`.
        position: the next byte that is not in the buffer's valid part as a whole.
        ahead: the eight bytes from there on.
    """

    buffer: Any
    valid: Any
    position: Any
    ahead: Any


@njit(inline=True)
def start_bits(reader):  # type: ignore[no-untyped-def]
    return Bits(u64(0), u64(0), u64(0), _load_big_endian(reader.stream, u64(0)))


@njit(inline=True)
def used_bits(bits):  # type: ignore[no-untyped-def]
    return np.int64(u64(8) * bits.position - bits.valid)


@njit(inline=True)
def _refill(reader, bits):  # type: ignore[no-untyped-def]
    position = bits.position + ((u64(63) - bits.valid) >> u64(3))
    ahead = _load_big_endian(reader.stream, position)
    return Bits(bits.buffer | bits.ahead >> bits.valid, bits.valid | u64(56), position, ahead)


@njit(inline=True)
def _skip(bits, count):  # type: ignore[no-untyped-def]
    """Bits further on; of `count` only six bits are looked at, which is what a shift does anyway."""
    count &= u64(63)
    return Bits(bits.buffer << count, bits.valid - count, bits.position, bits.ahead)


@njit(inline=True)
def _value(bits, length, size):  # type: ignore[no-untyped-def]
    """The value in the `size` bits, 0 to 15, that follow a code of `length`, as T.81 extends its sign."""
    value = np.int64(bits.buffer << length >> u64(1) >> (u64(63) - size))
    whole = np.int64(u64(1) << size)
    return value - (whole - 1 if value < whole >> 1 else 0)


@njit(inline=True)
def _find_code(reader, buffer, slot, shortest):  # type: ignore[no-untyped-def]
    """Length and symbol of the code at the top of the buffer, `shortest` bits or more; the length is BAD if none is."""
    next_bits = np.int64(buffer >> u64(48))
    length = shortest
    while next_bits >= reader.limits[slot * 18 + length]:
        length += 1
    if length == BAD:
        return u64(BAD), u64(0)
    place = 16 + (next_bits >> (LONGEST - length)) + reader.offsets[slot * 18 + length]
    return u64(length), u64(reader.known[slot * SPECIFICATION + place])


@njit(inline=True)
def read_dc(reader, bits, slot):  # type: ignore[no-untyped-def]
    """The difference of a DC coefficient by table `slot`, and whether its code was one."""
    bits = _refill(reader, bits)
    entry = u64(reader.dc[slot << u64(DC_WIDTH) | bits.buffer >> u64(64 - DC_WIDTH)])
    size = entry >> u64(8)
    if entry == u64(0):
        length, size = _find_code(reader, bits.buffer, np.int64(slot), DC_WIDTH + 1)
        if length == u64(BAD):
            return 0, bits, False
        entry = length + size
    return _value(bits, (entry & u64(63)) - size, size), _skip(bits, entry), True


@njit(inline=True)
def _seek(reader, used):  # type: ignore[no-untyped-def]
    """Where `used` bits are behind us."""
    position, rest = u64(used >> 3), u64(used & 7)
    ahead = _load_big_endian(reader.stream, position)
    return Bits(ahead << rest, u64(56) - rest, position + u64(7), _load_big_endian(reader.stream, position + u64(7)))


@njit(inline=True)
def read_ac(reader, bits, slot, block):  # type: ignore[no-untyped-def]
    """Decode a block's AC coefficients into their places in `block`, int16. False if they are damaged."""
    table = shifted(reader.pairs, slot << u64(WIDTH))
    k = u64(0)  # the last coefficient that is known
    while True:
        bits = _refill(reader, bits)
        for _ in range(56 // WIDTH):
            entry = table[bits.buffer >> u64(64 - WIDTH)]
            bits = _skip(bits, u64(entry))
            first, last = k + u64(entry >> 6 & 31), k + u64(entry >> 11 & 127)
            block[reader.places[first]] = np.int16(np.int32(entry << 7) >> 25)
            block[reader.places[last]] = np.int16(np.int32(entry) >> 25)
            if last >= u64(63):
                break
            k = last
        if last < u64(63):
            continue
        step = last - k
        if step == u64(UNKNOWN):
            bits, k, fine = _read_long(reader, _refill(reader, bits), slot, block, k)
            if k >= u64(63) or not fine:
                return bits, fine
        elif (first >= u64(63)) & (first != last) & (step != u64(END_OF_BLOCK)):  # the last one is the next block's
            bits = _seek(reader, used_bits(bits) - np.int64(entry & 63))
            single = reader.single[slot << u64(WIDTH) | bits.buffer >> u64(64 - WIDTH)]
            return _skip(bits, u64(single)), first == u64(63)
        else:
            return bits, (step >= u64(END_OF_BLOCK)) | (last == u64(63))


@njit(inline=True)
def _read_long(reader, bits, slot, block, k):  # type: ignore[no-untyped-def]
    """One coefficient that is not in the table, though its code may be."""
    entry = u64(reader.single[slot << u64(WIDTH) | bits.buffer >> u64(64 - WIDTH)])
    length, symbol = entry >> u64(8) & u64(255), entry >> u64(16)
    if length == u64(0):
        length, symbol = _find_code(reader, bits.buffer, np.int64(slot) + 4, WIDTH + 1)
    size = symbol & u64(15)
    step = u64(END_OF_BLOCK) if symbol == u64(0) else (symbol >> u64(4)) + u64(1)
    k += step
    block[reader.places[k]] = np.int16(_value(bits, length, size))
    fine = (length != u64(BAD)) & ((k <= u64(63)) | (step == u64(END_OF_BLOCK)))
    return _skip(bits, length + size), k, fine
