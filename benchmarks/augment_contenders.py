"""Who runs in benchmarks/augment.py: for each operation and chain, passes over decoded images in memory.

A chain goes from the decoded image to normalised float32 views, its random values included, by every contender. An
operation goes from bytes to bytes, S×S (the crop from the image), where an executor can be asked for one; `dali` and
`fused_gpu` cannot, so theirs go on to normalised views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, repeat
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from penstock.augment import Pixels, Recipe, Rows, albumentations, draw, fused_cpu, load_recipe, reference
from penstock.augment.executors import Executor, choose_executor
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
from penstock.benchmarks.augment_dali import dali_pipeline
from penstock.benchmarks.augment_rivals import RIVALS, Bytes, Lacks, Rival, kornia_compose
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
BASELINES = ("torchvision-pil", "albumentations-compose")  # the first that has the operation
CROWD = 256  # images in a pass on a GPU, at least
FLOAT = 4  # bytes of a float32


def _nothing() -> None:
    pass


@dataclass(kw_only=True)
class Contender:
    """One executor or rival on one operation.

    Attributes:
        run: makes `views` views.
        bytes: for each, the source's that its crop takes in, read once, and its own, written once.
        settle: waits until they are made, where that is later than `run` returns.
        times: microseconds a view, in each round.
        error: why nothing was measured.
    """

    executor: str
    run: Callable[[], Any]
    views: int
    bytes: float = 0.0
    threads: int = 1
    device: str = "cpu"
    settle: Callable[[], Any] = _nothing
    times: list[float] = field(default_factory=list)
    error: str | None = None

    def warm(self) -> None:
        """A pass that does not count: compilation, first allocations. Where it fails, `error` says why."""
        try:
            self.run()
            self.settle()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"

    def measure(self, seconds: float) -> None:
        """Whole passes for at least so long."""
        began, passes = perf_counter(), 0
        while not passes or perf_counter() - began < seconds:
            self.run()
            passes += 1
        self.settle()
        self.times.append((perf_counter() - began) / (passes * self.views) * 1e6)

    def rest(self) -> None:
        """Give its images and views back: it will not run again."""
        self.run = self.settle = _nothing


@dataclass(kw_only=True)
class Case:
    """An operation or a chain, and who runs in it.

    Attributes:
        size: of the first view, pixels.
    """

    operation: str
    size: int
    contenders: list[Contender]

    @property
    def baseline(self) -> Contender | None:
        ran = {each.executor: each for each in self.contenders if not each.error}
        return next((ran[name] for name in BASELINES if name in ran), None)


def make_case(name: str, images: list[Bytes], executors: Sequence[str], threads: Sequence[int], size: int) -> Case:
    """The case of that name: one of OPERATIONS, or `chain:RECIPE`."""
    if name.startswith(CHAIN):
        return _chain(name, images, executors, threads, size)
    return _operation(name, images, executors, size)


def chain_recipe(name: str, size: int) -> Recipe:
    """The recipe of `chain:RECIPE` in its first epoch; `size` 0 leaves its own."""
    return load_recipe(name.removeprefix(CHAIN), size=size or None).at(0)


# Whole chains.


def _chain(name: str, images: list[Bytes], executors: Sequence[str], threads: Sequence[int], size: int) -> Case:
    recipe = chain_recipe(name, size)
    contenders = [each for rival in RIVALS if (each := _rival_chain(rival, recipe, images))]
    if torch.cuda.is_available():
        contenders += [each for make in (_kornia_chain, _dali_chain) if (each := make(recipe, _crowd(images)))]
    for executor in executors:
        counts = threads if executor == "fused_cpu" else (1,)
        contenders += [_executor_chain(executor, recipe, images, many) for many in counts]
    for each in contenders:
        each.bytes = _crop_bytes(recipe, images) + FLOAT * _view_bytes(recipe)
    return Case(operation=name, size=recipe.size, contenders=contenders)


def _rival_chain(rival: Rival, recipe: Recipe, images: list[Bytes]) -> Contender | None:
    try:
        steps = [rival.compose(view.operations, view.size, recipe) for view in recipe.views for _ in range(view.count)]
    except (Lacks, MissingExtra):
        return None
    return _rival(rival, steps, images)


def _rival(rival: Rival, steps: list[Callable[[Any], Any]], images: list[Bytes]) -> Contender:
    taken = [rival.take(image) for image in images]

    def run() -> None:
        for image in taken:
            for step in steps:
                step(image)

    return Contender(executor=rival.name, run=run, views=len(taken) * len(steps))


def _kornia_chain(recipe: Recipe, images: list[Bytes]) -> Contender | None:
    """Kornia takes batches of one size, so the images are resized to the first one's beforehand, at no cost to it."""
    try:
        steps = [kornia_compose(view.operations, view.size, recipe) for view in recipe.views for _ in range(view.count)]
    except Lacks:
        return None
    height, width, _ = images[0].shape
    equal = np.stack([np.array(Image.fromarray(image).resize((width, height))) for image in images])
    batch = torch.from_numpy(equal).permute(0, 3, 1, 2).cuda()
    return _on_gpu("kornia", lambda: [step(batch) for step in steps], len(batch) * len(steps))


