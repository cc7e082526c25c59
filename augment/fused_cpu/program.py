"""One row's program on one image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.augment.fused_cpu.blur import Lines, allocate_lines, borrow_lines, gaussian_blur
from penstock.augment.fused_cpu.clahe import clahe
from penstock.augment.fused_cpu.color import contrast, gray, hue, mean_luma, saturation
from penstock.augment.fused_cpu.filters import box_blur, sharpen
from penstock.augment.fused_cpu.memory import aligned, borrow
from penstock.augment.fused_cpu.pointwise import brightness_contrast, channel_shuffle, hsv_shift, solarize
from penstock.augment.fused_cpu.resample import Scratch, allocate_scratch, borrow_scratch, resize_crop
from penstock.augment.fused_cpu.scatter import coarse_dropout, gaussian_noise
from penstock.augment.fused_cpu.vectors import RUN
from penstock.augment.jit import njit
from penstock.augment.rows import Opcode

NONE, CROP = int(Opcode.NONE), int(Opcode.CROP)
HORIZONTAL_FLIP, VERTICAL_FLIP = int(Opcode.HORIZONTAL_FLIP), int(Opcode.VERTICAL_FLIP)
BRIGHTNESS, CONTRAST, SATURATION = int(Opcode.BRIGHTNESS), int(Opcode.CONTRAST), int(Opcode.SATURATION)
HUE, GRAY, SOLARIZE = int(Opcode.HUE), int(Opcode.GRAY), int(Opcode.SOLARIZE)
GAUSSIAN_BLUR, BOX_BLUR, SHARPEN = int(Opcode.GAUSSIAN_BLUR), int(Opcode.BOX_BLUR), int(Opcode.SHARPEN)
BRIGHTNESS_CONTRAST, CLAHE = int(Opcode.BRIGHTNESS_CONTRAST), int(Opcode.CLAHE)
CHANNEL_SHUFFLE, HSV_SHIFT = int(Opcode.CHANNEL_SHUFFLE), int(Opcode.HSV_SHIFT)
COARSE_DROPOUT, GAUSSIAN_NOISE = int(Opcode.COARSE_DROPOUT), int(Opcode.GAUSSIAN_NOISE)


class Workspace(NamedTuple):
    """What a thread works in.

    Attributes:
        crop, blur: scratch of these steps.
        starts: int64 [3 · S], scratch of the last one, `finish.upright`.
        planes, spare: uint8 [3, S, S], distinct, each with RUN bytes to spare after it.
    """

    crop: Scratch
    blur: Lines
    starts: NDArray[np.int64]
    planes: NDArray[np.uint8]
    spare: NDArray[np.uint8]


def allocate(size: int, longest: int, pixels: int) -> Workspace:
    """Memory for one thread, for views of `size` pixels out of images of up to `longest` a side."""
    planes, spare = (aligned(3 * size * size + RUN, np.uint8)[:-RUN].reshape(3, size, size) for _ in range(2))
    crop, lines = allocate_scratch(size, longest, pixels), allocate_lines(size)
    return Workspace(crop, lines, np.empty(3 * size, np.int64), planes, spare)


@njit
def borrow_workspace(work):  # type: ignore[no-untyped-def]
    """The same on loan: see `memory.borrow`."""
    crop, lines = borrow_scratch(work.crop), borrow_lines(work.blur)
    return Workspace(crop, lines, borrow(work.starts), borrow(work.planes), borrow(work.spare))


@njit
def _flip(planes, left_right, up_down):  # type: ignore[no-untyped-def]
    """Carry out flips that were only counted so far, in place."""
    size = planes.shape[1]
    for channel in range(3):
        if left_right:
            for x in range(size // 2):
                for y in range(size):
                    a, b = planes[channel, x, y], planes[channel, size - 1 - x, y]
                    planes[channel, x, y], planes[channel, size - 1 - x, y] = b, a
        if up_down:
            for x in range(size):
                for y in range(size // 2):
                    a, b = planes[channel, x, y], planes[channel, x, size - 1 - y]
                    planes[channel, x, y], planes[channel, x, size - 1 - y] = b, a


@njit
def _pointwise(pixels, opcode, values):  # type: ignore[no-untyped-def]
    """An operation that takes each pixel on its own, in place; pixels uint8 [3, S·S]."""
    value = values[0]
    if opcode == BRIGHTNESS:
        contrast(pixels, value, 0.0)
    elif opcode == CONTRAST:
        contrast(pixels, value, mean_luma(pixels))
    elif opcode == SATURATION:
        saturation(pixels, value)
    elif opcode == HUE:
        hue(pixels, value)
    elif opcode == GRAY:
        gray(pixels)
    elif opcode == SOLARIZE:
        solarize(pixels, value)
    elif opcode == BRIGHTNESS_CONTRAST:
        brightness_contrast(pixels, value, values[1])
    elif opcode == CHANNEL_SHUFFLE:
        channel_shuffle(pixels, int(value), int(values[1]), int(values[2]))
    elif opcode == HSV_SHIFT:
        hsv_shift(pixels, value, values[1], values[2])


@njit
def _neighbourhood(planes, opcode, values, lines, out):  # type: ignore[no-untyped-def]
    """An operation that looks around each pixel, from planes into `out`; whether it was one."""
    if opcode == GAUSSIAN_BLUR:
        gaussian_blur(planes, values[0], int(values[1]), lines, out)
    elif opcode == BOX_BLUR:
        box_blur(planes, int(values[0]), out)
    elif opcode == SHARPEN:
        sharpen(planes, values[0], values[1], out)
    elif opcode == CLAHE:
        clahe(planes, values[0], int(values[1]), out)
    else:
        return False
    return True


@njit
def _scattered(planes, opcode, values, seed):  # type: ignore[no-untyped-def]
    """An operation that draws numbers from its seed, in place; whether it was one."""
    if opcode == COARSE_DROPOUT:
        coarse_dropout(planes, seed, int(values[0]), int(values[1]), int(values[2]), values[3])
    elif opcode == GAUSSIAN_NOISE:
        gaussian_noise(planes, seed, values[0])
    else:
        return False
    return True


@njit
def run_program(rows, height, width, opcode, parameters, seed, work):  # type: ignore[no-untyped-def]
    """Run one row's program.

    Args:
        rows: uint8, flat: begins with an image [height, width, 3], and goes on to the end of its buffer.
        opcode: int32 [K]; parameters: float32 [K, 8]; seed: uint64 [K].
        work: scratch; `work.planes` holds the view already if the first slot is no CROP.

    Returns:
        The planes that hold the view, transposed [channel, x, y], the others, and whether the view is to be flipped
        left to right and upside down.
    """
    planes, spare, left_right, up_down = work.planes, work.spare, False, False
    size = planes.shape[1]
    for k in range(len(opcode)):
        values = parameters[k]
        if opcode[k] == NONE:
            break
        if (left_right or up_down) and opcode[k] in (CLAHE, COARSE_DROPOUT, GAUSSIAN_NOISE):
            _flip(planes, left_right, up_down)  # these give something else before a flip; OpenCV's CLAHE is lopsided
            left_right, up_down = False, False
        if opcode[k] == CROP:
            resize_crop(rows, height, width, values, work.crop, planes)
        elif opcode[k] == HORIZONTAL_FLIP:
            left_right = not left_right
        elif opcode[k] == VERTICAL_FLIP:
            up_down = not up_down
        elif _neighbourhood(planes, opcode[k], values, work.blur, spare):
            planes, spare = spare, planes
        elif not _scattered(planes, opcode[k], values, seed[k]):
            _pointwise(planes.reshape((3, size * size)), opcode[k], values)
    return planes, spare, left_right, up_down
