"""What benchmarks/parity.py measures: an executor's grey levels beside the reference's, by operation and by chain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment import RECIPES, Pixels, Recipe, Rows, draw, reference
from penstock.augment.executors import BackEnd, choose_executor
from penstock.augment.operations import (
    CLAHE,
    Blur,
    ChannelShuffle,
    CoarseDropout,
    ColorJitter,
    GaussianBlur,
    GaussNoise,
    Grayscale,
    HorizontalFlip,
    HueSaturationValue,
    Operation,
    RandomBrightnessContrast,
    RandomResizedCrop,
    Sharpen,
    Solarize,
    VerticalFlip,
)
from penstock.augment.recipe import View
from penstock.augment.rows import PARAMETERS, Interpolation, Opcode
from penstock.errors import MissingExtra
from penstock.loaders.sources.shapes import CLASSES, render

SIZE = 32  # of the views, pixels: as much smaller than the images as usual views are than photographs
EPOCH = 199  # in which `gradual` has its strongest jitter
PACKAGES = {"fused_cpu": "numba", "fused_gpu": "triton", "albumentations": "albumentations", "dali": "nvidia.dali"}
INTERPRETER = "in Triton's interpreter"
MAGNIFIERS = frozenset({Opcode.CLAHE, Opcode.SOLARIZE})  # of a difference of one level: left out of whole chains

Bytes = NDArray[np.uint8]
Run = Callable[[Pixels, Rows, Recipe, torch.Tensor], None]
Figures = dict[tuple[str, str], tuple[float, float] | None]  # by row and column of the page; None is an empty cell


def _crop(how: Interpolation, antialias: bool) -> tuple[Operation, ...]:
    return (RandomResizedCrop(interpolation=how, antialias=antialias),)


def _jitter(**strength: float) -> tuple[Operation, ...]:
    return (RandomResizedCrop(), ColorJitter(**{"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0} | strength))


def _always(operation: Callable[..., Operation], **values: Any) -> tuple[Operation, ...]:
    return (RandomResizedCrop(), operation(**values, p=1.0))


# What a row of the first table measures: the last slot of these. Ranges are as wide as any recipe's, or wider.
STEPS: dict[str, tuple[Operation, ...]] = {
    "crop, bilinear, antialiased": _crop(Interpolation.BILINEAR, True),
    "crop, bilinear": _crop(Interpolation.BILINEAR, False),
    "crop, cubic, antialiased": _crop(Interpolation.BICUBIC, True),
    "crop, cubic": _crop(Interpolation.BICUBIC, False),
    "horizontal flip": _always(HorizontalFlip),
    "vertical flip": _always(VerticalFlip),
    "brightness": _jitter(brightness=1.0),
    "contrast": _jitter(contrast=1.0),
    "saturation": _jitter(saturation=1.0),
    "hue": _jitter(hue=0.5),
    "gray": _always(Grayscale),
    "Gaussian blur": _always(GaussianBlur),
    "solarize": _always(Solarize),
    "brightness-contrast": _always(RandomBrightnessContrast, brightness=0.5, contrast=0.5),
    "CLAHE": _always(CLAHE),
    "box blur": _always(Blur),
    "sharpen": _always(Sharpen, alpha=(0.0, 1.0)),
    "channel shuffle": _always(ChannelShuffle),
    "HSV shift": _always(HueSaturationValue),
    "coarse dropout": _always(CoarseDropout),
    "Gaussian noise": _always(GaussNoise),
}


@dataclass(frozen=True)
class Step:
    """One slot of many rows.

    Attributes:
        opcode: int32 [R]; which operation each row has in this slot.
        pixels: R images: what the reference made of the slots before.
        rows: [1, R, 2], this slot alone, after a crop that changes nothing where it is none itself.
        expected: uint8 [R, S, S, 3], what the reference makes of it.
    """

    opcode: NDArray[np.int32]
    pixels: Pixels
    rows: Rows
    expected: Bytes

    def only(self, chosen: NDArray[np.bool_]) -> Step:
        """Some of its rows, by a mask [R]."""
        offset, height, width = (a[chosen] for a in (self.pixels.offset, self.pixels.height, self.pixels.width))
        pixels = Pixels(data=self.pixels.data, offset=offset, height=height, width=width)
        opcode, parameters, seed = self.rows.opcode, self.rows.parameters, self.rows.seed
        rows = Rows(opcode=opcode[:, chosen], parameters=parameters[:, chosen], seed=seed[:, chosen])
        return Step(self.opcode[chosen], pixels, rows, self.expected[chosen])


@cache
def photographs() -> tuple[Bytes, ...]:
    """A dozen images, uint8 [H, W, 3] with sides of 64 to 160 pixels."""
    return tuple(render(i % len(CLASSES), 0, split="val", number=i) for i in range(12))


def rows_of(recipe: Recipe, pixels: Pixels) -> Rows:
    index = np.arange(len(pixels))
    return draw(recipe, seed=0, epoch=EPOCH, index=index, height=pixels.height, width=pixels.width)


def steps(pixels: Pixels, rows: Rows, recipe: Recipe, size: int) -> Iterator[Step]:
    """The slots of every view of every image, one after the other, as the reference goes through them."""
    views, samples, slots = rows.opcode.shape
    images = [pixels.image(sample) for _ in range(views) for sample in range(samples)]
    flat = Rows(
        opcode=rows.opcode.reshape(-1, slots),
        parameters=rows.parameters.reshape(-1, slots, PARAMETERS),
        seed=rows.seed.reshape(-1, slots),
    )
    for k in range(slots):
        live = np.flatnonzero(flat.opcode[:, k])
        before = [images[r] for r in live]
        for r in live:
            slot = Opcode(flat.opcode[r, k]), flat.parameters[r, k], int(flat.seed[r, k])
            images[r] = reference.apply(images[r], *slot, size, recipe)
        if len(live):
            alone = _alone(flat, live, k, size)
            after = np.stack([images[r] for r in live])
            yield Step(flat.opcode[live, k], Pixels.from_images(before), alone, after)


def _alone(flat: Rows, live: NDArray[np.int64], k: int, size: int) -> Rows:
    """Slot k of the rows `live`, as rows [1, R, 2] of their own: they begin with a crop, as rows must."""
    place = np.where(flat.opcode[live, k] == Opcode.CROP, 0, 1)
    shape, r = (1, len(live), 2), np.arange(len(live))
    alone = Rows(
        opcode=np.zeros(shape, np.int32),
        parameters=np.zeros((*shape, PARAMETERS), np.float32),
        seed=np.zeros(shape, np.uint64),
    )
    alone.opcode[0, :, 0] = Opcode.CROP
    alone.parameters[0, :, 0, :6] = 0, 0, size, size, Interpolation.BILINEAR, 1
    alone.opcode[0, r, place] = flat.opcode[live, k]
    alone.parameters[0, r, place] = flat.parameters[live, k]
    alone.seed[0, r, place] = flat.seed[live, k]
    return alone


def levels(run: Run, pixels: Pixels, rows: Rows, recipe: Recipe, size: int, device: str = "cpu") -> Bytes:
    """What an executor makes of rows [V, N], in grey levels: uint8 [V, N, S, S, 3]."""
    out = torch.empty(*rows.opcode.shape[:2], size, size, 3, device=device)
    plain = replace(recipe, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    run(pixels, rows, plain, out.permute(0, 1, 4, 2, 3))
    return (out * 255).round().to(torch.uint8).cpu().numpy()


def device_of(name: str) -> str:
    """Where an executor's views are wanted."""
    return "cuda" if name == "fused_gpu" and torch.cuda.is_available() else "cpu"


