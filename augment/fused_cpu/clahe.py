"""Contrast limited adaptive histogram equalisation of the lightness, as OpenCV does it in 8-bit CIE LAB.

Three steps: RGB to LAB; the lightness through the equalising tables of the tiles around it, interpolated; LAB to RGB.
OpenCV's fixed-point conversions are reproduced (whole numbers under 2**24 are exact in float32, whose tables LLVM can
gather from), so that nothing is left for the equalisation to magnify.

Source: Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV, 1994; OpenCV's `clahe.cpp`
and `color_lab.cpp` for roundings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.augment.fused_cpu.filters import nearest, reflect
from penstock.augment.jit import njit

LEVELS = 256
HALF, ONE, FULL = np.float32(0.5), np.float32(1.0), np.float32(255.0)

WHITE = np.array([0.950456, 1.0, 1.088754])  # D65, as XYZ
TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
FROM_XYZ = np.array([[3.240479, -1.53715, -0.498535], [-0.969256, 1.875991, 0.041556], [0.055648, -0.204043, 1.057311]])
# CIE's f is a cube root down to an XYZ of EPSILON, where it is 6/29, and a line below.
EPSILON, SLOPE, ZERO_F = 216 / 24389, 841 / 108, 16 / 116
# Units of the fixed-point numbers: linear light, on top of a level; coefficients; cube roots; the way back.
LINEAR, COEFFICIENT, ROOT, BACK = 2**3, 2**12, 2**15, 2**14


def _linear_light() -> NDArray[np.float32]:
    """[256]: sRGB levels to linear light, 0 … 255·LINEAR."""
    x = np.arange(LEVELS) / 255
    return np.rint(255 * LINEAR * np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)).astype(np.float32)


def _cube_root() -> NDArray[np.float32]:
    """[3072]: linear light, up to half as bright again as white, to f."""
    t = np.arange(LEVELS * LINEAR * 3 // 2) / (255 * LINEAR)
    return np.rint(ROOT * np.where(t < EPSILON, t * SLOPE + ZERO_F, np.cbrt(t))).astype(np.float32)


def _lightness() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """[256] each: 8-bit lightness to Y and to its f."""
    lightness = np.arange(LEVELS) * 100 / 255
    f = (lightness + 16) / 116
    y = np.where(lightness <= 8, (f - ZERO_F) / SLOPE, f**3)
    return np.rint(BACK * y).astype(np.int32), np.rint(BACK * f).astype(np.int32)


def _srgb() -> NDArray[np.int32]:
    """[4096]: linear light to sRGB levels."""
    x = np.arange(COEFFICIENT) / COEFFICIENT
    return np.rint(255 * np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)).astype(np.int32)


LINEAR_LIGHT, CUBE_ROOT, SRGB = _linear_light(), _cube_root(), _srgb()
LIGHTNESS_Y, LIGHTNESS_F = _lightness()
# Linear RGB to XYZ with white at (1, 1, 1), and back.
(X_R, X_G, X_B), (Y_R, Y_G, Y_B), (Z_R, Z_G, Z_B) = np.rint(COEFFICIENT * TO_XYZ / WHITE[:, None]).astype(np.float32)
(R_X, R_Y, R_Z), (G_X, G_Y, G_Z), (B_X, B_Y, B_Z) = np.rint(COEFFICIENT * FROM_XYZ * WHITE).astype(np.int32)
# OpenCV's bytes a and b to differences of f, multiplied by a rounded reciprocal: units 2**-13 and 2**-9 of BACK's.
A_STEP, A_ZERO, B_STEP, B_ZERO = BACK * 2**13 // 500, 128 * BACK // 500, BACK * 2**9 // 200, 128 * BACK // 200 - 1
LINE_END, LINE_ZERO = np.ceil(BACK * 6 / 29), np.int32(BACK * 16 // 116 * 108 // 841)


@njit
def _root(light):  # type: ignore[no-untyped-def]
    """f of linear light in units of LINEAR · COEFFICIENT."""
    return CUBE_ROOT[np.uint32(np.int32((light + np.float32(COEFFICIENT // 2)) * np.float32(1 / COEFFICIENT)))]


@njit
def _byte(value):  # type: ignore[no-untyped-def]
    """A value in units of ROOT, rounded; the LAB of an RGB colour never leaves 0 … 255."""
    return np.uint8(np.int32((value + np.float32(ROOT // 2)) * np.float32(1 / ROOT)))


@njit
def _to_lab(planes, lab):  # type: ignore[no-untyped-def]
    """lab = L·255/100, a + 128, b + 128 of RGB; both uint8 [3, P]."""
    red, green, blue, lightness, a, b = planes[0], planes[1], planes[2], lab[0], lab[1], lab[2]
    scale, offset = np.float32((116 * 255 + 50) // 100), np.float32((16 * 255 * ROOT + 50) // 100)
    middle = np.float32(128 * ROOT)
    for i in range(len(red)):
        light_r, light_g, light_b = LINEAR_LIGHT[red[i]], LINEAR_LIGHT[green[i]], LINEAR_LIGHT[blue[i]]
        x = _root(X_R * light_r + X_G * light_g + X_B * light_b)
        y = _root(Y_R * light_r + Y_G * light_g + Y_B * light_b)
        z = _root(Z_R * light_r + Z_G * light_g + Z_B * light_b)
        lightness[i] = _byte(scale * y - offset)
        a[i] = _byte(np.float32(500.0) * (x - y) + middle)
        b[i] = _byte(np.float32(200.0) * (y - z) + middle)


@njit
def _inverse(f):  # type: ignore[no-untyped-def]
    """X or Z of its f, truncated as in OpenCV's table; int32 throughout, or LLVM works on half as many at once."""
    line = np.int32(np.float32(np.int32(f * 108)) / np.float32(841.0)) - LINE_ZERO
    cube = np.int32(np.int32(np.int32(f * f) >> 14) * f) >> 14
    return np.int32(line) if f <= LINE_END else np.int32(cube)


