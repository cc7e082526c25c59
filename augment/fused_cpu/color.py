"""Brightness, contrast, saturation, hue and gray, in the drawn order, in one pass over the pixels.

A pass works through blocks that stay in the first-level cache: bytes become floats once, every operation of the run
is applied in place, bytes are written once. Each operation truncates to whole grey levels, as torchvision's uint8
operations do. Contrast needs the mean grey of what came before it, so it can only begin a run; the pass before it
adds that mean up.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.jit import njit
from penstock.augment.rows import Opcode

BLOCK = 1024  # pixels: three float32 channels and a byte each are 15 KB
BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY = (
    int(o) for o in (Opcode.BRIGHTNESS, Opcode.CONTRAST, Opcode.SATURATION, Opcode.HUE, Opcode.GRAY)
)
ZERO, FULL = np.float32(0.0), np.float32(255.0)
# ITU-R 601 luma as torchvision rounds it
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)


@njit
def _level(value):  # type: ignore[no-untyped-def]
    """Clamp to 0 … 255 and truncate to a whole level, in float32."""
    value = ZERO if value < ZERO else value
    value = FULL if value > FULL else value
    return np.float32(np.int32(value))


@njit
def _luma(r, g, b):  # type: ignore[no-untyped-def]
    return np.float32(np.int32(RED * r + GREEN * g + BLUE * b))


@njit
def _scale(channel, factor, offset):  # type: ignore[no-untyped-def]
    for i in range(len(channel)):
        channel[i] = _level(factor * channel[i] + offset)


@njit
def _saturate(r, g, b, factor):  # type: ignore[no-untyped-def]
    rest = np.float32(1.0) - factor
    for i in range(len(r)):
        gray = rest * _luma(r[i], g[i], b[i])
        r[i] = _level(factor * r[i] + gray)
        g[i] = _level(factor * g[i] + gray)
        b[i] = _level(factor * b[i] + gray)


@njit
def _gray(r, g, b):  # type: ignore[no-untyped-def]
    for i in range(len(r)):
        gray = _luma(r[i], g[i], b[i])
        r[i], g[i], b[i] = gray, gray, gray


@njit
def _sector(k):  # type: ignore[no-untyped-def]
    """How much of the chroma a channel lacks, k sixths of a turn from where it is fullest: clamp(min(k, 4-k), 0, 1)."""
    k = k - np.float32(6.0) if k >= np.float32(6.0) else k
    k = k - np.float32(6.0) if k >= np.float32(6.0) else k
    other = np.float32(4.0) - k
    k = other if other < k else k
    k = ZERO if k < ZERO else k
    return np.float32(1.0) if k > np.float32(1.0) else k


@njit
def _hue(r, g, b, shift):  # type: ignore[no-untyped-def]
    """Turn the hue by `shift` turns. HSV value and chroma stay (Smith 1978), so only the hue itself is computed."""
    turn = np.float32(6.0) * (shift - np.floor(shift))
    to_byte = np.float32(255.999 / 255.0)  # torchvision's float → uint8 conversion
    for i in range(len(r)):
        red, green, blue = r[i], g[i], b[i]
        high = red if red > green else green
        high = blue if blue > high else high
        low = red if red < green else green
        low = blue if blue < low else low
        chroma = high - low
        inverse = np.float32(1.0) / (chroma if chroma > ZERO else np.float32(1.0))
        from_red = (green - blue) * inverse
        from_red = from_red + np.float32(6.0) if from_red < ZERO else from_red
        from_green = np.float32(2.0) + (blue - red) * inverse
        from_blue = np.float32(4.0) + (red - green) * inverse
        hue = from_green if high == green else from_blue
        hue = from_red if high == red else hue
        hue += turn
        hue = hue - np.float32(6.0) if hue >= np.float32(6.0) else hue
        r[i] = _level((high - chroma * _sector(hue + np.float32(5.0))) * to_byte)
        g[i] = _level((high - chroma * _sector(hue + np.float32(3.0))) * to_byte)
        b[i] = _level((high - chroma * _sector(hue + np.float32(1.0))) * to_byte)


@njit
def _apply(r, g, b, opcode, value, mean):  # type: ignore[no-untyped-def]
    if opcode in (BRIGHTNESS, CONTRAST):
        offset = (np.float32(1.0) - value) * mean if opcode == CONTRAST else ZERO
        _scale(r, value, offset)
        _scale(g, value, offset)
        _scale(b, value, offset)
    elif opcode == SATURATION:
        _saturate(r, g, b, value)
    elif opcode == HUE:
        _hue(r, g, b, value)
    elif opcode == GRAY:
        _gray(r, g, b)


@njit
def _load(plane, channel):  # type: ignore[no-untyped-def]
    for i in range(len(channel)):
        channel[i] = np.float32(plane[i])


@njit
def _store(channel, plane):  # type: ignore[no-untyped-def]
    for i in range(len(channel)):
        plane[i] = np.uint8(np.int32(channel[i]))


@njit
def mean_gray(planes):  # type: ignore[no-untyped-def]
    """Mean of the truncated luma, as torchvision's contrast takes it; planes uint8 [3, P]."""
    red, green, blue = planes[0], planes[1], planes[2]
    total = 0
    for i in range(len(red)):
        total += int(_luma(np.float32(red[i]), np.float32(green[i]), np.float32(blue[i])))
    return np.float32(total / len(red))


@njit
def color_run(planes, opcodes, values):  # type: ignore[no-untyped-def]
    """Apply a run of pointwise operations in place.

    Args:
        planes: uint8 [3, P], any order of pixels.
        opcodes: int32 [R]; CONTRAST only as the first.
        values: float32 [R], factor or shift.
    """
    mean = mean_gray(planes) if opcodes[0] == CONTRAST else ZERO
    block = np.empty((3, BLOCK), np.float32)
    pixels = planes.shape[1]
    for start in range(0, pixels, BLOCK):
        n = min(BLOCK, pixels - start)
        r, g, b = block[0, :n], block[1, :n], block[2, :n]
        _load(planes[0, start : start + n], r)
        _load(planes[1, start : start + n], g)
        _load(planes[2, start : start + n], b)
        for k in range(len(opcodes)):
            _apply(r, g, b, opcodes[k], values[k], mean)
        _store(r, planes[0, start : start + n])
        _store(g, planes[1, start : start + n])
        _store(b, planes[2, start : start + n])
