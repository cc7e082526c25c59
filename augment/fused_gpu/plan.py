"""The plan of a batch: its rows, cut into passes, as one block of 32-bit words that goes to the device in one copy.

A pass reads a view once and writes it once. It is one *head*, which needs more than the pixel itself (the crop, a
filter, CLAHE, contrast with its mean), and the pointwise slots that follow it up to the next head. Between passes views
are bytes on the device; the last pass of a row normalises and writes the batch.

The words hold the *records*, one for each pass, sorted by (level, head), so that a kernel launch is a range of records;
then the *slots* that the passes run. A record's LUMA is uploaded as 0 and filled on the device by the pass before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.augment.jit import njit
from penstock.augment.pixels import Pixels
from penstock.augment.rows import Interpolation, Opcode, Rows

# Heads, in the order in which a level launches them.
TRIANGLE, KEYS, FILTER, EQUALIZE, PLAIN = range(5)
HEADS = 5

RECORD = 16  # words of a record
FIRST, COUNT = 0, 1  # its slots: the word at which the first begins, how many there are
STORED = 2  # which of the stored views it reads or writes
LAST = 3  # 1: writes the batch; 0: a stored view
TARGET = 4  # and 5: where in the batch, an int64 in elements
SUM = 6  # the word to which the view's luma is added (the next record's LUMA), or 0
LUMA = 7  # the sum of this view's luma, which contrast needs: 31 bits, enough for views of 2900 pixels
# What a head needs. Of a crop: an int64, the byte at which the box begins; bytes of a source row; the box; antialias.
SOURCE, PITCH, HEIGHT, WIDTH, ANTIALIAS = 8, 10, 11, 12, 13
# Of a filter: see `_filter`. Of CLAHE: where its tables begin, in tables; tiles along a side; the clip limit.
DECAY, RADIUS, CENTRE, BLURRED = 8, 9, 10, 11
TABLE, TILES, CLIP = 8, 9, 10

SLOT = 8  # words of a slot: opcode, four parameters, unused, the seed's two halves
SEED = 6

LEVELS = 256
_NONE, _CROP, _CONTRAST, _CLAHE = int(Opcode.NONE), int(Opcode.CROP), int(Opcode.CONTRAST), int(Opcode.CLAHE)
_GAUSSIAN, _BOX, _SHARPEN = int(Opcode.GAUSSIAN_BLUR), int(Opcode.BOX_BLUR), int(Opcode.SHARPEN)
_BICUBIC = int(Interpolation.BICUBIC)


@dataclass(frozen=True)
class Launch:
    """One kernel launch: which level and head, and its records."""

    level: int
    head: int
    first: int
    count: int


@dataclass(frozen=True)
class Plan:
    """What a batch takes.

    Attributes:
        words: int32 [W], records and slots; floats and seeds by their bits.
        launches: in order.
        stored: views that live on the device between passes.
        tables: tables of 256 bytes that CLAHE needs; tiles: the most that one view has.
    """

    words: NDArray[np.int32]
    launches: tuple[Launch, ...]
    stored: int
    tables: int
    tiles: int


@njit
def _head(opcode, cubic, whole):  # type: ignore[no-untyped-def]
    """The head that an opcode is, or -1: pointwise. A view that is one tile (`whole`) has its neighbours at hand."""
    if opcode == _CROP:
        return KEYS if cubic else TRIANGLE
    if opcode == _CLAHE:
        return EQUALIZE
    if not whole and opcode == _CONTRAST:
        return PLAIN
    if not whole and opcode in (_GAUSSIAN, _BOX, _SHARPEN):
        return FILTER
    return -1


@njit
def _length(opcode):  # type: ignore[no-untyped-def]
    """Slots in use."""
    k = 0
    while k < len(opcode) and opcode[k] != _NONE:
        k += 1
    return k


@njit
def _count(opcode, parameters, whole, records):  # type: ignore[no-untyped-def]
    """Fill records [levels, heads] with how many there are; return the slots, CLAHE's tables, a view's most tiles."""
    slots, tables, tiles = 0, 0, 0
    for row in range(len(opcode)):
        level = -1
        for k in range(_length(opcode[row])):
            head = _head(opcode[row, k], parameters[row, k, 4] == _BICUBIC, whole)
            slots += 1
            if head >= 0:
                level += 1
                records[level, head] += 1
            if head == EQUALIZE:
                across = int(parameters[row, k, 1])
                tables += across * across
                tiles = max(tiles, across * across)
    return slots, tables, tiles


@njit
def _split(word, words, at):  # type: ignore[no-untyped-def]
    """Store an int64 as two words, the low one first."""
    words[at], words[at + 1] = np.int32(word), np.int32(word >> 32)


@njit
def _filter(opcode, values, at, floats, words):  # type: ignore[no-untyped-def]
    """A filter as centre · pixel + blurred · mean, weighted by 2**(-decay · distance²) up to `radius` along each axis.

    Sharpening is one too: its kernel is that of a pixel, minus nine times the 3×3 mean.
    """
    floats[at], words[at + 1] = 0.0, int(values[0])
    floats[at + 2], floats[at + 3] = 0.0, 1.0
    if opcode == _GAUSSIAN:
        floats[at], words[at + 1] = 0.5 / np.log(2.0) / (values[0] * values[0]), int(values[1])
    elif opcode == _SHARPEN:
        alpha, lightness = values[0], values[1]
        words[at + 1] = 1
        floats[at + 2], floats[at + 3] = 1.0 + alpha * (8.0 + lightness), -9.0 * alpha


@njit
def _crop(values, offset, width, at, words):  # type: ignore[no-untyped-def]
    top, left = int(values[0]), int(values[1])
    _split(offset + (top * width + left) * 3, words, at + SOURCE)
    words[at + PITCH], words[at + HEIGHT], words[at + WIDTH] = width * 3, int(values[2]), int(values[3])
    words[at + ANTIALIAS] = int(values[5])


@njit
def _slot(opcode, values, seed, at, floats, words):  # type: ignore[no-untyped-def]
    words[at] = opcode
    if opcode in (_GAUSSIAN, _BOX, _SHARPEN):
        words[at] = _GAUSSIAN
        _filter(opcode, values, at + 1, floats, words)
    else:
        floats[at + 1 : at + 5] = values[:4]
    _split(np.int64(seed), words, at + SEED)


@njit
def _fill(opcode, parameters, seed, order, target, offset, width, whole, cursor, slots, words, floats):  # type: ignore[no-untyped-def]
    """Write every record and slot.

    Args:
        opcode, parameters, seed: [R, K], [R, K, 8], [R, K].
        order: int64 [R], the rows as they are launched: views of one image together, so that its bytes are read once.
        target: int64 [R], where a row's view begins in the batch; offset, width: int64 [R], of its source image.
        cursor: int64 [levels, heads], each (level, head)'s first record; advanced.
        slots: the word at which the slots begin.
    """
    stored, tables = 0, 0
    for row in order:
        level, at = -1, 0
        for k in range(_length(opcode[row])):
            values = parameters[row, k]
            head = _head(opcode[row, k], values[4] == _BICUBIC, whole)
            if head >= 0:
                level += 1
                before, at = at, cursor[level, head] * RECORD
                cursor[level, head] += 1
                words[at + FIRST], words[at + STORED], words[at + LAST] = slots, stored, 1
                _split(target[row], words, at + TARGET)
                if level > 0:
                    words[before + LAST] = 0
                    words[before + SUM] = at + LUMA if head == PLAIN else 0
            if opcode[row, k] == _CROP:
                _crop(values, offset[row], width[row], at, words)
            elif head == FILTER:
                _filter(opcode[row, k], values, at + DECAY, floats, words)
            elif head == EQUALIZE:
                across = int(values[1])
                words[at + TABLE], words[at + TILES], floats[at + CLIP] = tables, across, values[0]
                tables += across * across
            else:
                _slot(opcode[row, k], values, seed[row, k], slots, floats, words)
                words[at + COUNT] += 1
                slots += SLOT
        stored += level > 0


def make_plan(pixels: Pixels, rows: Rows, target: NDArray[np.int64], *, whole: bool) -> Plan:
    """Cut a batch's rows into passes.

    Args:
        rows: [V, N, K]; those that begin with NONE get no pass.
        target: int64 [V, N], the element of the batch at which a view begins.
        whole: whether one program holds a whole view.
    """
    views, samples, slots = rows.opcode.shape
    opcode, seed = rows.opcode.reshape(-1, slots), rows.seed.reshape(-1, slots)
    parameters = rows.parameters.reshape(len(opcode), slots, -1)
    records = np.zeros((slots + 1, HEADS), np.int64)
    used, tables, tiles = _count(opcode, parameters, whole, records)
    ends = np.cumsum(records).reshape(records.shape)
    first = ends - records
    total = int(ends[-1, -1])
    words = np.zeros(total * RECORD + used * SLOT, np.int32)
    order = np.arange(len(opcode)).reshape(views, samples).T.reshape(-1)
    offset, width = np.tile(pixels.offset, views), np.tile(pixels.width, views)
    floats, where = words.view(np.float32), target.reshape(-1)
    cursor = first.copy()
    _fill(opcode, parameters, seed, order, where, offset, width, whole, cursor, total * RECORD, words, floats)
    launches = tuple(
        Launch(int(level), int(head), int(first[level, head]), int(records[level, head]))
        for level, head in np.argwhere(records)
    )
    return Plan(words, launches, int(records[1].sum()), tables, tiles)
