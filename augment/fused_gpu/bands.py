"""Resampling and filters as two products with banded matrices, on the tensor cores.

A tile of the output is Wy · pixels · Wx: the weights of an output pixel are a narrow band of a matrix that is computed
on the fly from its centre. Each source pixel is then read and converted once for the tile, however many taps it feeds;
gathering the taps for each output pixel instead reads 27 to 48 bytes where this reads 12 (an antialiased crop at scale
1.4, three channels), and the load units, not memory, would set the pace.

float16 is enough here: pixels enter as 1024 + byte, which is a byte placed in a half's last bits; weights are divided
by the sum of what they were rounded to; products are added up in float32; what lies between the two is kept as
level - 128, to a sixteenth of a level. A flat image stays flat.

Tiles are turned, [x, y], until they are done: the first product's result then is the second's left operand in the
registers where it lies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.augment.fused_gpu.numbers import INTERPRET, bound, nearest, power

# What a weight is a function of: see `weight`.
TRIANGLE = tl.constexpr(0)
KEYS = tl.constexpr(1)
GAUSSIAN = tl.constexpr(2)


@triton.jit
def weight(spot, centre, decay, reach, keys_a, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """float16 weight of source pixels at `spot` for output pixels at `centre`, both as `spots` scales them.

    TRIANGLE; KEYS (Keys 1981, eq. 4, with its parameter `keys_a`); GAUSSIAN: 2 ** (-decay · distance²) as far as
    `reach`, which is a box where `decay` is 0.
    """
    d = tl.abs(spot - centre)
    if KIND == TRIANGLE:
        result = tl.maximum(1.0 - d, 0.0)
    elif KIND == KEYS:
        near = ((keys_a + 2.0) * d - (keys_a + 3.0)) * d * d + 1.0
        far = keys_a * (((d - 5.0) * d + 8.0) * d - 4.0)
        result = tl.where(d < 1.0, near, tl.where(d < 2.0, far, 0.0))
    else:
        result = tl.where(d <= reach, power(-decay * d * d), 0.0)
    return result.to(tl.float16)


@triton.jit
def spots(position, narrow, low, high):  # type: ignore[no-untyped-def]
    """Centres of source pixels in units of the kernel's stretch, 1 / narrow; far off, where no kernel reaches, outside
    [low, high): that costs one comparison a row or column, and none for each weight."""
    return tl.where((position >= low) & (position < high), (position.to(tl.float32) + 0.5) * narrow, 1e6)


@triton.jit
def share(centre, narrow, decay, reach, low, high, keys_a, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 over the sum of an output pixel's weights, each as rounded in `weight`; centre [T], in source pixels."""
    first = tl.floor(centre - reach - 0.5).to(tl.int32)
    added = centre * 0.0
    for k in range(bound((2.0 * reach + 3.0).to(tl.int32))):
        spot = spots(first + k, narrow, low, high)
        added += weight(spot, centre * narrow, decay, reach, keys_a, KIND).to(tl.float32)
    return 1.0 / tl.maximum(added, 0.25)  # within the view it is 0.5 at least; beyond, in a tile, it may be 0


@triton.jit
def load_word(pointer):  # type: ignore[no-untyped-def]
    """Three bytes of a source as a stored view's word (numbers.pack).

    In assembly, as Triton would otherwise carry each byte to the tensor cores' layout by itself, and pack and unpack
    them on the way: 328 instructions for a chunk of 64 × 16 pixels, and 205 with this (sm_90, a thread of 64).
    """
    if INTERPRET:
        r, g, b = tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2)
        return r.to(tl.int32) | (g.to(tl.int32) << 8) | (b.to(tl.int32) << 16) | 0x64000000
    else:
        return tl.inline_asm_elementwise(
            """{ .reg .b32 r, g, b;
            ld.global.nc.u8 r, [$1];
            ld.global.nc.u8 g, [$1+1];
            ld.global.nc.u8 b, [$1+2];
            prmt.b32 r, r, g, 0x1140;
            or.b32 b, b, 0x6400;
            prmt.b32 $0, r, b, 0x5410; }""",
            "=r,l",
            [pointer],
            dtype=tl.int32,
            is_pure=False,  # so that the layout changes after it, and not before
            pack=1,
        )


