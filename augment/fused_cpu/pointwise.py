"""Albumentations' pointwise operations, in place: solarize, brightness-contrast, channel shuffle, HSV shift.

All arithmetic, no tables: LLVM makes vectors of it, while a table of bytes is read one pixel at a time.
Planes are uint8 [3, P], in any order of pixels.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.jit import njit

BLOCK = 1024  # pixels that a shuffle holds aside
ZERO, HALF, ONE, FULL = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(255.0)
INVERSE = np.float32(1.0) / FULL
TURN = np.float32(180.0)  # 8-bit hue counts in units of 2 degrees
SIXTH, TO_SIXTHS = np.float32(30.0), np.float32(6.0) / TURN
# OpenCV divides by multiplying with a rounded 12-bit reciprocal; every product stays under 2**24, exact in float32.
FRACTION, FRACTION_HALF, FRACTION_INVERSE = np.float32(4096.0), np.float32(2048.0), np.float32(1.0 / 4096.0)


@njit
def _truncate(value):  # type: ignore[no-untyped-def]
    return np.float32(np.int32(value))


@njit
def _clamp(value, low, high):  # type: ignore[no-untyped-def]
    value = low if value < low else value
    return high if value > high else value


@njit
def solarize(planes, threshold):  # type: ignore[no-untyped-def]
    """Invert levels at or above `threshold`."""
    if threshold > FULL:
        return
    limit = np.uint8(max(0, np.ceil(threshold)))
    for channel in range(3):
        plane = planes[channel]
        for i in range(len(plane)):
            level = plane[i]
            plane[i] = ~level if level >= limit else level


@njit
def brightness_contrast(planes, factor, offset):  # type: ignore[no-untyped-def]
    """level = factor·level + offset in float32, clamped and truncated, as albucore's table has it."""
    for channel in range(3):
        plane = planes[channel]
        for i in range(len(plane)):
            plane[i] = np.uint8(np.int32(_clamp(factor * np.float32(plane[i]) + offset, ZERO, FULL)))


@njit
def _copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(target)):  # a memcpy, which numba's slice assignment is not
        target[i] = source[i]


@njit
def channel_shuffle(planes, red, green, blue):  # type: ignore[no-untyped-def]
    """Each plane takes the one whose number is given for it, 0, 1 or 2."""
    sources, held = (red, green, blue), np.empty((3, BLOCK), np.uint8)
    pixels = planes.shape[1]
    for start in range(0, pixels, BLOCK):
        n = min(BLOCK, pixels - start)
        for channel in range(3):
            _copy(planes[channel, start : start + n], held[channel, :n])
        for channel in range(3):
            _copy(held[sources[channel], :n], planes[channel, start : start + n])


@njit
def _to_hsv(red, green, blue):  # type: ignore[no-untyped-def]
    """OpenCV's 8-bit HSV of whole levels: hue 0 … 179, saturation and value 0 … 255, all whole, float32."""
    value = red if red > green else green
    value = blue if blue > value else value
    low = red if red < green else green
    low = blue if blue < low else low
    chroma = value - low
    per_value = _truncate(FULL * FRACTION / (value if value > ZERO else ONE) + HALF)
    saturation = _truncate((chroma * per_value + FRACTION_HALF) * FRACTION_INVERSE)
    from_green, from_blue = blue - red + np.float32(2.0) * chroma, red - green + np.float32(4.0) * chroma
    hue = from_green if value == green else from_blue
    hue = green - blue if value == red else hue
    per_chroma = _truncate(SIXTH * FRACTION / (chroma if chroma > ZERO else ONE) + HALF)
    hue = hue * per_chroma + FRACTION_HALF
    hue = hue + TURN * FRACTION if hue < ZERO else hue
    return _truncate(hue * FRACTION_INVERSE), saturation, value


@njit
def _from_hsv(lack, saturation, value):  # type: ignore[no-untyped-def]
    """A channel's level; `lack` is the share of the chroma that the hue keeps from it. OpenCV truncates."""
    return np.uint8(np.int32(value * (ONE - saturation * _clamp(lack, ZERO, ONE)) * FULL))


@njit
def hsv_shift(planes, hue, saturation, value):  # type: ignore[no-untyped-def]
    """Add to hue (units of 2 degrees, modulo a turn), saturation and value (levels, clamped); grays stay gray.

    Albumentations rounds the shift of the hue down and the others towards zero. OpenCV truncates the result where it
    works on vectors, as here, and rounds it in the S mod 32 pixels that are left over in a row.
    """
    if hue == 0 and saturation == 0 and value == 0:
        return  # nothing is asked for, so not even the rounding of a round trip
    turn = np.float32(np.floor(hue) - TURN * np.floor(np.floor(hue) / TURN))
    more_saturation, more_value = np.float32(np.trunc(saturation)), np.float32(np.trunc(value))
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        h, s, v = _to_hsv(np.float32(red[i]), np.float32(green[i]), np.float32(blue[i]))
        h = h + turn
        h = (h - TURN if h >= TURN else h) * TO_SIXTHS
        s = (_clamp(s + more_saturation, ZERO, FULL) if s > ZERO else ZERO) * INVERSE
        v = _clamp(v + more_value, ZERO, FULL) * INVERSE
        red[i] = _from_hsv(min(h - ONE, np.float32(5.0) - h), s, v)
        green[i] = _from_hsv(max(ONE - h, h - np.float32(3.0)), s, v)
        blue[i] = _from_hsv(max(np.float32(3.0) - h, h - np.float32(5.0)), s, v)
