"""The scan: MCU after MCU through entropy decoder and inverse transform into a few lines, and from there to RGB.

One row of MCUs at a time, so that its lines stay in the processor's nearest memory. Where chroma is coarser vertically,
a line of pixels needs the chroma line below, too: the last line of each row of MCUs is kept and written with the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy import uint64 as u64
from numpy.typing import NDArray

from penstock.augment.jit import njit
from penstock.loaders.jpeg.colour import (
    PIXELS,
    SAMPLES,
    finer_across,
    finer_both,
    finer_down,
    grey_to_rgb,
    to_rgb,
)
from penstock.loaders.jpeg.huffman import (
    PLACES,
    SPECIFICATION,
    Codes,
    build,
    new_codes,
    new_reader,
    read_ac,
    read_dc,
    start_bits,
    used_bits,
)
from penstock.loaders.jpeg.idct import LARGEST, inverse_dct
from penstock.loaders.jpeg.lanes import pointer, shifted
from penstock.loaders.jpeg.parse import END, RESTART, STEP, Tables, new_tables, read_markers, unstuff

MARGIN = 64  # bytes around a line that vectors may read
MOST_BLOCKS = 6  # in an MCU
OVERREAD = MOST_BLOCKS * 64 * 4 + 64  # bytes that an MCU of broken codes can reach beyond the stream's end
NEXT_BLOCKS = 160  # elements from two blocks to the next two: 128 coefficients, and where all beyond them go
OTHER_BLOCK = 16  # elements from the first of two to the second: they lie row by row, side by side
SPARE = 4  # which block is thrown away
TABLE_BYTES = 2 * 64 * 2  # of a component's quantisers and bounds
BITS, MARKER = 0, 1  # of Workspace.segment
# Columns of Workspace.plan: of which component a block is, by which Huffman tables, where its quantisers lie (bytes);
# where its samples go in the first MCU, and how far on in the next one.
COMPONENT, DC, AC, TABLE, TO, STEP_ON, PLAN_COLUMNS = 0, 1, 2, 3, 4, 5, 6
# Columns of Workspace.turns: whether a block is transformed, by which quantisers, to where.
WANTED, BY, ONTO, TURN_COLUMNS = 0, 1, 2, 3


class Workspace(NamedTuple):
    """What a thread works in, kept from image to image.

    Attributes:
        tables, codes: of the markers, and built from them.
        stream: uint8, the compressed data without stuffing.
        blocks: int16 [3 * NEXT_BLOCKS] the two blocks that are decoded, the two before, and one to throw away.
        turns: int64 [4, TURN_COLUMNS] what to do with those four.
        quantisers: int16 [3, 2, 64] for each component: quantisers and bounds in the block's order.
        plan: int64 [MOST_BLOCKS, PLAN_COLUMNS] the blocks of an MCU.
        previous: int64 [3] the last DC coefficients.
        segment: int64 [2] of what lies between two restarts, BITS and the place in the data of its MARKER, -1 without.
        planes: uint8, for each component one line kept, and those of a row of MCUs; then a block nobody wants.
        lines: uint8, a line of Cb and one of Cr at full width.
        pixels: uint8 [3 * PIXELS] where a line narrower than that is converted.
        places: uint8, huffman.PLACES.
    """

    tables: Tables
    codes: Codes
    stream: NDArray[np.uint8]
    blocks: NDArray[np.int16]
    turns: NDArray[np.int64]
    quantisers: NDArray[np.int16]
    plan: NDArray[np.int64]
    previous: NDArray[np.int64]
    segment: NDArray[np.int64]
    planes: NDArray[np.uint8]
    lines: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    places: NDArray[np.uint8]


def new_workspace(compressed: int, width: int) -> Workspace:
    """Memory for images of up to so many bytes and columns."""
    return Workspace(
        tables=new_tables(),
        codes=new_codes(),
        stream=np.zeros(compressed + STEP + OVERREAD, np.uint8),
        blocks=np.zeros(3 * NEXT_BLOCKS, np.int16),
        turns=np.zeros((4, TURN_COLUMNS), np.int64),
        quantisers=np.ones((3, 2, 64), np.int16),
        plan=np.zeros((MOST_BLOCKS, PLAN_COLUMNS), np.int64),
        previous=np.zeros(3, np.int64),
        segment=np.zeros(2, np.int64),
        planes=np.zeros((3 * 17 + 8) * _stride(-(-width // 8) + 1), np.uint8),
        lines=np.zeros(2 * (2 * SAMPLES + width + 2 * MARGIN), np.uint8),
        pixels=np.zeros(3 * PIXELS, np.uint8),
        places=PLACES,
    )


@njit
def _stride(blocks):  # type: ignore[no-untyped-def]
    """Bytes of a line of so many blocks; where MCUs are two wide, perhaps one more than the width needs."""
    return 2 * MARGIN + 8 * blocks


class Memory(NamedTuple):
    """The part of a Workspace that the scan works in, as pointers."""

    stream: Any
    blocks: Any
    turns: Any
    quantisers: Any
    plan: Any
    previous: Any
    segment: Any
    planes: Any
    lines: Any
    pixels: Any


@njit(inline=True)
def _pointers(work):  # type: ignore[no-untyped-def]
    return Memory(
        pointer(work.stream),
        pointer(work.blocks),
        pointer(work.turns),
        pointer(work.quantisers),
        pointer(work.plan),
        pointer(work.previous),
        pointer(work.segment),
        pointer(work.planes),
        pointer(work.lines),
        pointer(work.pixels),
    )


@njit
def decode(data, out, top, left, bottom, right, work):  # type: ignore[no-untyped-def]
    """Decode into out[top:bottom, left:right]. False if the data are of no kind that is done here, or damaged."""
    frame = read_markers(data, work.tables)
    if not frame.usable or frame.height != out.shape[0] or frame.width != out.shape[1]:
        return False
    if not _prepare_codes(frame, work.tables, work.codes):
        return False
    _prepare_quantisers(frame, work.tables, work.places, work.quantisers)
    _prepare_plan(frame, work.tables, work.plan)
    return _decode_scan(data, out.reshape(-1), (top, left, bottom, right), frame, work)


@njit
def _prepare_codes(frame, tables, codes):  # type: ignore[no-untyped-def]
    """Build the scan's Huffman tables, but those which the last image had, too."""
    for c in range(frame.components):
        for slot in (np.int64(tables.dc[c]), 4 + np.int64(tables.ac[c])):
            known, same = codes.known[slot], True
            for i in range(SPECIFICATION):
                same &= known[i] == tables.codes[slot, i]
                known[i] = tables.codes[slot, i]
            if not same:
                codes.usable[slot] = build(codes, slot)
            if not codes.usable[slot]:
                return False
    return True


