"""A recipe as DALI's users write it: one graph of its own operators and random values, on the CPU or a GPU.

The jitter is one `color_twist`, in DALI's order; hue there is no rotation in HSV. See `augment/dali.py` for how far
its operators are from torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from penstock.augment.operations import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    RandomResizedCrop,
    Solarize,
    VerticalFlip,
)
from penstock.augment.recipe import Recipe, View
from penstock.augment.rows import Interpolation
from penstock.benchmarks.augment_rivals import Bytes, Lacks

Node = Any  # a DALI DataNode
Step = Callable[[Node], Node]


def dali_pipeline(
    lists: Sequence[tuple[Sequence[Operation], int]], finish: Recipe, images: Bytes, device: str, threads: int = 1
) -> Callable[[], Any]:
    """A step that makes all views of the images, float32 [N, 3, S, S] for each, from their bytes in device memory.

    It returns the views of the batch before: DALI makes the next one meanwhile.

    Args:
        lists: for each view, its operations and its side.
        finish: how views are normalised.
        images: uint8 [N, H, W, 3].
        device: "gpu" or "cpu".
        threads: for what it does on the CPU.

    Raises:
        Lacks: DALI has no such operation, or the package is not installed.
    """
    try:
        from nvidia.dali import fn, pipeline_def
    except ImportError as error:
        raise Lacks("DALI is not installed") from error
    views = [list_steps(operations, size) for operations, size in lists]
    held = torch.from_numpy(images).cuda() if device == "gpu" else images  # in one piece, so that DALI copies it as one

    @pipeline_def(enable_conditionals=True)
    def graph() -> tuple[Node, ...]:
        image = fn.external_source(source=lambda: held, device=device, layout="HWC")
        return tuple(_view(steps, finish, image) for steps in views)

    options = {"batch_size": len(images), "num_threads": threads, "device_id": 0 if device == "gpu" else None}
    pipeline = graph(**options, seed=0)
    pipeline.build()
    return pipeline.run


def view_steps(view: View) -> list[tuple[float, Step]]:
    """Each operation's probability and operators."""
    return list_steps(view.operations, view.size)


def list_steps(operations: Sequence[Operation], size: int) -> list[tuple[float, Step]]:
    """As `view_steps`, for any operations on views of `size` pixels."""
    return [(getattr(operation, "p", 1.0), _step(operation, size)) for operation in operations]


def _view(steps: list[tuple[float, Step]], recipe: Recipe, image: Node) -> Node:
    """One view's list, and then normalised pixels in planes."""
    from nvidia.dali import fn

    for p, step in steps:
        image = step(image) if p == 1 else sometimes(p, step, image)
    mean, std = ([255 * value for value in values] for values in (recipe.mean, recipe.std))
    return fn.crop_mirror_normalize(image, mean=mean, std=std, output_layout="CHW")


def sometimes(p: float, step: Step, image: Node) -> Node:
    """The step for a share p of the samples; DALI compiles the `if` into its graph."""
    from nvidia.dali import fn
    from nvidia.dali.types import DALIDataType

    if fn.random.coin_flip(probability=p, dtype=DALIDataType.BOOL):
        image = step(image)
    return image


def _step(operation: Operation, size: int) -> Step:
    from nvidia.dali import fn
    from nvidia.dali.types import DALIDataType, DALIInterpType

    def between(low: float, high: float) -> Node:
        return fn.random.uniform(range=(max(0.0, low), high))

    match operation:
        case RandomResizedCrop(scale=scale, ratio=ratio, interpolation=how, antialias=antialias):
            linear, cubic = DALIInterpType.INTERP_LINEAR, DALIInterpType.INTERP_CUBIC
            filters = {Interpolation.BILINEAR: linear, Interpolation.BICUBIC: cubic}
            return lambda image: fn.random_resized_crop(
                image,
                size=(size, size),
                random_area=scale,
                random_aspect_ratio=ratio,
                interp_type=filters[how],
                antialias=antialias,
            )
        case HorizontalFlip():
            return lambda image: fn.flip(image, horizontal=1, vertical=0)
        case VerticalFlip():
            return lambda image: fn.flip(image, horizontal=0, vertical=1)
        case ColorJitter(brightness=b, contrast=c, saturation=s, hue=h):
            turn = 360.0 * h
            return lambda image: fn.color_twist(
                image,
                brightness=between(1 - b, 1 + b),
                contrast=between(1 - c, 1 + c),
                saturation=between(1 - s, 1 + s),
                hue=fn.random.uniform(range=(-turn, turn)),
            )
        case Grayscale():
            return lambda image: fn.hsv(image, saturation=0.0)
        case GaussianBlur(sigma=sigma, kernel=None) if sigma:
            return lambda image: fn.gaussian_blur(image, sigma=between(*sigma))
        case Solarize(threshold=threshold):
            edge = np.uint8(threshold)
            return lambda image: fn.cast(image + (255 - 2 * image) * (image >= edge), dtype=DALIDataType.UINT8)
    raise Lacks(f"DALI has no {operation}")