def difference(ours: Bytes, expected: Bytes) -> NDArray[np.int16]:
    return np.abs(ours.astype(np.int16) - expected)


def step_difference(name: str, step: Step, recipe: Recipe, size: int) -> NDArray[np.int16]:
    """Grey levels between an executor and the reference: [R, S, S, 3]."""
    run = back_end(name).run
    return difference(levels(run, step.pixels, step.rows, recipe, size, device_of(name))[0], step.expected)


def chain_difference(name: str, pixels: Pixels, recipe: Recipe) -> NDArray[np.int16]:
    """The same for whole chains, of the recipe's first group of views: [V, N, S, S, 3]."""
    group = recipe.groups[0]
    rows = without_magnifiers(rows_of(recipe, pixels).views(group.views))
    expected = levels(reference.run, pixels, rows, recipe, group.size)
    return difference(
        levels(choose_executor(name, recipe), pixels, rows, recipe, group.size, device_of(name)), expected
    )


def without_magnifiers(rows: Rows) -> Rows:
    """Rows in which slots of CLAHE and solarize do nothing: as brightness times 1."""
    magnified = np.isin(rows.opcode, list(MAGNIFIERS))
    opcode, parameters = rows.opcode.copy(), rows.parameters.copy()
    opcode[magnified], parameters[magnified, 0] = Opcode.BRIGHTNESS, 1
    return replace(rows, opcode=opcode, parameters=parameters)