@njit
def _prepare_quantisers(frame, tables, places, quantisers):  # type: ignore[no-untyped-def]
    """By place in the block: [pair of rows][column][row of the pair], one of the two blocks that lie together."""
    for c in range(frame.components):
        for k in range(64):
            quantiser = np.int64(tables.quantisers[tables.quantiser[c], k])
            place = (np.int64(places[k]) >> 5) * 16 + places[k] % 32
            quantisers[c, 0, place] = quantiser
            quantisers[c, 1, place] = LARGEST // quantiser


@njit
def _plane(frame, component, line):  # type: ignore[no-untyped-def]
    """Byte offset of a line's first sample; line 0 is the one kept from above."""
    return (component * 17 + line) * _stride(frame.columns * frame.across) + MARGIN


@njit
def _prepare_plan(frame, tables, plan):  # type: ignore[no-untyped-def]
    """The blocks of an MCU, in the stream's order."""
    b = 0
    for c in range(frame.components):
        across, down = (frame.across, frame.down) if c == 0 else (1, 1)
        for y in range(down):
            for x in range(across):
                plan[b, COMPONENT], plan[b, DC], plan[b, AC] = c, tables.dc[c], tables.ac[c]
                plan[b, TABLE] = c * TABLE_BYTES
                plan[b, TO] = _plane(frame, c, 1 + 8 * y) + 8 * x
                plan[b, STEP_ON] = 8 * across
                b += 1


