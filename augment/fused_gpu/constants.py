"""The tables that kernels look values up in, as one block of int32 words; floats by their bits.

| at | words | what |
|---|---|---|
| 0 | 4096 | the normal distribution (`fields.NORMAL`), float32 |
| 4096 | 256 | sRGB levels to linear light, 0 … 2040 |
| 4352 | 3072 | CIE Lab's f of such light, in 15 bits |

The last two are OpenCV's 8-bit Lab, in its fixed point: CLAHE magnifies a level of lightness, so that exact arithmetic
would be too far off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.augment.fields import NORMAL


def _linear_light() -> NDArray[np.int32]:
    encoded = np.arange(256) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.rint(255 * 8 * linear).astype(np.int32)


def _cube_root() -> NDArray[np.int32]:
    light = np.arange(3072) / (255 * 8)
    root = np.where(light < 216 / 24389, light * (841 / 108) + 16 / 116, np.cbrt(light))
    return np.rint(root * 2**15).astype(np.int32)


def constants() -> NDArray[np.int32]:
    """int32 [7424], see the table above."""
    return np.concatenate([NORMAL.view(np.int32), _linear_light(), _cube_root()])
