"""The Albumentations executor: every operation by Albumentations 2.0.8 and OpenCV, as their users have them.

The CPU fallback for what a compiled executor does not know (rain, fog and whatever else a recipe names), and for the
operations that `--fallback` names. Whole chains run by it differ from the reference where the libraries do: OpenCV does
not antialias, and its HSV has 8 bits. docs/parity.md has the figures.
"""

from __future__ import annotations

import difflib
import inspect
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.fields import hole, noise_words, normal
from penstock.augment.fused_cpu import write
from penstock.augment.jit import njit
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.rows import Interpolation, Opcode, Rows
from penstock.errors import MissingExtra, UserError

Image = NDArray[np.uint8]
Arguments = Mapping[str, Any] | Iterable[tuple[str, Any]]

NATIVE = frozenset(Opcode) - {Opcode.NONE}


@cache
def load_package() -> ModuleType:
    """The albumentations package; its import takes seconds, so that it waits for the first operation that needs it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer release
    try:
        import albumentations
        import cv2
    except ImportError as error:
        raise MissingExtra("albumentations", "albumentations") from error
    cv2.setNumThreads(1)  # the loader's threads are as many as there may be
    return albumentations


@cache
def _functions() -> dict[Opcode, Callable[[Image, list[float]], Image]]:
    """What Albumentations' transforms call, for the operations that depend on their parameters alone."""
    load_package()
    import albumentations.augmentations.pixel.functional as F
    import cv2
    from albucore import multiply_add
    from albumentations.augmentations.blur.functional import box_blur

    return {
        Opcode.HORIZONTAL_FLIP: lambda image, _: cv2.flip(image, 1),
        Opcode.VERTICAL_FLIP: lambda image, _: cv2.flip(image, 0),
        Opcode.BRIGHTNESS: lambda image, values: F.adjust_brightness_torchvision(image, values[0]),
        Opcode.CONTRAST: lambda image, values: F.adjust_contrast_torchvision(image, values[0]),
        Opcode.SATURATION: lambda image, values: F.adjust_saturation_torchvision(image, values[0]),
        Opcode.HUE: lambda image, values: F.adjust_hue_torchvision(image, values[0]),
        Opcode.GRAY: lambda image, _: F.to_gray_weighted_average(image)[..., None].repeat(3, axis=2),
        Opcode.GAUSSIAN_BLUR: lambda image, values: cv2.GaussianBlur(image, (2 * int(values[1]) + 1,) * 2, values[0]),
        Opcode.SOLARIZE: lambda image, values: F.solarize(image, values[0] / 255),
        Opcode.BRIGHTNESS_CONTRAST: lambda image, values: multiply_add(image, values[0], values[1]),
        Opcode.CLAHE: lambda image, values: F.clahe(image, values[0], (int(values[1]),) * 2),
        Opcode.BOX_BLUR: lambda image, values: box_blur(image, 2 * int(values[0]) + 1),
        Opcode.SHARPEN: lambda image, values: F.convolve(image, _sharpening(*values[:2])),
        Opcode.CHANNEL_SHUFFLE: lambda image, values: F.channel_shuffle(image, [int(value) for value in values[:3]]),
        Opcode.HSV_SHIFT: lambda image, values: F.shift_hsv(image, *values[:3]),
    }


def _sharpening(alpha: float, lightness: float) -> NDArray[np.float32]:
    """The kernel of Albumentations' Sharpen, float32 [3, 3]."""
    kernel = np.full((3, 3), -alpha, np.float32)
    kernel[1, 1] = 1 - alpha + alpha * (8 + lightness)
    return kernel


def crop(image: Image, parameters: NDArray[np.float32], size: int) -> Image:
    """The slot's box of uint8 [H, W, 3] resized to [size, size, 3] by OpenCV, which does not antialias."""
    load_package()
    import cv2

    top, left, height, width, how = (int(value) for value in parameters[:5])
    mode = cv2.INTER_CUBIC if how == Interpolation.BICUBIC else cv2.INTER_LINEAR
    box = np.ascontiguousarray(image[top : top + height, left : left + width])
    return cv2.resize(box, (size, size), interpolation=mode).astype(np.uint8, copy=False)


def _dropout(image: Image, parameters: NDArray[np.float32], seed: int) -> Image:
    load_package()
    from albumentations.augmentations.dropout.functional import fill_holes_with_value

    holes, height, width, fill = (int(value) for value in parameters[:4])
    corners = np.array([hole(np.uint64(seed), which, len(image), height, width) for which in range(holes)])
    boxes = np.stack([corners[:, 1], corners[:, 0], corners[:, 1] + width, corners[:, 0] + height], axis=1)
    return fill_holes_with_value(image.copy(), boxes, np.array(fill, np.uint8))