@njit
def _decode_scan(data, out, box, frame, work):  # type: ignore[no-untyped-def]
    size, data, out = len(data), pointer(data), pointer(out)
    memory, reader = _pointers(work), new_reader(work.stream, work.codes, work.places)
    top, left, bottom, right = box
    high, wide = 8 * frame.down, 8 * frame.across
    _clear(memory)
    _next_segment(data, size, frame.scan, memory)
    bits = start_bits(reader)
    written = top
    for row in range(frame.rows):
        wanted = top - 2 < (row + 1) * high and row * high < bottom + 2
        first, last = ((left - 2) // wide, (right + 1) // wide) if wanted else (0, -1)
        bits, fine = _decode_row(data, size, bits, row, first, last, reader, memory, frame)
        if not fine:
            return False
        if wanted:
            until = min(bottom, frame.height if row == frame.rows - 1 else (row + 1) * high - (frame.down - 1))
            _write_rows(out, written, until, left, right, row, frame, memory)
            written = max(written, until)
    return _at_end(bits, memory) and data[memory.segment[MARKER]] == END


@njit(inline=True)
def _clear(memory):  # type: ignore[no-untyped-def]
    """What an image that was given up half-way has left behind."""
    for i in range(3 * NEXT_BLOCKS):
        memory.blocks[i] = 0
    for c in range(3):
        memory.previous[c] = 0


@njit
def _next_segment(data, size, at, memory):  # type: ignore[no-untyped-def]
    """Unstuff up to the next marker, and pad."""
    length, at = unstuff(data, size, at, memory.stream)
    for i in range(length, length + OVERREAD):
        memory.stream[i] = 0
    memory.segment[BITS] = 8 * length
    memory.segment[MARKER] = at + 1 if at + 2 <= size else -1


@njit(inline=True)
def _at_end(bits, memory):  # type: ignore[no-untyped-def]
    """Whether the segment is read up to its last byte, and a marker follows."""
    return 0 <= memory.segment[BITS] - used_bits(bits) < 8 and memory.segment[MARKER] >= 0


@njit
def _restart(data, size, bits, number, reader, memory):  # type: ignore[no-untyped-def]
    """Go on after a restart marker, which must be there with the right number."""
    marker = memory.segment[MARKER]
    if not _at_end(bits, memory) or data[marker] != RESTART + ((number - 1) & 7):
        return bits, False
    _next_segment(data, size, marker + 1, memory)
    for c in range(3):
        memory.previous[c] = 0
    return start_bits(reader), True


@njit
def _decode_row(data, size, bits, row, first, last, reader, memory, frame):  # type: ignore[no-untyped-def]
    """A row of MCUs, of which those from `first` to `last` are transformed. False if it is damaged.

    Two blocks are transformed at once, when the two after them are decoded, which does not wait for them: so the
    processor does both at the same time.
    """
    blocks = frame.across * frame.down + frame.components - 1
    nowhere, stride = _plane(frame, 3, 0), _plane(frame, 0, 1) - _plane(frame, 0, 0)
    strange, b, column = u64(0), 0, 0
    for i in range(frame.columns * blocks + 3):
        turn = shifted(memory.turns, u64((i & 3) * TURN_COLUMNS))
        turn[WANTED], turn[ONTO] = 0, nowhere
        if column < frame.columns:
            if b == 0:
                bits, fine = _between_mcus(data, size, bits, row * frame.columns + column, reader, memory, frame)
                if not fine:
                    return bits, False
            plan = shifted(memory.plan, u64(b * PLAN_COLUMNS))
            wanted = first <= column <= last
            if wanted:
                turn[WANTED], turn[BY], turn[ONTO] = 1, plan[TABLE], plan[TO] + column * plan[STEP_ON]
            bits, fine, beyond = _decode_block(bits, reader, memory, plan, u64(i & 3 if wanted else SPARE))
            if not fine:
                return bits, False
            strange |= beyond
            b += 1
            if b == blocks:
                b, column = 0, column + 1
        if i & 1 and i >= 3:
            strange |= _transform_two(memory, u64(i + 1) & u64(2), stride)
    return bits, strange == u64(0) and used_bits(bits) <= memory.segment[BITS]


@njit(inline=True)
def _between_mcus(data, size, bits, mcu, reader, memory, frame):  # type: ignore[no-untyped-def]
    """Go on after a restart, if one is due. False if more was read than there is."""
    if used_bits(bits) > memory.segment[BITS]:
        return bits, False
    if frame.interval and mcu and mcu % frame.interval == 0:
        return _restart(data, size, bits, mcu // frame.interval, reader, memory)
    return bits, True


@njit(inline=True)
def _decode_block(bits, reader, memory, plan, turn):  # type: ignore[no-untyped-def]
    """False if it is damaged; and not 0 if its DC coefficient is beyond what is transformed."""
    block = shifted(memory.blocks, (turn >> u64(1)) * u64(NEXT_BLOCKS) + (turn & u64(1)) * u64(OTHER_BLOCK))
    component = u64(plan[COMPONENT])
    difference, bits, fine = read_dc(reader, bits, u64(plan[DC]))
    dc = memory.previous[component] + difference
    memory.previous[component] = dc
    block[u64(0)] = dc
    bits, good = read_ac(reader, bits, u64(plan[AC]), block)
    return bits, fine and good, u64(dc + LARGEST + 1) >> u64(15)


@njit(inline=True)
def _transform_two(memory, turn, stride):  # type: ignore[no-untyped-def]
    """The blocks of two turns from an even one on, if either is wanted."""
    one = shifted(memory.turns, turn * u64(TURN_COLUMNS))
    other = shifted(one, u64(TURN_COLUMNS))
    if one[WANTED] | other[WANTED] == 0:
        return u64(0)
    blocks = shifted(memory.blocks, (turn >> u64(1)) * u64(NEXT_BLOCKS))
    by, other_by = u64(one[BY]), u64(other[BY])
    to, other_to = u64(one[ONTO]), u64(other[ONTO])
    return inverse_dct(blocks, memory.quantisers, by, other_by, memory.planes, to, other_to, u64(stride))


@njit
def _write_rows(out, start, until, left, right, row, frame, memory):  # type: ignore[no-untyped-def]
    """Pixels of the rows from `start` to `until`, then keep what the next row of MCUs needs."""
    if frame.across == 2:
        _repeat_edges(frame, memory.planes)
    for y in range(start, until):
        luma = _plane(frame, 0, y - row * 8 * frame.down + 1)
        to = y * frame.width * 3
        if frame.components == 1:
            _grey_row(out, to, luma, left, right, memory)
        else:
            chroma, cb, cr = _chroma_lines(y, left, right, row, frame, memory)
            _rgb_row(out, to, luma, chroma, cb, cr, left, right, memory)
    if frame.down == 2:
        for c in range(3):
            kept, last = _plane(frame, c, 0), _plane(frame, c, 16 if c == 0 else 8)
            for x in range(-1, frame.width + 1):
                memory.planes[kept + x] = memory.planes[last + x]


@njit
def _repeat_edges(frame, planes):  # type: ignore[no-untyped-def]
    coarse = -(-frame.width // 2)
    for c in range(1, 3):
        for line in range(1, 9):
            edge = _plane(frame, c, line)
            planes[edge - 1] = planes[edge]
            planes[edge + coarse] = planes[edge + coarse - 1]


@njit
def _chroma_lines(y, left, right, row, frame, memory):  # type: ignore[no-untyped-def]
    """Cb and Cr at full width for row y: the memory they are in, and the byte offset of column 0 of each."""
    near = y // frame.down
    local = near - row * 8 + 1
    if frame.across == 1 and frame.down == 1:
        return memory.planes, _plane(frame, 1, local), _plane(frame, 2, local)
    below = y % 2 == 1
    last = (frame.height - 1) // 2
    far = max(0, near - 1) if not below else min(last, near + 1)
    size = frame.width + 2 * SAMPLES + 2 * MARGIN
    for c in range(1, 3):
        at = _plane(frame, c, local)
        other = _plane(frame, c, far - row * 8 + 1)
        to = (c - 1) * size + MARGIN
        if frame.across == 1:
            for x in range(left, right, SAMPLES):
                finer_down(
                    memory.planes, u64(at + x), u64(other + x), u64(2 if below else 1), memory.lines, u64(to + x)
                )
        else:
            for x in range(left // 2, (right + 1) // 2, SAMPLES):
                if frame.down == 1:
                    finer_across(memory.planes, u64(at + x), memory.lines, u64(to + 2 * x))
                else:
                    finer_both(memory.planes, u64(at + x), u64(other + x), memory.lines, u64(to + 2 * x))
    return memory.lines, MARGIN, size + MARGIN


@njit
def _rgb_row(out, to, luma, chroma, cb, cr, left, right, memory):  # type: ignore[no-untyped-def]
    if right - left < PIXELS:
        to_rgb(memory.planes, u64(luma + left), chroma, u64(cb + left), u64(cr + left), memory.pixels, u64(0))
        _copy(memory.pixels, out, to, left, right)
        return
    for start in range(left, right, PIXELS):
        x = min(start, right - PIXELS)  # the last ones once more, rather than past the end
        to_rgb(memory.planes, u64(luma + x), chroma, u64(cb + x), u64(cr + x), out, u64(to + 3 * x))


@njit
def _grey_row(out, to, luma, left, right, memory):  # type: ignore[no-untyped-def]
    if right - left < PIXELS:
        grey_to_rgb(memory.planes, u64(luma + left), memory.pixels, u64(0))
        _copy(memory.pixels, out, to, left, right)
        return
    for start in range(left, right, PIXELS):
        x = min(start, right - PIXELS)
        grey_to_rgb(memory.planes, u64(luma + x), out, u64(to + 3 * x))


@njit(inline=True)
def _copy(pixels, out, to, left, right):  # type: ignore[no-untyped-def]
    for i in range(3 * (right - left)):
        out[to + 3 * left + i] = pixels[i]
