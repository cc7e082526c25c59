"""The reference executor: torchvision's functional operations on uint8 tensors, one row at a time.

Slow, and the oracle for every other executor: each operation rounds or truncates to uint8 after itself, exactly as
torchvision does. It draws nothing; rows say everything.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.rows import Interpolation, Opcode, Rows

MODES = {Interpolation.BILINEAR: InterpolationMode.BILINEAR, Interpolation.BICUBIC: InterpolationMode.BICUBIC}


def _crop(image: torch.Tensor, parameters: NDArray[np.float32], size: int) -> torch.Tensor:
    top, left, height, width, how = (int(value) for value in parameters[:5])
    if (height, width) == (size, size):
        return F.crop(image, top, left, height, width)
    return F.resized_crop(image, top, left, height, width, [size, size], MODES[Interpolation(how)], bool(parameters[5]))


def apply(image: torch.Tensor, opcode: Opcode, parameters: NDArray[np.float32], size: int) -> torch.Tensor:
    """One operation on one image: uint8 [3, H, W] in and out; CROP gives [3, size, size]."""
    value = float(parameters[0])
    match opcode:
        case Opcode.CROP:
            return _crop(image, parameters, size)
        case Opcode.FLIP:
            return F.hflip(image)
        case Opcode.BRIGHTNESS:
            return F.adjust_brightness(image, value)
        case Opcode.CONTRAST:
            return F.adjust_contrast(image, value)
        case Opcode.SATURATION:
            return F.adjust_saturation(image, value)
        case Opcode.HUE:
            return F.adjust_hue(image, value)
        case Opcode.GRAY:
            return F.rgb_to_grayscale(image, num_output_channels=3)
        case Opcode.BLUR:
            taps = 2 * int(parameters[1]) + 1
            return F.gaussian_blur(image, [taps, taps], [value, value])
    raise NotImplementedError(f"the reference executor has no {opcode!r}")


def augment_one(image: NDArray[np.uint8], rows: Rows, view: int, sample: int, size: int) -> torch.Tensor:
    """One view before normalisation: uint8 [H, W, 3] in, uint8 [3, size, size] out."""
    result = torch.from_numpy(image).permute(2, 0, 1)
    for opcode, parameters, _ in rows.program(view, sample):
        result = apply(result, opcode, parameters, size)
    return result


def reference(pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
    """Run every row: fill `out` [V, N, 3, S, S] (any float type and strides) with normalised views."""
    mean = torch.tensor(recipe.mean).view(3, 1, 1)
    std = torch.tensor(recipe.std).view(3, 1, 1)
    for sample in range(len(pixels)):
        image = pixels.image(sample)
        for view in range(recipe.views):
            result = augment_one(image, rows, view, sample, recipe.size)
            out[view, sample] = result.float().div_(255).sub_(mean).div_(std)
