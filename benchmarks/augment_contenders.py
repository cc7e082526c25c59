"""Who runs in benchmarks/augment.py: for each operation and chain, passes over decoded images in memory.

A chain goes from the decoded image to normalised float32 views, its random values included, by every contender. An
operation goes from bytes to bytes, S×S (the crop from the image), where an executor can be asked for one; `dali`
cannot, so its goes on to normalised views, as all do that run on a GPU (`augment_gpu.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from penstock.augment import Pixels, Recipe, Rows, albumentations, fused_cpu, load_recipe, reference
from penstock.augment.executors import choose_executor
from penstock.augment.operations import (
    CLAHE,
    Blur,
    CenterCrop,
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
)
from penstock.augment.recipe import View
from penstock.augment.rows import Interpolation, Opcode
from penstock.benchmarks.augment_gpu import Gpu, Lists, gpu_contenders
from penstock.benchmarks.augment_passes import Case, Contender, Share, nothing, passes_of, rows_of
from penstock.benchmarks.augment_rivals import RIVALS, Bytes, Lacks, Rival
from penstock.errors import MissingExtra, UserError

OPERATIONS: dict[str, Operation] = {
    "crop": RandomResizedCrop(scale=(0.2, 1.0)),
    "crop-cubic": RandomResizedCrop(scale=(0.2, 1.0), interpolation=Interpolation.BICUBIC, antialias=False),
    "flip": HorizontalFlip(p=1.0),
    "jitter": ColorJitter(p=1.0),
    "gray": Grayscale(p=1.0),
    "blur": GaussianBlur(p=1.0),
    "solarize": Solarize(p=1.0),
    "brightness-contrast": RandomBrightnessContrast(p=1.0),
    "clahe": CLAHE(p=1.0),
    "box-blur": Blur(p=1.0),
    "sharpen": Sharpen(p=1.0),
    "channel-shuffle": ChannelShuffle(p=1.0),
    "hsv": HueSaturationValue(p=1.0),
    "dropout": CoarseDropout(p=1.0),
    "noise": GaussNoise(p=1.0),
}
CHAINS = ("moco-v2", "byol", "multi-crop", "pool-14", "moco-cifar", "albumentations-7")
CHAIN = "chain:"


def make_case(
    name: str, images: list[Bytes], executors: Sequence[str], threads: Sequence[int], size: int, gpu: Gpu | None = None
) -> Case:
    """The case of that name: one of OPERATIONS, or `chain:RECIPE`; on a GPU, too, where one is given."""
    if name.startswith(CHAIN):
        return _chain(name, images, executors, threads, size, gpu)
    return _operation(name, images, executors, size, gpu)


def chain_recipe(name: str, size: int) -> Recipe:
    """The recipe of `chain:RECIPE` in its first epoch; `size` 0 leaves its own."""
    return load_recipe(name.removeprefix(CHAIN), size=size or None).at(0)


# Whole chains.


def _chain(
    name: str, images: list[Bytes], executors: Sequence[str], threads: Sequence[int], size: int, gpu: Gpu | None
) -> Case:
    recipe = chain_recipe(name, size)
    lists = [(view.operations, view.size) for view in recipe.views for _ in range(view.count)]
    contenders = [each for rival in RIVALS if (each := _rival(rival, lists, recipe, images))]
    for executor in _on_cpu(executors):
        counts = threads if executor == "fused_cpu" else (1,)
        contenders += [_executor_chain(executor, recipe, images, many) for many in counts]
    contenders += gpu_contenders(recipe, lists, images, executors, gpu) if gpu else []
    return _case(name, recipe, images, contenders)


def _on_cpu(executors: Sequence[str]) -> list[str]:
    return [name for name in executors if name != "fused_gpu"]


def _rival(rival: Rival, lists: Lists, finish: Recipe | None, images: list[Bytes]) -> Contender | None:
    """None where it has no such operation or is not installed."""
    try:
        steps = [rival.compose(operations, size, finish) for operations, size in lists]
    except (Lacks, MissingExtra):
        return None
    taken = [rival.take(image) for image in images]

    def run() -> None:
        for image in taken:
            for step in steps:
                step(image)

    writes = torch.float32 if finish else torch.uint8
    return Contender(executor=rival.name, run=run, views=len(taken) * len(steps), writes=writes)


def _executor_chain(name: str, recipe: Recipe, images: list[Bytes], threads: int) -> Contender:
    """The recipe by one executor, all images in each of its threads: as loader threads work, each on its own batch."""
    try:
        executor = choose_executor(name, recipe)
    except (UserError, ImportError) as error:
        return Contender(executor=name, run=nothing, views=1, threads=threads, error=str(error))
    shares = [Share.of(images, recipe, "cpu") for _ in range(threads)]
    views = threads * len(images) * recipe.count
    return Contender(executor=name, run=passes_of(executor, recipe, shares), views=views, threads=threads)


def _case(name: str, recipe: Recipe, images: list[Bytes], contenders: list[Contender]) -> Case:
    """With the bytes that each has to move."""
    values = 3 * sum(view.count * view.size**2 for view in recipe.views) / recipe.count  # of a view, over all views
    crop = _crop_bytes(recipe, images)
    for each in contenders:
        each.bytes = crop + each.writes.itemsize * values
    return Case(operation=name, size=recipe.size, contenders=contenders)


def _crop_bytes(recipe: Recipe, images: list[Bytes]) -> float:
    """Of the source, read for a view: its crop's, over the draws of a few epochs."""
    pixels = Pixels.from_images(images)
    areas = [rows_of(recipe, pixels, epoch).parameters[:, :, 0, 2:4].prod(axis=-1).mean() for epoch in range(16)]
    return 3 * float(np.mean(areas))


