"""Rows: what was drawn for each view, as a small program that any executor can run.

A row is K slots `(opcode, parameters[8], seed)`, in the order in which they apply; unused slots are NONE and come last.
The first slot is always a CROP, which turns the source image into the S×S view; all others keep its size.
Grey levels are 0 … 255.

| opcode | parameters | uses the seed |
|---|---|---|
| CROP | top, left, height, width in source pixels; interpolation (an `Interpolation`); antialias 0 or 1 | |
| HORIZONTAL_FLIP, VERTICAL_FLIP | | |
| BRIGHTNESS, CONTRAST, SATURATION | factor, 1 changes nothing | |
| HUE | shift in turns, -0.5 … 0.5 | |
| GRAY | | |
| GAUSSIAN_BLUR | sigma in pixels; radius of the kernel in pixels (2·radius + 1 taps), under S | |
| SOLARIZE | threshold: levels at or above it are inverted | |
| BRIGHTNESS_CONTRAST | factor; levels added after it | |
| CLAHE | clip limit; tiles along each side | |
| BOX_BLUR | radius in pixels, under S | |
| SHARPEN | alpha, share of the sharpened image; lightness, added to the kernel's centre | |
| CHANNEL_SHUFFLE | the source channel (0, 1, 2) of red, of green, of blue | |
| HSV_SHIFT | hue in units of 2 degrees (a turn is 180); saturation, value in levels | |
| COARSE_DROPOUT | holes; height, width of a hole in pixels, at most S; fill level | corners (`fields.hole`) |
| GAUSSIAN_NOISE | sigma in levels | one normal value per pixel and channel (`fields.normal`) |
| ALBUMENTATIONS | which of the recipe's `foreign` transforms | through `set_random_seed` |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

PARAMETERS = 8


class Opcode(IntEnum):
    NONE = 0
    CROP = 1
    HORIZONTAL_FLIP = 2
    VERTICAL_FLIP = 3
    BRIGHTNESS = 4
    CONTRAST = 5
    SATURATION = 6
    HUE = 7
    GRAY = 8
    GAUSSIAN_BLUR = 9
    SOLARIZE = 10
    BRIGHTNESS_CONTRAST = 11
    CLAHE = 12
    BOX_BLUR = 13
    SHARPEN = 14
    CHANNEL_SHUFFLE = 15
    HSV_SHIFT = 16
    COARSE_DROPOUT = 17
    GAUSSIAN_NOISE = 18
    ALBUMENTATIONS = 19


class Interpolation(IntEnum):
    """BICUBIC is Keys' kernel, with a = -0.5 when antialiased (PIL, torch) and a = -0.75 when not (cv2, torch)."""

    BILINEAR = 0
    BICUBIC = 1


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The programs of V views of N images.

    Attributes:
        opcode: int32 [V, N, K], `Opcode`s.
        parameters: float32 [V, N, K, 8].
        seed: uint64 [V, N, K], for operations that need a field of numbers (noise, holes), drawn from it alone.
    """

    opcode: NDArray[np.int32]
    parameters: NDArray[np.float32]
    seed: NDArray[np.uint64]

    def views(self, which: slice, samples: slice = slice(None)) -> Rows:
        """The programs of some of the views (and samples); shares memory."""
        part = which, samples
        return Rows(opcode=self.opcode[part], parameters=self.parameters[part], seed=self.seed[part])

    def boxes(self) -> NDArray[np.int64]:
        """int64 [N, 4]: the smallest part of each image that holds all its crops: top, left, bottom, right."""
        top, left, height, width = np.moveaxis(self.parameters[:, :, 0, :4].astype(np.int64), -1, 0)
        first, last = (top.min(0), left.min(0)), ((top + height).max(0), (left + width).max(0))
        return np.stack([*first, *last], axis=1)

    def program(self, view: int, sample: int) -> list[tuple[Opcode, NDArray[np.float32], int]]:
        """The used slots of one row, in order."""
        opcodes, parameters, seeds = self.opcode[view, sample], self.parameters[view, sample], self.seed[view, sample]
        return [(Opcode(o), p, int(s)) for o, p, s in zip(opcodes, parameters, seeds, strict=True) if o != Opcode.NONE]
