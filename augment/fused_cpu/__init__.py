"""The fused CPU executor: a decoded image in, every view out, in compiled code that releases the GIL.

The view lives as transposed uint8 planes `[channel][x][y]` from the crop to the last step. Flips commute with all
that is done here, so they are only counted and carried out as the view is written. Normalisation is a table of 256
values per channel, in the output's own bits: exact for any output type, and a byte read instead of arithmetic.

Parity with the reference is within one grey level per operation (`tests/test_fused_cpu.py` states each).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.fused_cpu.blur import blur_plane
from penstock.augment.fused_cpu.color import BRIGHTNESS, CONTRAST, GRAY, color_run
from penstock.augment.fused_cpu.resample import resize_crop
from penstock.augment.jit import njit
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Recipe,
)
from penstock.augment.rows import Interpolation, Opcode, Rows

CROP, FLIP, BLUR, NONE = int(Opcode.CROP), int(Opcode.FLIP), int(Opcode.BLUR), int(Opcode.NONE)
BITS = {
    torch.float32: (torch.int32, np.uint32),
    torch.float16: (torch.int16, np.uint16),
    torch.bfloat16: (torch.int16, np.uint16),
}


@njit
def _is_color(opcode):  # type: ignore[no-untyped-def]
    return BRIGHTNESS <= opcode <= GRAY


@njit
def run_row(image, opcode, parameters, planes, spare):  # type: ignore[no-untyped-def]
    """Run one row's program.

    Args:
        image: uint8 [H, W, 3].
        opcode: int32 [K]; parameters: float32 [K, 8].
        planes, spare: uint8 [3, S, S], distinct scratch.

    Returns:
        The planes that hold the view, transposed [channel, x, y], and whether it is to be flipped.
    """
    size, flipped, k = planes.shape[1], False, 0
    while k < len(opcode) and opcode[k] != NONE:
        values = parameters[k]
        if _is_color(opcode[k]):
            end = k + 1
            while end < len(opcode) and _is_color(opcode[end]) and opcode[end] != CONTRAST:
                end += 1
            color_run(planes.reshape((3, size * size)), opcode[k:end], parameters[k:end, 0])
            k = end
            continue
        if opcode[k] == CROP:
            box = (int(values[0]), int(values[1]), int(values[2]), int(values[3]))
            resize_crop(image, box, values[5] != 0, planes)
        elif opcode[k] == FLIP:
            flipped = not flipped
        elif opcode[k] == BLUR:
            for channel in range(3):
                blur_plane(planes[channel], values[0], int(values[1]), spare[channel])
            planes, spare = spare, planes
        k += 1
    return planes, flipped


@njit
def _write(planes, flipped, table, out):  # type: ignore[no-untyped-def]
    """out [S, S, 3] (rows, columns, channels; the output type's bits) = table[channel, byte], turned upright."""
    size = planes.shape[1]
    for y in range(size):
        row = out[y]
        for x in range(size):
            column = size - 1 - x if flipped else x
            row[x, 0] = table[0, planes[0, column, y]]
            row[x, 1] = table[1, planes[1, column, y]]
            row[x, 2] = table[2, planes[2, column, y]]


@njit
def _run(data, offset, height, width, opcode, parameters, table, out, first, second):  # type: ignore[no-untyped-def]
    """Every view of every image; out [V, N, S, S, 3]; first, second: uint8 [3, S, S] scratch."""
    for n in range(len(offset)):
        image = data[offset[n] : offset[n] + height[n] * width[n] * 3].reshape((height[n], width[n], 3))
        for view in range(opcode.shape[0]):
            planes, flipped = run_row(image, opcode[view, n], parameters[view, n], first, second)
            _write(planes, flipped, table, out[view, n])


@lru_cache(maxsize=16)
def _table(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> NDArray[np.unsignedinteger]:
    """[3, 256]: the bits of each normalised byte, computed as the reference does."""
    levels = torch.arange(256, dtype=torch.float32).div_(255)
    values = torch.stack([(levels - m) / s for m, s in zip(torch.tensor(mean), torch.tensor(std), strict=True)])
    return values.to(dtype).view(BITS[dtype][0]).numpy().view(BITS[dtype][1])


def covers(recipe: Recipe) -> bool:
    """Whether every operation of the recipe has a fused kernel."""
    crop, *others = recipe.operations
    fused_crop = isinstance(crop, RandomResizedCrop | CenterCrop) and crop.interpolation == Interpolation.BILINEAR
    return fused_crop and all(
        isinstance(other, HorizontalFlip | ColorJitter | Grayscale | GaussianBlur) for other in others
    )


def fused_cpu(pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
    """Run every row: fill `out` [V, N, 3, S, S] (float32, float16 or bfloat16, channels-last) with normalised views."""
    table = _table(recipe.mean, recipe.std, out.dtype)
    bits = out.permute(0, 1, 3, 4, 2).view(BITS[out.dtype][0]).numpy().view(BITS[out.dtype][1])
    first, second = np.empty((2, 3, recipe.size, recipe.size), np.uint8)
    _run(
        pixels.data,
        pixels.offset,
        pixels.height,
        pixels.width,
        rows.opcode,
        rows.parameters,
        table,
        bits,
        first,
        second,
    )
