"""CLAHE on OpenCV's 8-bit Lab lightness (Zuiderveld 1994): a table for each tile, then four of them for each pixel."""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.augment.fused_gpu.numbers import bound, nearest, to_float, total, unpack

# Offsets into the table of constants (`constants.py`), in words.
GAMMA = tl.constexpr(4096)
CUBE_ROOT = tl.constexpr(4096 + 256)


@triton.jit
def lightness(r, g, b, constants):  # type: ignore[no-untyped-def]
    """OpenCV's fixed-point f(X), f(Y), f(Z) of CIE Lab in 15 bits, and L of 0 … 255, int32, from int32 levels.

    The matrix is linear sRGB to XYZ over D65's white, in 12 bits.
    """
    red, green, blue = tl.load(constants + GAMMA + r), tl.load(constants + GAMMA + g), tl.load(constants + GAMMA + b)
    f_x = tl.load(constants + CUBE_ROOT + ((red * 1777 + green * 1541 + blue * 778 + 2048) >> 12))
    f_y = tl.load(constants + CUBE_ROOT + ((red * 871 + green * 2929 + blue * 296 + 2048) >> 12))
    f_z = tl.load(constants + CUBE_ROOT + ((red * 73 + green * 448 + blue * 3575 + 2048) >> 12))
    light = (296 * f_y - 1336934 + 16384) >> 15
    return f_x, f_y, f_z, tl.minimum(tl.maximum(light, 0), 255)


@triton.jit
def tile_table(view, table, across, clip, tile, size, constants, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One tile's table of 256 bytes: its clipped histogram, summed up. Views are mirrored to a multiple of the tiles.

    Args:
        view: a stored view, int32 [size, size]. table: uint8 [256]. across: tiles along a side. clip: the clip limit.
    """
    padded = ((size + across - 1) // across) * across
    side = padded // across
    area = side * side
    left, top = (tile % across) * side, (tile // across) * side
    counts = tl.full([256], 0, tl.int32)
    for start in range(0, bound(area), BLOCK):
        p = start + tl.arange(0, BLOCK)
        x, y = left + p % side, top + p // side
        x = tl.where(x < size, x, tl.abs(2 * (size - 1) - x))
        y = tl.where(y < size, y, tl.abs(2 * (size - 1) - y))
        r, g, b = unpack(tl.load(view + y * size + x, mask=p < area, other=0))
        _, _, _, light = lightness(r, g, b, constants)
        counts += tl.histogram(tl.where(p < area, light, 0), 256)
    bins = tl.arange(0, 256)
    beyond = (area + BLOCK - 1) // BLOCK * BLOCK - area
    counts = tl.where(bins == 0, counts - beyond, counts)
    limit = tl.maximum((clip * area.to(tl.float32) / 256.0).to(tl.int32), 1)
    excess = total(tl.maximum(counts - limit, 0))
    rest = excess % 256
    step = tl.maximum(256 // tl.maximum(rest, 1), 1)
    counts = tl.minimum(counts, limit) + excess // 256
    counts += tl.where((bins % step == 0) & (bins // step < rest), 1, 0)
    summed = tl.associative_scan(counts, 0, tl.standard._sum_combine).to(tl.float32)
    tl.store(table + bins, nearest(summed * tl.div_rn(255.0, area.to(tl.float32))).to(tl.uint8))


@triton.jit
def lookup(tables, x, y, light):  # type: ignore[no-untyped-def]
    return to_float(tl.load(tables + (y + x) * 256 + light).to(tl.int32))


@triton.jit
def unfold(f):  # type: ignore[no-untyped-def]
    """The inverse of Lab's f: a cube, linear near black (CIE 15)."""
    return tl.where(f > 6.0 / 29.0, f * f * f, (f - 16.0 / 116.0) * (108.0 / 841.0))


@triton.jit
def encode(linear):  # type: ignore[no-untyped-def]
    """Linear light to sRGB levels."""
    linear = tl.minimum(tl.maximum(linear, 0.0), 1.0)
    power = tl.exp2(tl.log2(tl.maximum(linear, 1e-6)) * (1.0 / 2.4))
    return nearest(255.0 * tl.where(linear <= 0.0031308, 12.92 * linear, 1.055 * power - 0.055))


@triton.jit
def equalize(r, g, b, x, y, tables, across, size, constants):  # type: ignore[no-untyped-def]
    """Pixels with their lightness sent through the four tables around them, interpolated.

    Args:
        r, g, b: float32 levels [Y, X]. x, y: int32 [1, X], [Y, 1], in the view, within its size.
        tables: uint8 [across, across, 256].
    """
    f_x, f_y, f_z, light = lightness(r.to(tl.int32), g.to(tl.int32), b.to(tl.int32), constants)
    side = ((size + across - 1) // across).to(tl.float32)
    u, v = x.to(tl.float32) / side - 0.5, y.to(tl.float32) / side - 0.5
    left, top = tl.floor(u), tl.floor(v)
    u, v = u - left, v - top
    x0, y0 = left.to(tl.int32), top.to(tl.int32)
    x1, y1 = tl.minimum(x0 + 1, across - 1), tl.minimum(y0 + 1, across - 1) * across
    x0, y0 = tl.maximum(x0, 0), tl.maximum(y0, 0) * across
    upper = lookup(tables, x0, y0, light) * (1.0 - u) + lookup(tables, x1, y0, light) * u
    lower = lookup(tables, x0, y1, light) * (1.0 - u) + lookup(tables, x1, y1, light) * u
    equalized = nearest(upper * (1.0 - v) + lower * v)
    # a and b as bytes, as OpenCV hands them to the way back
    a = nearest(((500 * (f_x - f_y) + 16384) >> 15).to(tl.float32) + 128.0) - 128.0
    b = nearest(((200 * (f_y - f_z) + 16384) >> 15).to(tl.float32) + 128.0) - 128.0
    return from_lab(equalized * (100.0 / 255.0), a, b)


@triton.jit
def from_lab(light, a, b):  # type: ignore[no-untyped-def]
    """sRGB levels from CIE Lab over D65's white: L of 0 … 100, a and b."""
    f_y = (light + 16.0) / 116.0
    x, y, z = unfold(f_y + a / 500.0) * 0.950456, unfold(f_y), unfold(f_y - b / 200.0) * 1.088754
    red = 3.240479 * x - 1.53715 * y - 0.498535 * z
    green = -0.969256 * x + 1.875991 * y + 0.041556 * z
    blue = 0.055648 * x - 0.204043 * y + 1.057311 * z
    return encode(red), encode(green), encode(blue)
