"""The kernels. A program takes one tile of one pass: its head, then its slots, then one write."""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.augment.fused_gpu import plan
from penstock.augment.fused_gpu.bands import KEYS, TRIANGLE, blur_tile, combine, crop_tile, filter_channel, mirrored
from penstock.augment.fused_gpu.clahe import equalize, tile_table
from penstock.augment.fused_gpu.color import blend, noise, pick, punch, saturate, shift_hsv, turn_hue
from penstock.augment.fused_gpu.numbers import bound, level, luma, nearest, pack, to_float, total, unpack
from penstock.augment.rows import Opcode

HORIZONTAL_FLIP, VERTICAL_FLIP = tl.constexpr(int(Opcode.HORIZONTAL_FLIP)), tl.constexpr(int(Opcode.VERTICAL_FLIP))
BRIGHTNESS, CONTRAST = tl.constexpr(int(Opcode.BRIGHTNESS)), tl.constexpr(int(Opcode.CONTRAST))
SATURATION, HUE, GRAY = (
    tl.constexpr(int(Opcode.SATURATION)),
    tl.constexpr(int(Opcode.HUE)),
    tl.constexpr(int(Opcode.GRAY)),
)
GAUSSIAN_BLUR, SOLARIZE = tl.constexpr(int(Opcode.GAUSSIAN_BLUR)), tl.constexpr(int(Opcode.SOLARIZE))
BRIGHTNESS_CONTRAST = tl.constexpr(int(Opcode.BRIGHTNESS_CONTRAST))
CHANNEL_SHUFFLE, HSV_SHIFT = tl.constexpr(int(Opcode.CHANNEL_SHUFFLE)), tl.constexpr(int(Opcode.HSV_SHIFT))
COARSE_DROPOUT, GAUSSIAN_NOISE = tl.constexpr(int(Opcode.COARSE_DROPOUT)), tl.constexpr(int(Opcode.GAUSSIAN_NOISE))

HEAD_TRIANGLE, HEAD_KEYS = tl.constexpr(plan.TRIANGLE), tl.constexpr(plan.KEYS)
HEAD_FILTER, HEAD_EQUALIZE = tl.constexpr(plan.FILTER), tl.constexpr(plan.EQUALIZE)
RECORD, FIRST, COUNT, STORED, LAST = (
    tl.constexpr(plan.RECORD),
    tl.constexpr(plan.FIRST),
    tl.constexpr(plan.COUNT),
    tl.constexpr(plan.STORED),
    tl.constexpr(plan.LAST),
)
TARGET, SUM, LUMA = tl.constexpr(plan.TARGET), tl.constexpr(plan.SUM), tl.constexpr(plan.LUMA)
SOURCE, PITCH, HEIGHT, WIDTH, ANTIALIAS = (
    tl.constexpr(plan.SOURCE),
    tl.constexpr(plan.PITCH),
    tl.constexpr(plan.HEIGHT),
    tl.constexpr(plan.WIDTH),
    tl.constexpr(plan.ANTIALIAS),
)
DECAY, RADIUS, CENTRE, BLURRED = (
    tl.constexpr(plan.DECAY),
    tl.constexpr(plan.RADIUS),
    tl.constexpr(plan.CENTRE),
    tl.constexpr(plan.BLURRED),
)
TABLE, TILES, CLIP = tl.constexpr(plan.TABLE), tl.constexpr(plan.TILES), tl.constexpr(plan.CLIP)
SLOT, SEED = tl.constexpr(plan.SLOT), tl.constexpr(plan.SEED)


@triton.jit
def number(word):  # type: ignore[no-untyped-def]
    """A float32 stored as a word."""
    return tl.load(word).to(tl.float32, bitcast=True)