@triton.jit
def half(word, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """One byte of words as float16 1024 + byte: the byte beside the word's high one, 0x64. Two take one instruction."""
    if INTERPRET:
        return (((word >> SHIFT) & 255) | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        SELECT: tl.constexpr = "0x7430" if SHIFT == 0 else "0x7531" if SHIFT == 8 else "0x7632"
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, " + SELECT + ";", "=r,r,r", [word], dtype=tl.float16, is_pure=True, pack=2
        )


@triton.jit
def index(position, last, length, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a position is read: mirrored at the border (the border pixel once), or the border pixel repeated.

    What a chunk holds from `last` on weighs nothing: it reads the pixel before again, which costs less than a mask.
    """
    position = tl.minimum(position, last - 1)
    if KIND == GAUSSIAN:
        position = tl.abs(position)
        return length - 1 - tl.abs(length - 1 - position)
    else:
        return tl.minimum(tl.maximum(position, 0), length - 1)


@triton.jit
def resize_axis(start, length, size, antialias, keys_a, KIND: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Along one axis, how `length` pixels become `size`: what `product` needs for the TILE outputs from `start` on.

    As PIL and torch do it, or OpenCV where not antialiased. Antialiased, a kernel stretches when it shrinks the image,
    and is cut at the box's border. OpenCV's cubic is not stretched and repeats the border's pixels; cutting and
    repeating agree for two taps, so bilinear is always cut.

    Returns:
        scaled: the outputs' centres as `spots` scales them; share: see there.
        first, last: the source positions that the tile needs.
        narrow, reach: 1 over how far the kernel is stretched; how far it reaches, in source pixels.
        low, high: positions outside weigh nothing.
    """
    scale = length.to(tl.float32) / size
    stretch = tl.where(antialias != 0, tl.maximum(scale, 1.0), 1.0)
    beyond = 0
    reach = stretch
    if KIND == KEYS:
        beyond = tl.where(antialias != 0, 0, 4)
        reach = 2.0 * stretch
    narrow = 1.0 / stretch
    centre = (start + tl.arange(0, TILE) + 0.5) * scale
    end = tl.minimum(start + TILE, size) - 0.5
    first = tl.maximum(tl.floor((start + 0.5) * scale - reach - 0.5).to(tl.int32), -beyond)
    last = tl.minimum(tl.floor(end * scale + reach + 0.5).to(tl.int32) + 1, length + beyond)
    shares = share(centre, narrow, 0.0, reach, -beyond, length + beyond, keys_a, KIND)
    return centre * narrow, shares, first, last, narrow, reach, -beyond, length + beyond


@triton.jit
def blur_axis(start, size, decay, radius, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """As `resize_axis`, for a filter (plan._filter) along an axis of a stored view."""
    centre = start + tl.arange(0, TILE) + 0.5
    reach = radius.to(tl.float32)
    shares = share(centre, 1.0, decay, reach, -size, 2 * size, 0.0, GAUSSIAN)
    return centre, shares, start - radius, tl.minimum(start + TILE, size) + radius, 1.0, reach, -size, 2 * size


@triton.jit
def product(  # type: ignore[no-untyped-def]
    pixels,
    across,
    pitch,
    width,
    height,
    axis_x,
    axis_y,
    decay,
    keys_a,
    KIND: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    CHUNK_X: tl.constexpr,
    CHUNK_Y: tl.constexpr,
):
    """One tile of three channels, float32 [y, x] in levels, not yet rounded.

    Args:
        pixels: where the box or the view begins; across, pitch: elements to the next pixel and row.
        width, height: of what is read; positions beyond are mapped back by `index`.
        axis_x, axis_y: from `resize_axis` or `blur_axis`.
        decay, keys_a: see `weight`.
        CHUNK_X, CHUNK_Y: sides of the block of pixels that is read at once.
    """
    scaled_x, share_x, first_x, last_x, narrow_x, reach_x, low_x, high_x = axis_x
    scaled_y, share_y, first_y, last_y, narrow_y, reach_y, low_y, high_y = axis_y
    r = tl.full([TILE_X, TILE_Y], 0.0, tl.float32)
    g = tl.full([TILE_X, TILE_Y], 0.0, tl.float32)
    b = tl.full([TILE_X, TILE_Y], 0.0, tl.float32)
    for y0 in range(bound(first_y), bound(last_y), CHUNK_Y):
        y = y0 + tl.arange(0, CHUNK_Y)
        row = (index(y, last_y, height, KIND) * pitch)[:, None]
        line_r = tl.full([TILE_X, CHUNK_Y], 0.0, tl.float32)
        line_g = tl.full([TILE_X, CHUNK_Y], 0.0, tl.float32)
        line_b = tl.full([TILE_X, CHUNK_Y], 0.0, tl.float32)
        for x0 in range(bound(first_x), bound(last_x), CHUNK_X):
            x = x0 + tl.arange(0, CHUNK_X)
            at = row + (index(x, last_x, width, KIND) * across)[None, :]
            spot_x = spots(x, narrow_x, low_x, high_x)[None, :]
            along = weight(spot_x, scaled_x[:, None], decay, reach_x, keys_a, KIND)
            word = tl.trans(tl.load(pixels + at) if KIND == GAUSSIAN else load_word(pixels + at))
            line_r = tl.dot(along, half(word, 0), line_r)
            line_g = tl.dot(along, half(word, 8), line_g)
            line_b = tl.dot(along, half(word, 16), line_b)
        spot_y = spots(y, narrow_y, low_y, high_y)[:, None]
        down = weight(spot_y, scaled_y[None, :], decay, reach_y, keys_a, KIND)
        r = tl.dot(centred(line_r, share_x), down, r)
        g = tl.dot(centred(line_g, share_x), down, g)
        b = tl.dot(centred(line_b, share_x), down, b)
    share_y = share_y[None, :]
    return tl.trans(r * share_y + 128.0), tl.trans(g * share_y + 128.0), tl.trans(b * share_y + 128.0)


@triton.jit
def centred(line, shares):  # type: ignore[no-untyped-def]
    """What the first product made of `half` pixels, as float16 level - 128 for the second."""
    return (line * shares[:, None] - (1024.0 + 128.0)).to(tl.float16)


@triton.jit
def crop_tile(  # type: ignore[no-untyped-def]
    pixels,
    pitch,
    height,
    width,
    antialias,
    x0,
    y0,
    size,
    KIND: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    CHUNK_X: tl.constexpr,
    CHUNK_Y: tl.constexpr,
):
    """The tile at (x0, y0) of a box, height × width at `pixels` with `pitch` bytes a row, resized to size × size."""
    keys_a = tl.where(antialias != 0, -0.5, -0.75)  # torch's, and OpenCV's
    axis_x = resize_axis(x0, width, size, antialias, keys_a, KIND, TILE_X)
    axis_y = resize_axis(y0, height, size, antialias, keys_a, KIND, TILE_Y)
    return product(pixels, 3, pitch, width, height, axis_x, axis_y, 0.0, keys_a, KIND, TILE_X, TILE_Y, CHUNK_X, CHUNK_Y)


@triton.jit
def blur_tile(  # type: ignore[no-untyped-def]
    view,
    decay,
    radius,
    x0,
    y0,
    size,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    CHUNK_X: tl.constexpr,
    CHUNK_Y: tl.constexpr,
):
    """The tile at (x0, y0) of a stored view [size, size], each pixel the weighted mean around it (plan._filter)."""
    axis_x = blur_axis(x0, size, decay, radius, TILE_X)
    axis_y = blur_axis(y0, size, decay, radius, TILE_Y)
    return product(view, 1, size, size, size, axis_x, axis_y, decay, 0.0, GAUSSIAN, TILE_X, TILE_Y, CHUNK_X, CHUNK_Y)


@triton.jit
def mirrored(decay, radius, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """float16 [source, output]: a filter's weights, the mirrored border folded in; and 1 over their sums [output]."""
    source, centre = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :] + 0.5
    reach = radius.to(tl.float32)
    folded = weight(spots(source, 1.0, 0, size), centre, decay, reach, 0.0, GAUSSIAN).to(tl.float32)
    folded += weight(spots(-source, 1.0, 1 - size, 0), centre, decay, reach, 0.0, GAUSSIAN).to(tl.float32)
    beyond = spots(2 * (size - 1) - source, 1.0, size, 2 * size)
    folded += weight(beyond, centre, decay, reach, 0.0, GAUSSIAN).to(tl.float32)
    weights = folded.to(tl.float16)
    return weights, 1.0 / tl.maximum(tl.reduce(weights.to(tl.float32), 0, tl.standard._sum_combine), 1e-6)


@triton.jit
def filter_channel(channel, weights, shares, centre, blurred):  # type: ignore[no-untyped-def]
    """A whole view's channel [y, x] filtered (plan._filter), under `mirrored` weights along both axes."""
    line = tl.dot((channel - 128.0).to(tl.float16), weights) * shares[None, :]
    mean = tl.dot(tl.trans(weights), line.to(tl.float16)) * shares[:, None] + 128.0
    return combine(channel, mean, centre, blurred)


@triton.jit
def combine(pixel, mean, centre, blurred):  # type: ignore[no-untyped-def]
    return nearest(centre * pixel + blurred * mean)