@njit
def _level(x, y, z, by_x, by_y, by_z):  # type: ignore[no-untyped-def]
    """A channel's sRGB level from XYZ."""
    light = np.int32(np.int32(np.int32(by_x * x) + np.int32(by_y * y)) + np.int32(by_z * z))
    light = np.int32(light + BACK // 2) >> 14
    light = np.int32(0) if light < 0 else np.int32(light)
    return np.uint8(SRGB[np.uint32(np.int32(COEFFICIENT - 1) if light >= COEFFICIENT else light)])


@njit
def _to_rgb(lab):  # type: ignore[no-untyped-def]
    """LAB bytes to RGB bytes, in place; uint8 [3, P]."""
    first, second, third = lab[0], lab[1], lab[2]
    for i in range(len(first)):
        y, f = LIGHTNESS_Y[first[i]], LIGHTNESS_F[first[i]]
        a = np.int32(np.int32(second[i] * A_STEP + 128) >> 13) - A_ZERO
        b = np.int32(np.int32(third[i] * B_STEP + 16) >> 9) - B_ZERO
        x, z = _inverse(np.int32(f + a)), _inverse(np.int32(f - b))
        first[i] = _level(x, y, z, R_X, R_Y, R_Z)
        second[i] = _level(x, y, z, G_X, G_Y, G_Z)
        third[i] = _level(x, y, z, B_X, B_Y, B_Z)


@njit
def _count(plane, side, tiles):  # type: ignore[no-untyped-def]
    """Histograms int32 [256, tiles · tiles]; tiles may reach over the far borders, where the image is reflected."""
    size, bins = len(plane), np.zeros((LEVELS, tiles * tiles), np.int32)
    for x in range(tiles * side):
        line = plane[reflect(x, size)]
        for t in range(tiles):
            tile, first, end = x // side * tiles + t, t * side, (t + 1) * side
            for level in line[first:end]:
                bins[level, tile] += 1
            for y in range(max(first, size), end):
                bins[line[reflect(y, size)], tile] += 1
    return bins


@njit
def _clip(bins, limit):  # type: ignore[no-untyped-def]
    """Cut every bin at `limit`; what is cut goes back in equal shares, the rest to bins evenly spaced from 0."""
    excess = np.zeros(bins.shape[1], np.int32)
    for level in range(LEVELS):
        counts = bins[level]
        for tile in range(len(counts)):
            over = max(np.int32(0), np.int32(counts[tile] - limit))
            excess[tile] += over
            counts[tile] -= over
    for tile in range(len(excess)):
        rest = excess[tile] % LEVELS
        step = LEVELS // max(1, rest)
        for i in range(rest):
            bins[i * step, tile] += 1
    return excess // LEVELS


@njit
def _tables(plane, clip_limit, tiles):  # type: ignore[no-untyped-def]
    """Tables float32 [256, tiles · tiles] and the side of a tile; where the tiles do not divide S, S is padded.

    A level becomes 255 · the cumulated share of its tile's pixels, whole. Tiles are the last axis because a cumulated
    sum makes vectors only across them.
    """
    size = len(plane)
    side = size // tiles if size % tiles == 0 else size // tiles + 1
    bins = _count(plane, side, tiles)
    shares = _clip(bins, np.int32(max(1, int(clip_limit * (side * side) / LEVELS))))
    tables, totals = np.empty(bins.shape, np.float32), np.zeros(tiles * tiles, np.int32)
    scale = FULL / np.float32(side * side)
    for level in range(LEVELS):
        counts, table = bins[level], tables[level]
        for tile in range(len(totals)):
            totals[tile] += counts[tile] + shares[tile]
            table[tile] = min(nearest(np.float32(totals[tile]) * scale), FULL)
    return tables, side


@njit
def _between(position, side, tiles):  # type: ignore[no-untyped-def]
    """The tiles before and after a position (OpenCV takes tile centres half a pixel early), and the latter's weight."""
    place = np.float32(position) * (ONE / np.float32(side)) - HALF
    before = int(np.floor(place))
    return max(before, 0), min(before + 1, tiles - 1), place - np.float32(before)


@njit
def _interpolate(line, tables, tiles, across, before, after, weight):  # type: ignore[no-untyped-def]
    """Each level of `line` uint8 [S] through the tables of the four tiles around it, in place.

    Args:
        tables: float32 [256 · tiles · tiles].
        across: `_between` of the line; before, after uint32 [S], weight float32 [S]: of the pixels along it.
    """
    first, second, share = np.uint32(across[0] * tiles), np.uint32(across[1] * tiles), across[2]
    pitch = np.uint32(tiles * tiles)
    for y in range(len(line)):
        row = np.uint32(line[y]) * pitch
        a, b = np.uint32(row + before[y]), np.uint32(row + after[y])
        low = tables[a + first] * (ONE - share) + tables[a + second] * share
        high = tables[b + first] * (ONE - share) + tables[b + second] * share
        line[y] = np.uint8(np.int32(nearest(low * (ONE - weight[y]) + high * weight[y])))


@njit
def _equalise_plane(plane, clip_limit, tiles):  # type: ignore[no-untyped-def]
    """cv2.createCLAHE(clip_limit, (tiles, tiles)).apply, in place; plane uint8 [S, S] as [x, y]."""
    size = len(plane)
    tables, side = _tables(plane, clip_limit, tiles)
    before, after, weight = np.empty(size, np.uint32), np.empty(size, np.uint32), np.empty(size, np.float32)
    for y in range(size):
        before[y], after[y], weight[y] = _between(y, side, tiles)
    for x in range(size):
        _interpolate(plane[x], tables.reshape(-1), tiles, _between(x, side, tiles), before, after, weight)


@njit
def clahe(planes, clip_limit, tiles, out):  # type: ignore[no-untyped-def]
    """Equalise the lightness of transposed planes, as Albumentations.

    Args:
        planes, out: uint8 [3, S, S], [channel, x, y], distinct; `planes` is left as it is.
        clip_limit: in average bins of a tile's histogram.
        tiles: along each side.
    """
    size = planes.shape[1]
    _to_lab(planes.reshape((3, size * size)), out.reshape((3, size * size)))
    _equalise_plane(out[0], clip_limit, tiles)
    _to_rgb(out.reshape((3, size * size)))
