"""Rows: what was drawn for each view, as a small program that any executor can run.

A row is K slots `(opcode, parameters[8], seed)`, in the order in which they apply; unused slots are NONE.

| opcode | parameters |
|---|---|
| CROP | top, left, height, width in source pixels; interpolation (an `Interpolation`); antialias 0 or 1 |
| FLIP | (left to right) |
| BRIGHTNESS, CONTRAST, SATURATION | factor, 1 changes nothing |
| HUE | shift in turns, -0.5 … 0.5 |
| GRAY | |
| BLUR | sigma in pixels; radius of the kernel in pixels (2·radius + 1 taps) |
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
    FLIP = 2
    BRIGHTNESS = 3
    CONTRAST = 4
    SATURATION = 5
    HUE = 6
    GRAY = 7
    BLUR = 8


class Interpolation(IntEnum):
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

    def program(self, view: int, sample: int) -> list[tuple[Opcode, NDArray[np.float32], int]]:
        """The used slots of one row, in order."""
        opcodes, parameters, seeds = self.opcode[view, sample], self.parameters[view, sample], self.seed[view, sample]
        return [(Opcode(o), p, int(s)) for o, p, s in zip(opcodes, parameters, seeds, strict=True) if o != Opcode.NONE]
