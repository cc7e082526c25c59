"""What other libraries have for a recipe's operations, written as their users write it.

| name | what it takes | note |
|---|---|---|
| `torchvision-pil` | PIL images | the baseline; what `loaders/torchvision_baseline.py` makes of a recipe |
| `torchvision-v2` | uint8 tensors | |
| `albumentations-compose` | uint8 arrays | does not antialias |
| `kornia` | a batch of uint8 tensors of one size | |

Each brings its own random values, and makes normalised float32 tensors of whole lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2

from penstock.augment.albumentations import load_package
from penstock.augment.counterparts import counterpart
from penstock.augment.operations import (
    CLAHE,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    RandomResizedCrop,
    Solarize,
    VerticalFlip,
)
from penstock.augment.recipe import Recipe
from penstock.loaders.torchvision_baseline import MODES, transform

Bytes = NDArray[np.uint8]
Step = Callable[[Any], Any]


class Lacks(Exception):
    """The library has no such operation."""


@dataclass(frozen=True)
class Rival:
    """A library's way to make one view.

    Attributes:
        name: in tables.
        take: a decoded image, uint8 [H, W, 3], as the library holds it in memory.
        compose: a list of operations on views of a size, as one step on such an image; with a recipe it ends in
            tensors normalised as that says, without one in the library's bytes. Raises Lacks.
    """

    name: str
    take: Callable[[Bytes], Any]
    compose: Callable[[Sequence[Operation | None], int, Recipe | None], Step]


def torchvision_pil(operations: Sequence[Operation | None], size: int, finish: Recipe | None) -> Step:
    for operation in operations:
        _check_torchvision(operation)
    steps = [transform(operation, size) for operation in operations]
    end = [transforms.ToTensor(), transforms.Normalize(finish.mean, finish.std)] if finish else []
    return transforms.Compose([*steps, *end])


def _check_torchvision(operation: Operation | None) -> None:
    known = RandomResizedCrop | HorizontalFlip | VerticalFlip | ColorJitter | Grayscale | GaussianBlur | Solarize
    if not isinstance(operation, known) or (isinstance(operation, GaussianBlur) and operation.kernel):
        raise Lacks(f"torchvision has no {operation}")


def torchvision_v2(operations: Sequence[Operation | None], size: int, finish: Recipe | None) -> Step:
    steps = [_v2(operation, size) for operation in operations]
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(finish.mean, finish.std)] if finish else []
    return v2.Compose([*steps, *end])


def _v2(operation: Operation | None, size: int) -> torch.nn.Module:
    _check_torchvision(operation)
    match operation:
        case RandomResizedCrop(scale=scale, ratio=ratio, interpolation=how, antialias=antialias):
            return v2.RandomResizedCrop(size, scale, ratio, interpolation=MODES[how], antialias=antialias)
        case HorizontalFlip(p=p):
            return v2.RandomHorizontalFlip(p)
        case VerticalFlip(p=p):
            return v2.RandomVerticalFlip(p)
        case Grayscale(p=p):
            return v2.RandomGrayscale(p)
        case ColorJitter(brightness=b, contrast=c, saturation=s, hue=h, p=p):
            return v2.RandomApply([v2.ColorJitter(b, c, s, h)], p)
        case GaussianBlur(sigma=sigma, p=p) if sigma:
            return v2.RandomApply([v2.GaussianBlur(_taps(sigma), sigma)], p)
        case Solarize(threshold=threshold, p=p):
            return v2.RandomSolarize(threshold, p)
    raise Lacks(f"torchvision has no {operation}")


def _taps(sigma: tuple[float, float]) -> int:
    """A kernel that reaches three of the widest sigma: torchvision's and Kornia's have one size."""
    return 2 * math.ceil(3 * sigma[1]) + 1


def albumentations_compose(operations: Sequence[Operation | None], size: int, finish: Recipe | None) -> Step:
    """Raises MissingExtra where the package is not installed."""
    A = load_package()
    end = [A.Normalize(finish.mean, finish.std), A.ToTensorV2()] if finish else []
    composed = A.Compose([*(counterpart(operation, size) for operation in operations), *end])
    return lambda image: composed(image=image)["image"]


def tv_image(image: Bytes, device: str = "cpu") -> tv_tensors.Image:
    """uint8 [3, H, W] on the device, as torchvision's v2 takes it."""
    return tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous().to(device))


RIVALS = (
    Rival("torchvision-pil", Image.fromarray, torchvision_pil),
    Rival("torchvision-v2", tv_image, torchvision_v2),
    Rival("albumentations-compose", lambda image: image, albumentations_compose),
)


def kornia_compose(operations: Sequence[Operation | None], size: int, finish: Recipe | None) -> Step:
    """A step from a batch of uint8 tensors [N, 3, H, W] to float32 [N, 3, S, S].

    Raises:
        Lacks: Kornia has no such operation, or the package is not installed.
    """
    try:
        import kornia.augmentation as K
    except ImportError as error:
        raise Lacks("kornia is not installed: pip install kornia") from error
    end = [K.Normalize(torch.tensor(finish.mean), torch.tensor(finish.std))] if finish else []
    composed = K.AugmentationSequential(*(_kornia(K, operation, size) for operation in operations), *end)
    return lambda batch: composed(batch.float() / 255)


def _kornia(K: Any, operation: Operation | None, size: int) -> Any:
    match operation:
        case RandomResizedCrop(scale=scale, ratio=ratio, interpolation=how):
            return K.RandomResizedCrop((size, size), scale, ratio, resample=how.name, cropping_mode="resample")
        case HorizontalFlip(p=p):
            return K.RandomHorizontalFlip(p=p)
        case VerticalFlip(p=p):
            return K.RandomVerticalFlip(p=p)
        case ColorJitter(brightness=b, contrast=c, saturation=s, hue=h, p=p):
            return K.ColorJitter(b, c, s, h, p=p)
        case Grayscale(p=p):
            return K.RandomGrayscale(p=p)
        case GaussianBlur(sigma=sigma, kernel=None, p=p) if sigma:
            return K.RandomGaussianBlur(_taps(sigma), sigma, p=p)
        case Solarize(threshold=threshold, p=p):
            return K.RandomSolarize((threshold / 255, threshold / 255), (0.0, 0.0), p=p)
        case CLAHE(clip_limit=clip, tiles=tiles, p=p):
            return K.RandomClahe(clip, (tiles, tiles), p=p)
    raise Lacks(f"Kornia has no {operation}")
