"""The markers of a JPEG up to its scan, and the bytes of the scan without what the markers need.

Only streams that every decoder reads alike, and libjpeg without a warning, pass: baseline or extended Huffman, 8 bits,
grey or YCbCr, one scan. All else is left to libjpeg-turbo, which also finds the words for what is wrong.

Markers: ITU-T T.81, annex B. How RGB is told from YCbCr: libjpeg's `default_decompress_parms`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy import uint64 as u64
from numpy.typing import NDArray

from penstock.augment.jit import njit
from penstock.loaders.jpeg.huffman import SPECIFICATION
from penstock.loaders.jpeg.lanes import BIT, BYTE, Memory, emitted

START, END, START_OF_SCAN = 0xD8, 0xD9, 0xDA
BASELINE, EXTENDED, HUFFMAN_TABLES = 0xC0, 0xC1, 0xC4
QUANTISERS, RESTARTS, RESTART, COMMENT = 0xDB, 0xDD, 0xD0, 0xFE
JFIF, PROFILE, ADOBE, LAST_APPLICATION = 0xE0, 0xE2, 0xEE, 0xEF
LONGEST_SIDE = 65500  # libjpeg's
STEP = 64  # bytes searched at once


class Frame(NamedTuple):
    """What the markers say.

    Attributes:
        usable: whether the scan can be decoded here; if not, the rest means nothing.
        height, width: pixels, as stored.
        components: 1 (grey) or 3.
        across, down: blocks of the first component in an MCU; the others have one. 1 x 1 if grey.
        rows, columns: of MCUs.
        interval: MCUs between restarts, 0 without.
        scan: where the compressed data begin.
    """

    usable: bool
    height: int
    width: int
    components: int
    across: int
    down: int
    rows: int
    columns: int
    interval: int
    scan: int


NO_FRAME = Frame(False, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class Tables(NamedTuple):
    """What the markers bring along.

    Attributes:
        codes: uint8 [8, SPECIFICATION] Huffman tables as they are in the file, 0 to 3 DC, 4 to 7 AC.
        quantisers: uint8 [4, 64] in the file's order.
        seen: uint8 [12] which of the eight and the four there are.
        identifiers, quantiser, dc, ac: uint8 [3] for each component: its name, which tables are its.
    """

    codes: NDArray[np.uint8]
    quantisers: NDArray[np.uint8]
    seen: NDArray[np.uint8]
    identifiers: NDArray[np.uint8]
    quantiser: NDArray[np.uint8]
    dc: NDArray[np.uint8]
    ac: NDArray[np.uint8]


def new_tables() -> Tables:
    return Tables(
        codes=np.zeros((8, SPECIFICATION), np.uint8),
        quantisers=np.zeros((4, 64), np.uint8),
        seen=np.zeros(12, np.uint8),
        identifiers=np.zeros(3, np.uint8),
        quantiser=np.zeros(3, np.uint8),
        dc=np.zeros(3, np.uint8),
        ac=np.zeros(3, np.uint8),
    )


@njit(inline=True)
def _one(data, at):  # type: ignore[no-untyped-def]
    return np.int64(data[at])


@njit(inline=True)
def _two(data, at):  # type: ignore[no-untyped-def]
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@njit
def read_markers(data, tables):  # type: ignore[no-untyped-def]
    """Fill `tables` and return the Frame."""
    unusable = NO_FRAME
    frame, interval, jfif, rgb, part, parts = unusable, 0, False, False, 0, 0
    tables.seen[:] = 0
    if len(data) < 4 or data[0] != 0xFF or data[1] != START:
        return unusable
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = _two(data, at + 2)
        if length < 2 or at + 2 + length > len(data):
            return unusable
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == START_OF_SCAN:
            ycbcr = jfif or not rgb or frame.components == 1
            if frame.usable and ycbcr and part == parts and _read_scan(body, frame, tables):
                return _complete(frame, interval, at)
            return unusable
        if marker in (BASELINE, EXTENDED):
            if frame.usable:
                return unusable
            frame = _read_frame(body, tables)
            valid = frame.usable
        elif marker == HUFFMAN_TABLES:
            valid = _read_codes(body, tables)
        elif marker == QUANTISERS:
            valid = _read_quantisers(body, tables)
        elif marker == RESTARTS:
            valid = len(body) == 2
            interval = _two(body, 0) if valid else 0
        elif marker == JFIF and _starts(body, b"JFIF\0") and len(body) >= 14:
            jfif, valid = True, body[5] == 1  # another major version makes libjpeg warn
        elif marker == PROFILE and _starts(body, b"ICC_PROFILE\0"):  # of a torn one libjpeg-turbo warns
            valid = len(body) > 14 and body[12] == part + 1 and (part == 0 or body[13] == parts)
            part, parts = part + 1, _one(body, 13) if valid else 0
        elif marker == ADOBE and _starts(body, b"Adobe") and len(body) >= 12:
            rgb, valid = rgb or body[11] != 1, True
        else:
            valid = JFIF <= marker <= LAST_APPLICATION or marker == COMMENT
        if not valid:
            return unusable
    return unusable


@njit
def _complete(frame, interval, scan):  # type: ignore[no-untyped-def]
    height, width, across, down = frame.height, frame.width, frame.across, frame.down
    return Frame(True, height, width, frame.components, across, down, frame.rows, frame.columns, interval, scan)


@njit
def _starts(body, word):  # type: ignore[no-untyped-def]
    if len(body) < len(word):
        return False
    same = True
    for i in range(len(word)):
        same &= body[i] == word[i]
    return same


@njit
def _read_frame(body, tables):  # type: ignore[no-untyped-def]
    unusable = NO_FRAME
    if len(body) < 6 or body[0] != 8 or (body[5] != 1 and body[5] != 3) or len(body) != 6 + 3 * body[5]:
        return unusable
    height, width, components = _two(body, 1), _two(body, 3), _one(body, 5)
    across, down = _one(body, 7) >> 4, _one(body, 7) & 15
    for c in range(components):
        tables.identifiers[c], tables.quantiser[c] = body[6 + 3 * c], body[8 + 3 * c]
        if tables.quantiser[c] > 3 or (c > 0 and body[7 + 3 * c] != 0x11):
            return unusable
    if not (0 < height <= LONGEST_SIDE and 0 < width <= LONGEST_SIDE):
        return unusable
    if not (1 <= across <= 2 and 1 <= down <= 2):
        return unusable
    if components == 1:  # with a single component an MCU is one block, whatever its sampling
        across, down = 1, 1
    if across == 2 and width <= 4:  # so few columns of chroma libjpeg repeats instead
        return unusable
    rows, columns = -(-height // (8 * down)), -(-width // (8 * across))
    return Frame(True, height, width, components, across, down, rows, columns, 0, 0)


@njit
def _read_codes(body, tables):  # type: ignore[no-untyped-def]
    at = np.int64(0)
    while at < len(body):
        if at + 17 > len(body) or body[at] & 0xEC:  # 0x00 to 0x03 are DC, 0x10 to 0x13 AC
            return False
        slot = np.int64(body[at] >> 4) * 4 + np.int64(body[at] & 3)
        symbols = np.int64(0)
        for length in range(16):
            symbols += np.int64(body[at + 1 + length])
        end = at + 17 + symbols
        if symbols > 256 or end > len(body):
            return False
        for i in range(SPECIFICATION):
            tables.codes[slot, i] = body[at + 1 + i] if i < 16 + symbols else 0
        tables.seen[slot] = 1
        at = end
    return True


@njit
def _read_quantisers(body, tables):  # type: ignore[no-untyped-def]
    if len(body) % 65:
        return False
    for at in range(0, len(body), 65):
        if body[at] > 3:  # of 16 bits
            return False
        for i in range(64):
            if body[at + 1 + i] == 0:
                return False
            tables.quantisers[body[at], i] = body[at + 1 + i]
        tables.seen[8 + body[at]] = 1
    return True


@njit
def _read_scan(body, frame, tables):  # type: ignore[no-untyped-def]
    """Whether it is the only scan, of all components in the frame's order, and has all its tables."""
    count = frame.components
    if len(body) != 4 + 2 * count or body[0] != count:
        return False
    if body[1 + 2 * count] != 0 or body[2 + 2 * count] != 63 or body[3 + 2 * count] != 0:
        return False
    for c in range(count):
        tables.dc[c], tables.ac[c] = body[2 + 2 * c] >> 4, body[2 + 2 * c] & 15
        if body[1 + 2 * c] != tables.identifiers[c] or tables.dc[c] > 3 or tables.ac[c] > 3:
            return False
        if not (tables.seen[tables.dc[c]] and tables.seen[4 + tables.ac[c]] and tables.seen[8 + tables.quantiser[c]]):
            return False
    names = tables.identifiers
    if count == 1:
        return True
    distinct = names[0] != names[1] and names[0] != names[2] and names[1] != names[2]
    return distinct and not (names[0] == ord("R") and names[1] == ord("G") and names[2] == ord("B"))