@njit
def _noise_field(seed, size, sigma):  # type: ignore[no-untyped-def]
    """Noise in levels, float32 [size, size, 3]."""
    field = np.empty((size * size, 3), np.float32)
    for pixel in range(size * size):
        red, green, blue = noise_words(seed, pixel // 2)
        field[pixel, 0] = sigma * normal(red, pixel)
        field[pixel, 1] = sigma * normal(green, pixel)
        field[pixel, 2] = sigma * normal(blue, pixel)
    return field.reshape((size, size, 3))


def _noise(image: Image, parameters: NDArray[np.float32], seed: int) -> Image:
    load_package()
    from albumentations.augmentations.pixel.functional import add_noise

    noise = _noise_field(np.uint64(seed), len(image), parameters[0])
    return add_noise(image, np.floor(noise + np.float32(0.5)))  # of bytes, it would cut off the noise's fraction


def apply(image: Image, opcode: Opcode, parameters: NDArray[np.float32], seed: int, recipe: Recipe) -> Image:
    """One operation, any but CROP, on one view.

    Args:
        image: uint8 [S, S, 3], contiguous.
        parameters: float32 [8], the slot's; see `rows`. seed: the slot's, for operations with a field of numbers.
        recipe: names the transforms that ALBUMENTATIONS refers to.

    Returns:
        uint8 [S, S, 3]; the same array if nothing changed.
    """
    match opcode:
        case Opcode.COARSE_DROPOUT:
            return _dropout(image, parameters, seed)
        case Opcode.GAUSSIAN_NOISE:
            return _noise(image, parameters, seed)
        case Opcode.ALBUMENTATIONS:
            operation = recipe.foreign[int(parameters[0])]
            return _seeded(_transform(operation.transform, tuple(dict(operation.arguments).items())), seed, image)
    return _functions()[opcode](image, parameters.tolist())


# Transforms hold their random state, and loaders run several threads: each builds its own, once.
_built = threading.local()


def _transform(name: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    transforms = _built.__dict__.setdefault("transforms", {})
    if (name, arguments) not in transforms:
        transforms[name, arguments] = getattr(load_package(), name)(**dict(arguments), p=1.0)
    return transforms[name, arguments]


def _seeded(transform: Any, seed: int, image: Image) -> Image:
    transform.set_random_seed(seed & 0xFFFFFFFF)
    return transform(image=image)["image"]


def check(transform: str, arguments: Arguments, size: int = 224) -> None:
    """See that Albumentations has a transform, that it takes these arguments, and that views go through it.

    Args:
        transform: its class's name. arguments: what it is made with. size: the views' side, pixels.

    Raises:
        UserError: one line that says which of these fails.
        MissingExtra: Albumentations is not installed.
    """
    given = dict(arguments)
    _check_names(transform, given)
    try:
        made = getattr(load_package(), transform)(**given, p=1.0)
    except (TypeError, ValueError) as error:
        raise UserError(f"Albumentations {transform}: {_reason(error)}") from error
    view = np.arange(size * size * 3, dtype=np.uint8).reshape(size, size, 3)
    try:
        result = _seeded(made, 0, view)
    except Exception as error:
        raise UserError(f"Albumentations {transform} fails on views of {size} pixels: {_reason(error)}") from error
    if result.shape != view.shape or result.dtype != view.dtype:
        found = f"{result.dtype} {list(result.shape)}"
        raise UserError(f"Albumentations {transform} turns a view, uint8 {list(view.shape)}, into {found}: it must not")


def _check_names(transform: str, arguments: dict[str, Any]) -> None:
    """Raises UserError where Albumentations would fail without a word on the remedy, or only warn."""
    package = load_package()
    known = [name for name, value in vars(package).items() if _is_transform(value)]
    if transform not in known:
        close = difflib.get_close_matches(transform, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "name one of its classes, such as RandomRain"
        raise UserError(f"Albumentations {package.__version__} has no transform {transform!r}: {hint}")
    takes = [name for name in inspect.signature(getattr(package, transform)).parameters if name != "p"]
    for name in arguments:
        if name not in takes:
            raise UserError(f"Albumentations {transform} has no argument {name!r}: it takes {', '.join(takes)}")


def _is_transform(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, load_package().BasicTransform) and not inspect.isabstract(value)


def _reason(error: BaseException) -> str:
    """What an error says, on one line; of pydantic's report, the arguments and what is wrong with each."""
    report: Any = error.__cause__
    if hasattr(report, "errors"):
        return "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in report.errors())
    return " ".join(str(error).split()) or type(error).__name__


def augment_one(image: Image, rows: Rows, view: int, sample: int, size: int, recipe: Recipe) -> Image:
    """One view before normalisation: uint8 [H, W, 3] in, uint8 [size, size, 3] out."""
    for opcode, parameters, seed in rows.program(view, sample):
        if opcode == Opcode.CROP:
            image = crop(image, parameters, size)
        else:
            image = apply(image, opcode, parameters, seed, recipe)
    return image


def run(pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
    """Run every row: fill `out` [V, N, 3, S, S] (float32, float16 or bfloat16) with normalised views.

    A row whose first slot is NONE is skipped: its part of `out` stays as it is.
    """
    size = out.shape[-1]
    view, sample = np.nonzero(rows.opcode[:, :, 0] != Opcode.NONE)
    finished = np.empty((len(view), size, size, 3), np.uint8)
    for r, (v, n) in enumerate(zip(view.tolist(), sample.tolist(), strict=True)):
        finished[r] = augment_one(pixels.image(n), rows, v, n, size, recipe)
    write(finished, view, sample, recipe, out)
