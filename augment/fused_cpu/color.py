"""Brightness, contrast, saturation, hue and gray, in place, whichever way the pixels are ordered.

Each is one pass in 16 bits (`fixed.py`) over planes that lie in the second-level cache, uint8 [3, P]. Results are
truncated to whole grey levels, as torchvision's uint8 operations are.
"""

from __future__ import annotations

import numpy as np

from penstock.augment.fused_cpu.fixed import BYTE, high, less, lift
from penstock.augment.jit import njit

# ITU-R 601 luma as torchvision rounds it, in 1/65536
RED, GREEN, BLUE = (np.uint16(round(share * 65536)) for share in (0.2989, 0.587, 0.114))
LINE = 4096  # pixels whose luma is added up in 32 bits
SIXTEENTHS = np.uint16(4)


@njit
def _luma(r, g, b):  # type: ignore[no-untyped-def]
    """Luma of three lifted levels, truncated."""
    return np.uint16(np.uint16(high(r, RED) + high(g, GREEN) + high(b, BLUE)) >> BYTE)


@njit
def _weight(factor):  # type: ignore[no-untyped-def]
    """(weight, unit) of a factor: high(lift(level), weight) is level · factor, where `unit` is one level.

    The unit is 128, and half of that for each doubling of the factor above 2, so that the product fits.
    """
    weight, unit = factor * 32768.0, 128
    while weight >= 65535.5 and unit > 2:
        weight, unit = weight * 0.5, unit // 2
    return np.uint16(min(weight + 0.5, 65535.0)), unit


@njit
def _split(value):  # type: ignore[no-untyped-def]
    """What is to be added and what is to be taken away, uint16, where `value` is."""
    return np.uint16(max(value, 0.0) + 0.5), np.uint16(min(max(-value, 0.0) + 0.5, 65535.0))


@njit
def _blend(lifted, weight, added, taken, white, to_level):  # type: ignore[no-untyped-def]
    """A lifted level times the weight, plus and minus something, clamped to black and white, truncated to a byte."""
    value = less(np.uint16(high(lifted, weight) + added), taken)
    return np.uint8(high(min(value, white), to_level))


@njit
def contrast(planes, factor, mean):  # type: ignore[no-untyped-def]
    """factor · level + (1 - factor) · mean. Brightness is contrast around a mean of 0."""
    weight, unit = _weight(factor)
    added, taken = _split((1.0 - factor) * mean * unit)
    white, to_level = np.uint16(255 * unit), np.uint16(65536 // unit)
    for channel in range(3):
        plane = planes[channel]
        for i in range(len(plane)):
            plane[i] = _blend(lift(plane[i]), weight, added, taken, white, to_level)


@njit
def mean_luma(planes):  # type: ignore[no-untyped-def]
    """Mean of the truncated luma, around which torchvision's contrast turns."""
    total = 0
    for start in range(0, planes.shape[1], LINE):
        end = min(start + LINE, planes.shape[1])
        total += _sum_luma(planes[0, start:end], planes[1, start:end], planes[2, start:end])
    return np.float64(total) / planes.shape[1]


@njit
def _sum_luma(r, g, b):  # type: ignore[no-untyped-def]
    total = np.uint32(0)
    for i in range(len(r)):
        total = np.uint32(total + _luma(lift(r[i]), lift(g[i]), lift(b[i])))
    return total


@njit
def saturation(planes, factor):  # type: ignore[no-untyped-def]
    """factor · level + (1 - factor) · luma."""
    weight, unit = _weight(factor)
    added, taken = _split((1.0 - factor) * unit * 256.0)
    white, to_level = np.uint16(255 * unit), np.uint16(65536 // unit)
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        r, g, b = lift(red[i]), lift(green[i]), lift(blue[i])
        luma = lift(_luma(r, g, b))
        more, fewer = high(luma, added), high(luma, taken)
        red[i] = _blend(r, weight, more, fewer, white, to_level)
        green[i] = _blend(g, weight, more, fewer, white, to_level)
        blue[i] = _blend(b, weight, more, fewer, white, to_level)


@njit
def gray(planes):  # type: ignore[no-untyped-def]
    """Each channel becomes the luma."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        level = np.uint8(_luma(lift(red[i]), lift(green[i]), lift(blue[i])))
        red[i], green[i], blue[i] = level, level, level


@njit
def _wrap(value, turn):  # type: ignore[no-untyped-def]
    """value modulo a turn, for less than two turns: what would be negative wraps around and is not the smaller."""
    return min(value, np.uint16(value - turn))


@njit
def _channel(value, turned, sixths, chroma):  # type: ignore[no-untyped-def]
    """A channel's byte from HSV in sixteenths of a level.

    The channel lacks clamp(min(k, 4·chroma - k), 0, chroma) of the value, where k is the hue times the chroma, and so
    many sixths of a turn on. torchvision takes 255.999 for 255 when it truncates to bytes, hence the value / 256.
    """
    k = _wrap(np.uint16(turned + np.uint16(sixths * chroma)), np.uint16(6 * chroma))
    lack = min(min(k, less(np.uint16(4 * chroma), k)), chroma)
    level = np.uint16(value - lack)
    return np.uint8(np.uint16(level + (level >> BYTE)) >> SIXTEENTHS)


@njit
def hue(planes, shift):  # type: ignore[no-untyped-def]
    """Turn the hue by `shift` turns.

    Value and chroma of HSV (Smith 1978) stay, and each channel lacks a piecewise linear share of the chroma. Multiplied
    by the chroma, a hue needs no division: in sixths of a turn it is a difference of two channels and whole chromas.
    """
    share = np.uint16((shift - np.floor(shift)) * 6.0 * 4096.0 + 0.5)
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        r, g, b = np.uint16(red[i]), np.uint16(green[i]), np.uint16(blue[i])
        value = max(max(r, g), b)
        span = np.uint16(value - min(min(r, g), b))
        if value == r:
            hue = np.uint16(g - b) if g >= b else np.uint16(6 * span + g - b)
        elif value == g:
            hue = np.uint16(2 * span + b - r)
        else:
            hue = np.uint16(4 * span + r - g)
        chroma, value = np.uint16(span << SIXTEENTHS), np.uint16(value << SIXTEENTHS)
        turned = np.uint16(np.uint16(hue << SIXTEENTHS) + high(np.uint16(chroma << SIXTEENTHS), share))
        turned = _wrap(turned, np.uint16(6 * chroma))
        red[i] = _channel(value, turned, 5, chroma)
        green[i] = _channel(value, turned, 3, chroma)
        blue[i] = _channel(value, turned, 1, chroma)