# Single operations.


def _operation(name: str, images: list[Bytes], executors: Sequence[str], size: int, gpu: Gpu | None) -> Case:
    """The operation on S×S bytes; the crop on the images."""
    operation, is_crop = OPERATIONS[name], Opcode.CROP in OPERATIONS[name].opcodes
    whole = () if is_crop else (CenterCrop(fraction=1.0),)  # a view begins with a crop: this one changes nothing
    recipe = Recipe(name=name, about="", views=(View(operations=(*whole, operation), size=size),))
    if not is_crop:
        images = [np.array(ImageOps.fit(Image.fromarray(image), (size, size))) for image in images]
    lists = [((operation,), size)]
    contenders = [each for rival in RIVALS if (each := _rival(rival, lists, None, images))]
    contenders += [_executor_operation(executor, recipe, images, len(whole)) for executor in _on_cpu(executors)]
    contenders += gpu_contenders(recipe, lists, images, executors, gpu) if gpu else []
    return _case(name, recipe, images, contenders)


def _executor_operation(name: str, recipe: Recipe, images: list[Bytes], first: int) -> Contender:
    """The slots from the first on, drawn beforehand, by one executor."""
    if name not in BY_SLOTS:
        return _executor_chain(name, recipe, images, 1)
    rows = rows_of(recipe, Pixels.from_images(images), 0)
    slots = [_slots(rows, n, first) for n in range(len(images))]
    run_slots = BY_SLOTS[name]

    def run() -> None:
        for image, (opcode, parameters, seed) in zip(images, slots, strict=True):
            run_slots(image, opcode, parameters, seed, recipe)

    return Contender(executor=name, run=run, views=len(images), writes=torch.uint8)


def _slots(rows: Rows, n: int, first: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.uint64]]:
    """Of the first view's program, the used slots from `first` on."""
    which = slice(first, np.count_nonzero(rows.opcode[0, n]))
    return rows.opcode[0, n, which], rows.parameters[0, n, which], rows.seed[0, n, which]


Slots = Callable[[Bytes, NDArray[np.int32], NDArray[np.float32], NDArray[np.uint64], Recipe], Any]


def _by_fused_cpu(image: Bytes, opcode: Any, parameters: Any, seed: Any, recipe: Recipe) -> None:
    fused_cpu.run_slots(image, opcode, parameters, seed, recipe.size)


def _by_reference(image: Bytes, opcode: Any, parameters: Any, seed: Any, recipe: Recipe) -> None:
    for k in range(len(opcode)):
        image = reference.apply(image, Opcode(opcode[k]), parameters[k], int(seed[k]), recipe.size, recipe)


def _by_albumentations(image: Bytes, opcode: Any, parameters: Any, seed: Any, recipe: Recipe) -> None:
    for k in range(len(opcode)):
        if opcode[k] == Opcode.CROP:
            image = albumentations.crop(image, parameters[k], recipe.size)
        else:
            image = albumentations.apply(image, Opcode(opcode[k]), parameters[k], int(seed[k]), recipe)


BY_SLOTS: dict[str, Slots] = {
    "fused_cpu": _by_fused_cpu,
    "reference": _by_reference,
    "albumentations": _by_albumentations,
}
