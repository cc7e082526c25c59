"""The reference executor: what each operation means. Slow, and the oracle for every other executor.

torchvision's functional operations on uint8 tensors; where torchvision has none, Albumentations' and OpenCV's. Each
rounds or truncates to uint8 after itself, as its library does. One row at a time; it draws nothing: rows say all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from penstock.augment import albumentations
from penstock.augment.fields import LEVELS, NORMAL
from penstock.augment.fused_cpu import write as write
from penstock.augment.philox import philox
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.rows import Interpolation, Opcode, Rows

Image = NDArray[np.uint8]

NATIVE = frozenset(Opcode) - {Opcode.NONE}
MODES = {Interpolation.BILINEAR: InterpolationMode.BILINEAR, Interpolation.BICUBIC: InterpolationMode.BICUBIC}


def _crop(image: Image, parameters: NDArray[np.float32], size: int) -> Image:
    top, left, height, width, how, antialias = (int(value) for value in parameters[:6])
    if (height, width) == (size, size):
        return image[top : top + height, left : left + width]
    if how == Interpolation.BICUBIC and not antialias:
        return albumentations.crop(image, parameters, size)
    mode = MODES[Interpolation(how)]
    return _array(F.resized_crop(_tensor(image), top, left, height, width, [size, size], mode, bool(antialias)))


def _gaussian_blur(image: torch.Tensor, sigma: float, radius: float) -> torch.Tensor:
    taps = 2 * int(radius) + 1
    return F.gaussian_blur(image, [taps, taps], [sigma, sigma])


# uint8 [3, H, W] and the slot's parameters to uint8 [3, H, W]
TORCHVISION: dict[Opcode, Callable[[torch.Tensor, list[float]], torch.Tensor]] = {
    Opcode.HORIZONTAL_FLIP: lambda image, _: F.hflip(image),
    Opcode.VERTICAL_FLIP: lambda image, _: F.vflip(image),
    Opcode.BRIGHTNESS: lambda image, values: F.adjust_brightness(image, values[0]),
    Opcode.CONTRAST: lambda image, values: F.adjust_contrast(image, values[0]),
    Opcode.SATURATION: lambda image, values: F.adjust_saturation(image, values[0]),
    Opcode.HUE: lambda image, values: F.adjust_hue(image, values[0]),
    Opcode.GRAY: lambda image, _: F.rgb_to_grayscale(image, num_output_channels=3),
    Opcode.GAUSSIAN_BLUR: lambda image, values: _gaussian_blur(image, *values[:2]),
    # torchvision refuses a threshold that no level reaches
    Opcode.SOLARIZE: lambda image, values: F.solarize(image, values[0]) if values[0] <= 255 else image,
}


def _words(seed: int, counters: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """The four Philox words of each counter, by the definition, uncompiled."""
    zero = np.uint64(0)
    return list(philox.py_func(np.uint64(seed), counters, zero, zero, zero))


def _dropout(image: Image, parameters: NDArray[np.float32], seed: int) -> Image:
    """Holes of one level; `fields.hole` says where."""
    holes, height, width, fill = (int(value) for value in parameters[:4])
    y, x, _, _ = _words(seed, np.arange(holes, dtype=np.uint64))
    tops, lefts = (y * (len(image) - height + 1)) >> 32, (x * (len(image) - width + 1)) >> 32
    result = image.copy()
    for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
        result[top : top + height, left : left + width] = fill
    return result


def _noise(image: Image, parameters: NDArray[np.float32], seed: int) -> Image:
    """Normal noise; `fields.noise_words` and `fields.normal` say which."""
    pixel = np.arange(image.shape[0] * image.shape[1], dtype=np.uint64)
    words = np.stack(_words(seed, pixel // 2)[:3], axis=-1)
    noise = NORMAL[(words >> (16 * (pixel % 2) + 4)[:, None]) % LEVELS].reshape(image.shape)
    return np.clip(np.floor(image + parameters[0] * noise + np.float32(0.5)), 0, 255).astype(np.uint8)


def apply(image: Image, opcode: Opcode, parameters: NDArray[np.float32], seed: int, size: int, recipe: Recipe) -> Image:
    """One operation on one image.

    Args:
        image: uint8 [H, W, 3]; H = W = size unless the operation is a CROP.
        parameters: float32 [8], the slot's; see `rows`. seed: the slot's, for operations with a field of numbers.
        recipe: names the transforms that ALBUMENTATIONS refers to.

    Returns:
        uint8 [size, size, 3].

    Raises:
        MissingExtra: torchvision has no such operation, and Albumentations is not installed.
    """
    if opcode in TORCHVISION:
        return _array(TORCHVISION[opcode](_tensor(image), parameters.tolist()))
    match opcode:
        case Opcode.CROP:
            return _crop(image, parameters, size)
        case Opcode.COARSE_DROPOUT:
            return _dropout(image, parameters, seed)
        case Opcode.GAUSSIAN_NOISE:
            return _noise(image, parameters, seed)
    return albumentations.apply(image, opcode, parameters, seed, recipe)


def _tensor(image: Image) -> torch.Tensor:
    """[3, H, W]; a copy where the bytes must not be written, of which torch would warn."""
    return torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)


def _array(image: torch.Tensor) -> Image:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def augment_one(image: Image, rows: Rows, view: int, sample: int, size: int, recipe: Recipe) -> Image:
    """One view before normalisation: uint8 [H, W, 3] in, uint8 [size, size, 3] out."""
    for opcode, parameters, seed in rows.program(view, sample):
        image = apply(image, opcode, parameters, seed, size, recipe)
    return image


def run(pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
    """Run every row: fill `out` [V, N, 3, S, S] (any float type and strides) with normalised views.

    A row whose first slot is NONE is skipped: its part of `out` stays as it is.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    for view, sample in np.argwhere(rows.opcode[:, :, 0] != Opcode.NONE).tolist():
        result = augment_one(pixels.image(sample), rows, view, sample, out.shape[-1], recipe)
        out[view, sample] = _tensor(result).float().div_(255).sub_(mean).div_(std)
