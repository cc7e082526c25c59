"""From lines of Y, Cb and Cr to RGB, bit for bit as libjpeg does it: with smooth chroma ("fancy upsampling").

A sample of chroma halfway between two luma samples is a mean of its neighbours, three to one (a triangle filter): in
each direction in which chroma is coarser. Beyond an edge the neighbour is the sample itself, which the caller sees to.

    R = Y + 1.402 (Cr - 128)
    G = Y - 0.344136 (Cb - 128) - 0.714136 (Cr - 128)
    B = Y + 1.772 (Cb - 128)
"""

from __future__ import annotations

from typing import Any

from penstock.loaders.jpeg.lanes import BYTE, INT, SHORT, Lanes, Memory, emitted

PIXELS = 32  # converted at once
SAMPLES = 32  # of chroma, made finer at once
HALF = 1 << 15
# The factors times 2 ** 16, less whole numbers that are added instead, so that they fit into 16 bits.
RED_CR = 91881 - (1 << 16)
BLUE_CB = 116130 - (2 << 16)
GREEN_CB = -22554
GREEN_CR = -46802 + (1 << 16)


@emitted()
def to_rgb(planes: Memory, y: Any, lines: Memory, cb: Any, cr: Any, out: Memory, to: Any) -> None:
    """Convert PIXELS from byte y of the planes and bytes cb, cr of the lines on."""
    luma = planes.at(y).load(BYTE, PIXELS).unsigned(SHORT)
    blue, red = (lines.at(at).load(BYTE, PIXELS).unsigned(SHORT) - 128 for at in (cb, cr))
    mixed = (blue.unsigned(INT) | red.unsigned(INT) << 16).as_lanes(SHORT)
    green = mixed.signed(INT)
    green *= green.constants([GREEN_CB, GREEN_CR] * PIXELS)
    green = green.pick(range(0, 2 * PIXELS, 2)) + green.pick(range(1, 2 * PIXELS, 2)) + HALF >> 16
    _store_rgb(
        luma + red + _rounded(red, RED_CR),
        luma - red + green.low(SHORT),
        luma + blue + blue + _rounded(blue, BLUE_CB),
        out.at(to),
    )


def _rounded(lanes: Lanes, factor: int) -> Lanes:
    """lanes * factor / 2 ** 16, rounded: twice that, rounded down, is the high half of a product."""
    return ((lanes + lanes).signed(INT) * factor >> 16).low(SHORT) + 1 >> 1


def _store_rgb(red: Lanes, green: Lanes, blue: Lanes, out: Memory) -> None:
    red, green, blue = (channel.clamp(0, 255).low(BYTE) for channel in (red, green, blue))
    first, last = red.join(green), blue.join(blue)
    places = [channel * PIXELS + pixel for pixel in range(PIXELS) for channel in range(3)]
    for start in range(0, 3 * PIXELS, PIXELS):
        out.at(start).store(first.pick(places[start : start + PIXELS], last))


@emitted()
def grey_to_rgb(planes: Memory, y: Any, out: Memory, to: Any) -> None:
    luma = planes.at(y).load(BYTE, PIXELS)
    for start in range(0, 3 * PIXELS, PIXELS):
        out.at(to).at(start).store(luma.pick([i // 3 for i in range(start, start + PIXELS)]))


@emitted()
def finer_across(planes: Memory, near: Any, lines: Memory, to: Any) -> None:
    """4:2:2: twice SAMPLES from byte `near` on, whose neighbours lie around them."""
    left, middle, right = (planes.at(near).at(d).load(BYTE, SAMPLES).unsigned(SHORT) for d in (-1, 0, 1))
    _store_finer(middle * 3 + left + 1 >> 2, middle * 3 + right + 2 >> 2, lines.at(to))


@emitted()
def finer_both(planes: Memory, near: Any, far: Any, lines: Memory, to: Any) -> None:
    """4:2:0: twice SAMPLES of the line between `near` and `far`, three times nearer to the first."""
    left, middle, right = (_column_sums(planes, near, far, d) for d in (-1, 0, 1))
    _store_finer(middle * 3 + left + 8 >> 4, middle * 3 + right + 7 >> 4, lines.at(to))


def _column_sums(planes: Memory, near: Any, far: Any, shift: int) -> Lanes:
    upper, lower = (planes.at(at).at(shift).load(BYTE, SAMPLES).unsigned(SHORT) for at in (near, far))
    return upper * 3 + lower


def _store_finer(even: Lanes, odd: Lanes, out: Memory) -> None:
    out.store(even | odd << 8)


@emitted()
def finer_down(planes: Memory, near: Any, far: Any, bias: Any, lines: Memory, to: Any) -> None:
    """4:4:0: SAMPLES of the line between `near` and `far`; the bias is 1 above the near one and 2 below."""
    sums = _column_sums(planes, near, far, 0) + Lanes.repeated(planes.builder, bias, SHORT, SAMPLES)
    lines.at(to).store((sums >> 2).low(BYTE))