@emitted(types.uint64)
def _copy_step(data: Memory, at: Any, out: Memory, to: Any) -> Any:
    """Copy STEP bytes and return a bit for each that is 0xFF."""
    lanes = data.at(at).load(BYTE, STEP)
    out.at(to).store(lanes)
    return lanes.where("==", -1)


@emitted(types.uint64)
def _trailing_zeros(data: Memory, bits: Any) -> Any:
    """How many zeros come before the lowest one bit."""
    return data.builder.cttz(bits, BIT(0))


@njit
def unstuff(data, size, at, out):  # type: ignore[no-untyped-def]
    """Copy compressed data, `size` bytes at a pointer, to `out` up to the next marker, without the zeros after 0xFF.

    Returns how many bytes were copied and where the marker's 0xFF lies; the end of the data if there is none.
    """
    to = np.int64(0)
    while at + STEP < size:
        found = _copy_step(data, u64(at), out, u64(to))
        if found == u64(0):
            at, to = at + STEP, to + STEP
            continue
        until = np.int64(_trailing_zeros(data, found))
        at, to = at + until, to + until
        if data[at + 1] != 0:
            return to, at
        at, to = at + 2, to + 1
    while at < size:
        out[to] = data[at]
        if data[at] == 0xFF:
            if at + 1 == size or data[at + 1] != 0:
                return to, at
            at += 1
        at, to = at + 1, to + 1
    return to, at