def available(*, interpreted: bool) -> list[str]:
    """The executors that can run here, but for the reference.

    Args:
        interpreted: fused_gpu, too, where there is no GPU: in Triton's interpreter, a thousand times slower.
    """
    fast = interpreted or torch.cuda.is_available()
    return [name for name in PACKAGES if _installed(name) and (fast or name != "fused_gpu")]


def _installed(name: str) -> bool:
    try:
        return find_spec(PACKAGES[name]) is not None
    except ModuleNotFoundError:  # the parent of a package is missing
        return False


def back_end(name: str) -> BackEnd:
    return cast(BackEnd, import_module(f"penstock.augment.{name}"))


def step_recipe(label: str, size: int) -> Recipe:
    """Two views by one row of `STEPS`."""
    return Recipe(name=label, about="", views=(View(operations=STEPS[label], size=size, count=2),))


def last_step(label: str, pixels: Pixels, size: int) -> Step:
    """What a row of `STEPS` measures."""
    recipe = step_recipe(label, size)
    *_, step = steps(pixels, rows_of(recipe, pixels), recipe, size)
    return step


def measure(names: list[str]) -> Figures:
    """Both tables' figures, for some of the executors; without those that need a package that is not installed."""
    pixels = Pixels.from_images(photographs())
    figures: Figures = {}
    for label in (*STEPS, *RECIPES):
        try:
            figures |= _operation_row(label, pixels, names) if label in STEPS else _chain_row(label, pixels, names)
        except MissingExtra as error:
            print(f"without {label}: {error}", file=sys.stderr)
    return figures


def _operation_row(label: str, pixels: Pixels, names: list[str]) -> Figures:
    step = last_step(label, pixels, SIZE)
    figures: Figures = {}
    for name in names:
        figures[label, name] = None
        if set(step.opcode) <= back_end(name).NATIVE:
            off = step_difference(name, step, step_recipe(label, SIZE), SIZE)
            figures[label, name] = float(off.mean()), float(off.max())
    return figures


def _chain_row(label: str, pixels: Pixels, names: list[str]) -> Figures:
    figures: Figures = {}
    for name in names:
        off = chain_difference(name, pixels, RECIPES[label].resized(SIZE))
        figures[label, name] = float(off.mean()), float(np.percentile(off, 99.9))
    return figures


def where_fused_gpu_runs() -> str:
    """As the page says it."""
    return f"on one {torch.cuda.get_device_name()}" if torch.cuda.is_available() else INTERPRETER