def _dali_chain(recipe: Recipe, images: list[Bytes]) -> Contender | None:
    try:
        return _on_gpu("dali-pipeline", dali_pipeline(recipe, images, "gpu"), len(images) * recipe.count)
    except Lacks:
        return None


def _on_gpu(name: str, run: Callable[[], Any], views: int) -> Contender:
    return Contender(executor=name, run=run, views=views, device="cuda", settle=torch.cuda.synchronize)


def _executor_chain(name: str, recipe: Recipe, images: list[Bytes], threads: int) -> Contender:
    """The recipe by one executor, all images in each of its threads: as loader threads work, each on its own batch."""
    try:
        executor = choose_executor(name, recipe)
    except (UserError, ImportError) as error:
        return Contender(executor=name, run=_nothing, views=1, threads=threads, error=str(error))
    device = "cuda" if executor.on_device and torch.cuda.is_available() else "cpu"
    images = images if device == "cpu" else _crowd(images)
    shares = [Share.of(images, recipe, device) for _ in range(threads)]
    run = _passes(executor, recipe, shares, threads)
    settle = torch.cuda.synchronize if device == "cuda" else _nothing
    views = threads * len(images) * recipe.count
    return Contender(executor=name, run=run, views=views, threads=threads, device=device, settle=settle)


def _passes(executor: Executor, recipe: Recipe, shares: list[Share], threads: int) -> Callable[[], Any]:
    """Each call draws the rows of the next epoch, share by share, and runs them."""
    epochs = count()

    def augment(share: Share, epoch: int) -> None:
        rows = rows_of(recipe, share.pixels, epoch)
        for (_, views), out in zip(recipe.groups, share.out, strict=True):
            executor(share.pixels, rows.views(views), recipe, out)

    if threads == 1:
        return lambda: augment(shares[0], next(epochs))
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(augment, shares, repeat(next(epochs))))


def _crowd(images: list[Bytes]) -> list[Bytes]:
    """As many images as keep a GPU busy."""
    return images * -(-CROWD // len(images))


@dataclass(frozen=True)
class Share:
    """Some images in one buffer, and a tensor for each group of their views, [V, N, 3, S, S], filled in each pass.

    No pass takes new memory: rivals' views are small enough to be given back and taken again, and the batch that they
    would be copied into is not counted either.
    """

    pixels: Pixels
    out: list[torch.Tensor]

    @staticmethod
    def of(images: list[Bytes], recipe: Recipe, device: str) -> Share:
        """On a GPU the images lie there, too, unless rows have to be finished on the CPU."""
        pixels = Pixels.from_images(images)
        if device != "cpu" and not recipe.foreign:
            pixels = replace(pixels, data=torch.from_numpy(pixels.data).to(device))  # type: ignore[arg-type]
        shapes = ((v.stop - v.start, len(images), size, size, 3) for size, v in recipe.groups)
        return Share(pixels, [torch.empty(shape, device=device).permute(0, 1, 4, 2, 3) for shape in shapes])


def rows_of(recipe: Recipe, pixels: Pixels, epoch: int) -> Rows:
    index = np.arange(len(pixels))
    return draw(recipe, seed=0, epoch=epoch, index=index, height=pixels.height, width=pixels.width)


# Bytes: what cannot be avoided.


def _crop_bytes(recipe: Recipe, images: list[Bytes]) -> float:
    """Of the source, read for a view: its crop's, over the draws of a few epochs."""
    pixels = Pixels.from_images(images)
    areas = [rows_of(recipe, pixels, epoch).parameters[:, :, 0, 2:4].prod(axis=-1).mean() for epoch in range(16)]
    return 3 * float(np.mean(areas))


def _view_bytes(recipe: Recipe) -> float:
    """Values of a view, over the recipe's views."""
    return 3 * sum(view.count * view.size**2 for view in recipe.views) / recipe.count


# Single operations.


def _operation(name: str, images: list[Bytes], executors: Sequence[str], size: int) -> Case:
    """The operation on S×S bytes; the crop on the images."""
    operation, is_crop = OPERATIONS[name], Opcode.CROP in OPERATIONS[name].opcodes
    whole = () if is_crop else (CenterCrop(fraction=1.0),)  # a view begins with a crop: this one changes nothing
    recipe = Recipe(name=name, about="", views=(View(operations=(*whole, operation), size=size),))
    if not is_crop:
        images = [np.array(ImageOps.fit(Image.fromarray(image), (size, size))) for image in images]
    contenders = [each for rival in RIVALS if (each := _rival_operation(rival, operation, size, images))]
    contenders += [_executor_operation(executor, recipe, images, len(whole)) for executor in executors]
    for each in contenders:
        width = 1 if each.executor in BYTES_OUT else FLOAT
        each.bytes = _crop_bytes(recipe, images) + width * _view_bytes(recipe)
    return Case(operation=name, size=size, contenders=contenders)


def _rival_operation(rival: Rival, operation: Operation, size: int, images: list[Bytes]) -> Contender | None:
    try:
        return _rival(rival, [rival.compose((operation,), size, None)], images)
    except (Lacks, MissingExtra):
        return None


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

    return Contender(executor=name, run=run, views=len(images))


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
BYTES_OUT = {*BY_SLOTS, *(rival.name for rival in RIVALS)}  # the others write float32