@triton.jit
def long(word):  # type: ignore[no-untyped-def]
    """An int64 stored as two words."""
    return (tl.load(word + 1).to(tl.int64) << 32) | (tl.load(word).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def run_slots(  # type: ignore[no-untyped-def]
    r, g, b, x, y, slots, count, mean, size, constants, RICH: tl.constexpr, WHOLE: tl.constexpr, TILE: tl.constexpr
):
    """Run a pass's slots on one tile.

    Args:
        r, g, b: float32 [TILE, TILE], whole levels.
        x, y: int32 [1, TILE], [TILE, 1], where the pixels lie now; a flip only changes these.
        mean: of the view's luma, for contrast; not looked at where WHOLE.
        RICH: whether slots may hold operations beyond torchvision's colours and flips.
        WHOLE: the tile is the whole view, so contrast and filters find all they need in it.

    Returns:
        r, g, b, x, y.
    """
    for k in range(bound(count)):
        slot = slots + k * SLOT
        opcode = tl.load(slot)
        value = number(slot + 1)
        if opcode == HORIZONTAL_FLIP:
            x = size - 1 - x
        elif opcode == VERTICAL_FLIP:
            y = size - 1 - y
        elif opcode == BRIGHTNESS:
            r, g, b = level(r * value), level(g * value), level(b * value)
        elif opcode == CONTRAST:
            if WHOLE:
                inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
                grey = total(tl.where(inside, luma(r, g, b), 0.0).to(tl.int32))
                mean = tl.div_rn(grey.to(tl.float32), (size * size).to(tl.float32))
            r, g, b = blend(r, g, b, value, mean)
        elif opcode == SATURATION:
            r, g, b = saturate(r, g, b, value)
        elif opcode == HUE:
            r, g, b = turn_hue(r, g, b, value)
        elif opcode == GRAY:
            r = luma(r, g, b)
            g, b = r, r
        elif opcode == GAUSSIAN_BLUR:
            if WHOLE:
                weights, shares = mirrored(value, tl.load(slot + 2), size, TILE)
                centre, blurred = number(slot + 3), number(slot + 4)
                r = filter_channel(r, weights, shares, centre, blurred)
                g = filter_channel(g, weights, shares, centre, blurred)
                b = filter_channel(b, weights, shares, centre, blurred)
        elif RICH:
            r, g, b = run_rich(r, g, b, x, y, slot, opcode, value, size, constants)
    return r, g, b, x, y


@triton.jit
def run_rich(r, g, b, x, y, slot, opcode, value, size, constants):  # type: ignore[no-untyped-def]
    """The operations of Albumentations, and solarize."""
    second, third, fourth = number(slot + 2), number(slot + 3), number(slot + 4)
    key_0 = tl.load(slot + SEED).to(tl.uint32, bitcast=True)
    key_1 = tl.load(slot + SEED + 1).to(tl.uint32, bitcast=True)
    if opcode == SOLARIZE:
        r, g, b = tl.where(r >= value, 255 - r, r), tl.where(g >= value, 255 - g, g), tl.where(b >= value, 255 - b, b)
    elif opcode == BRIGHTNESS_CONTRAST:
        r, g, b = level(r * value + second), level(g * value + second), level(b * value + second)
    elif opcode == CHANNEL_SHUFFLE:
        r, g, b = pick(r, g, b, value), pick(r, g, b, second), pick(r, g, b, third)
    elif opcode == HSV_SHIFT:
        if (value != 0) | (second != 0) | (third != 0):  # otherwise not even the rounding of a round trip
            r, g, b = shift_hsv(r, g, b, x, size, value, second, third)
    elif opcode == COARSE_DROPOUT:
        holes, height, width = value.to(tl.int32), second.to(tl.int32), third.to(tl.int32)
        r, g, b = punch(r, g, b, x, y, size, holes, height, width, fourth, key_0, key_1)
    elif opcode == GAUSSIAN_NOISE:
        r, g, b = noise(r, g, b, x, y, size, value, key_0, key_1, constants)
    return r, g, b


@triton.jit
def store_normalised(  # type: ignore[no-untyped-def]
    r, g, b, target, x, y, size, slope_r, slope_g, slope_b, offset_r, offset_g, offset_b
):
    """Write a tile into a view of the batch, [size, size, 3], as slope · level + offset."""
    at = target + (y * size + x) * 3
    mask = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    kind = target.dtype.element_ty
    tl.store(at, (r * slope_r + offset_r).to(kind), mask=mask)
    tl.store(at + 1, (g * slope_g + offset_g).to(kind), mask=mask)
    tl.store(at + 2, (b * slope_b + offset_b).to(kind), mask=mask)


@triton.jit(do_not_specialize=["first"])
def run_pass(  # type: ignore[no-untyped-def]
    words,
    first,
    source,
    stored,
    kept,
    tables,
    constants,
    out,
    size,
    slope_r,
    slope_g,
    slope_b,
    offset_r,
    offset_g,
    offset_b,
    HEAD: tl.constexpr,
    RICH: tl.constexpr,
    WHOLE: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    CHUNK_X: tl.constexpr,
    CHUNK_Y: tl.constexpr,
):
    """One tile of one pass; the grid is records x tiles.

    Args:
        words: int32, the plan (plan.py). first: the launch's first record.
        source: uint8, decoded images. stored: int32 [·, S, S] (`pack`), what this level reads. kept: where it writes.
        tables: uint8 [·, 256], CLAHE's. constants: int32 (constants.py).
        out: the batch, [·, S, S, 3]. size: S.
        slope_*, offset_*: what normalises a level.
    """
    across, down = (size + TILE_X - 1) // TILE_X, (size + TILE_Y - 1) // TILE_Y
    program = tl.program_id(0)
    record = words + (first + program // (across * down)) * RECORD
    tile = program % (across * down)
    x0, y0 = (tile % across) * TILE_X, (tile // across) * TILE_Y
    x, y = x0 + tl.arange(0, TILE_X)[None, :], y0 + tl.arange(0, TILE_Y)[:, None]
    inside = (x < size) & (y < size)
    at = tl.load(record + STORED).to(tl.int64) * (size * size)
    view = stored + at

    if HEAD == HEAD_TRIANGLE or HEAD == HEAD_KEYS:  # noqa: SIM109 – Triton knows no tuples of constants
        KIND: tl.constexpr = TRIANGLE if HEAD == HEAD_TRIANGLE else KEYS
        r, g, b = crop_tile(
            source + long(record + SOURCE), tl.load(record + PITCH), tl.load(record + HEIGHT), tl.load(record + WIDTH),
            tl.load(record + ANTIALIAS), x0, y0, size, KIND, TILE_X, TILE_Y, CHUNK_X, CHUNK_Y,
        )  # fmt: skip
        r, g, b = nearest(r), nearest(g), nearest(b)
    else:
        r, g, b = unpack(tl.load(view + y * size + x, mask=inside, other=0))
        r, g, b = to_float(r), to_float(g), to_float(b)
    if HEAD == HEAD_FILTER:
        centre, blurred = number(record + CENTRE), number(record + BLURRED)
        decay, radius = number(record + DECAY), tl.load(record + RADIUS)
        mean_r, mean_g, mean_b = blur_tile(view, decay, radius, x0, y0, size, TILE_X, TILE_Y, CHUNK_X, CHUNK_Y)
        r = combine(r, mean_r, centre, blurred)
        g = combine(g, mean_g, centre, blurred)
        b = combine(b, mean_b, centre, blurred)
    if HEAD == HEAD_EQUALIZE:
        table = tables + tl.load(record + TABLE).to(tl.int64) * 256
        tiles = tl.load(record + TILES)
        r, g, b = equalize(r, g, b, tl.minimum(x, size - 1), tl.minimum(y, size - 1), table, tiles, size, constants)

    mean = tl.div_rn(tl.load(record + LUMA).to(tl.float32), (size * size).to(tl.float32))
    slots, count = words + tl.load(record + FIRST), tl.load(record + COUNT)
    r, g, b, x, y = run_slots(r, g, b, x, y, slots, count, mean, size, constants, RICH, WHOLE, TILE_X)

    sum_at = tl.load(record + SUM)
    if sum_at != 0:
        grey = tl.where(inside, luma(r, g, b), 0.0).to(tl.int32)
        tl.atomic_add(words + sum_at, total(grey), sem="relaxed")
    if tl.load(record + LAST) != 0:
        target = out + long(record + TARGET)
        store_normalised(r, g, b, target, x, y, size, slope_r, slope_g, slope_b, offset_r, offset_g, offset_b)
    else:
        tl.store(kept + at + y * size + x, pack(r, g, b), mask=(x >= 0) & (x < size) & (y >= 0) & (y < size))


@triton.jit(do_not_specialize=["first", "tiles"])
def make_tables(words, first, stored, tables, constants, size, tiles, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """CLAHE's table of one tile; the grid is records x the most tiles that a view has."""
    program = tl.program_id(0)
    record = words + (first + program // tiles) * RECORD
    tile, across = program % tiles, tl.load(record + TILES)
    if tile < across * across:
        view = stored + tl.load(record + STORED).to(tl.int64) * (size * size)
        table = tables + (tl.load(record + TABLE) + tile).to(tl.int64) * 256
        tile_table(view, table, across, number(record + CLIP), tile, size, constants, BLOCK)
