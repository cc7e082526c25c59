"""What users of Albumentations write where a recipe has an operation of ours: the baseline's and the benchmark's.

Unlike `albumentations.py`, which runs rows, these bring random values of their own.
"""

from __future__ import annotations

from typing import Any

from penstock.augment.albumentations import load_package
from penstock.augment.operations import (
    CLAHE,
    Albumentations,
    Blur,
    ChannelShuffle,
    CoarseDropout,
    ColorJitter,
    Flip,
    GaussianBlur,
    GaussNoise,
    Grayscale,
    HorizontalFlip,
    HueSaturationValue,
    Operation,
    RandomBrightnessContrast,
    RandomChoice,
    RandomResizedCrop,
    Sharpen,
    Solarize,
    VerticalFlip,
)
from penstock.augment.rows import Interpolation


def counterpart(operation: Operation | None, size: int) -> Any:
    """Albumentations' transform for one operation on views of `size` pixels, with the operation's ranges and p.

    Raises:
        MissingExtra: the package is not installed.
    """
    A = load_package()
    match operation:
        case None:
            return A.NoOp()
        case RandomResizedCrop(scale=scale, ratio=ratio, interpolation=how):
            mode = {Interpolation.BILINEAR: 1, Interpolation.BICUBIC: 2}[how]  # OpenCV's numbers
            return A.RandomResizedCrop((size, size), scale, ratio, interpolation=mode)
        case HorizontalFlip(p=p):
            return A.HorizontalFlip(p=p)
        case VerticalFlip(p=p):
            return A.VerticalFlip(p=p)
        case Flip(p=p):
            both = A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1)
            return A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1), both], p=p)
        case RandomChoice(operations=members, times=times):
            return A.SomeOf([counterpart(member, size) for member in members], n=times, replace=True)
        case ColorJitter(brightness=b, contrast=c, saturation=s, hue=h, p=p):
            ranges = {"brightness": b, "contrast": c, "saturation": s}
            around_one = {name: (max(0, 1 - by), 1 + by) for name, by in ranges.items()}
            return A.ColorJitter(**around_one, hue=(-h, h), p=p)
        case GaussianBlur(sigma=sigma, kernel=kernel, p=p):
            by_kernel = [0.3 * (side // 2) + 0.5 for side in kernel or ()]  # OpenCV's rule
            return A.GaussianBlur(blur_limit=kernel or 0, sigma_limit=sigma or tuple(by_kernel), p=p)
        case Albumentations(transform=name, arguments=arguments, p=p):
            return getattr(A, name)(**dict(arguments), p=p)
    return _pixel_counterpart(A, operation)


def _pixel_counterpart(A: Any, operation: Operation) -> Any:
    """Of those, the operations that move no pixel; A is the package."""
    match operation:
        case Grayscale(p=p):
            return A.ToGray(p=p)
        case Solarize(threshold=threshold, p=p):
            return A.Solarize(threshold_range=(threshold / 255, threshold / 255), p=p)
        case RandomBrightnessContrast(brightness=b, contrast=c, p=p):
            return A.RandomBrightnessContrast(b, c, p=p)
        case CLAHE(clip_limit=clip, tiles=tiles, p=p):
            return A.CLAHE(clip, (tiles, tiles), p=p)
        case Blur(radius=(low, high), p=p):
            return A.Blur((2 * low + 1, 2 * high + 1), p=p)
        case Sharpen(alpha=alpha, lightness=lightness, p=p):
            return A.Sharpen(alpha, lightness, p=p)
        case ChannelShuffle(p=p):
            return A.ChannelShuffle(p=p)
        case HueSaturationValue(hue=h, saturation=s, value=v, p=p):
            return A.HueSaturationValue(h, s, v, p=p)
        case CoarseDropout(holes=holes, height=height, width=width, fill=fill, p=p):
            return A.CoarseDropout(holes, height, width, fill=fill, p=p)
        case GaussNoise(variance=(low, high), p=p):
            return A.GaussNoise((low**0.5 / 255, high**0.5 / 255), p=p)
    raise NotImplementedError(f"{operation} has no counterpart in Albumentations")
