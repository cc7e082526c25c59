"""Gaussian blur, separable, in 16 bits, pixels at equal distances added before they are multiplied (`vectors.blur`).

A channel is copied into 16 bits with its borders mirrored above and below. Then both directions are the same weighted
sum, once with a line as the step and once with a pixel, a few lines at a time so that what lies between the two stays
in the first-level cache. In a sum a grey level is 128.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.augment.fused_cpu.memory import aligned, borrow, whole
from penstock.augment.fused_cpu.vectors import RUN, SHORTS, blur
from penstock.augment.jit import njit

BITS = np.uint16(7)
LINES = 16  # at a time
FAINT = 32  # a weight, in 1/65536, that in both directions together moves no pixel by half a level


class Lines(NamedTuple):
    """Memory that a thread needs to blur views of `size` pixels; sums are made in whole runs, which reach over the end.

    Attributes:
        lifted: uint16, a channel and the lines mirrored above and below it.
        across: uint16, LINES lines summed up in one direction, each with its mirrored ends.
    """

    lifted: NDArray[np.uint16]
    across: NDArray[np.uint16]


def allocate_lines(size: int) -> Lines:
    """Memory for one thread."""
    return Lines(
        lifted=aligned(3 * size * size + RUN, np.uint16),
        across=aligned(LINES * 3 * whole(size, RUN), np.uint16),
    )


@njit
def borrow_lines(lines):  # type: ignore[no-untyped-def]
    """The same on loan: see `memory.borrow`."""
    return Lines(borrow(lines.lifted), borrow(lines.across))


@njit
def fill_kernel(sigma, radius, weight):  # type: ignore[no-untyped-def]
    """weight uint16 [radius + 1]: [k] at distance k > 0 in 1/65536, [0] in 1/32768; they add up to exactly one."""
    total = 1.0
    for k in range(1, radius + 1):
        total += 2.0 * np.exp(-0.5 * (k / sigma) ** 2)
    centre = 32768
    for k in range(1, radius + 1):
        weight[k] = np.uint16(np.exp(-0.5 * (k / sigma) ** 2) / total * 65536.0 + 0.5)
        centre -= int(weight[k])
    weight[0] = np.uint16(centre)


@njit
def _copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(target)):
        target[i] = source[i]


@njit
def _lift(levels, lifted):  # type: ignore[no-untyped-def]
    for i in range(len(lifted)):
        lifted[i] = np.uint16(levels[i]) << BITS


@njit
def _lift_plane(plane, lifted, radius):  # type: ignore[no-untyped-def]
    """lifted [radius + S + radius, S] = the plane in 1/128, lines mirrored at the border, which is not repeated."""
    size = len(plane)
    _lift(plane.reshape(size * size), lifted[radius : radius + size].reshape(size * size))
    for k in range(1, radius + 1):
        _copy(lifted[radius + k], lifted[radius - k])
        _copy(lifted[radius + size - 1 - k], lifted[radius + size - 1 + k])


@njit
def _mirror_ends(line, begin, end, radius):  # type: ignore[no-untyped-def]
    for k in range(1, radius + 1):
        line[begin - k] = line[begin + k]
        line[end - 1 + k] = line[end - 1 - k]


@njit
def blur_plane(plane, weight, lines, out):  # type: ignore[no-untyped-def]
    """Blur one channel.

    Args:
        plane: uint8 [S, S].
        weight: uint16 [radius + 1] from `fill_kernel`; radius < S.
        lines: scratch.
        out: uint8 [S, S], another one. Up to RUN bytes after it are overwritten.
    """
    size, radius = len(plane), len(weight) - 1
    begin, levels = whole(radius, SHORTS), out.reshape(size * size)
    pitch, lifted, across = begin + whole(size + radius, SHORTS), lines.lifted, lines.across
    _lift_plane(plane, lifted[: (size + 2 * radius) * size].reshape((size + 2 * radius, size)), radius)
    for x in range(0, size, LINES):
        used = min(LINES, size - x)
        for line in range(used):
            for y in range(0, size, RUN):
                blur(lifted, (radius + x + line) * size + y, size, weight, across, line * pitch + begin + y)
        for line in range(used):
            _mirror_ends(across[line * pitch : (line + 1) * pitch], begin, begin + size, radius)
        for line in range(used):
            for y in range(0, size, RUN):
                blur(across, line * pitch + begin + y, 1, weight, levels, (x + line) * size + y)


@njit
def gaussian_blur(planes, sigma, radius, lines, out):  # type: ignore[no-untyped-def]
    """Blur three channels; planes, out uint8 [3, S, S], distinct; radius < S. Up to RUN bytes after `out` are lost."""
    weight = np.empty(radius + 1, np.uint16)
    fill_kernel(sigma, radius, weight)
    for channel in range(3):
        if radius == 0 or weight[1] < FAINT:
            _copy(planes[channel].reshape(planes[channel].size), out[channel].reshape(out[channel].size))
        else:
            blur_plane(planes[channel], weight, lines, out[channel])
