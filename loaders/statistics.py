"""Measure a set's mean and std per channel, as a recipe's normalisation takes them.

    python loaders/statistics.py path/to/images
    python loaders/statistics.py train.beton --size 224 --json statistics.json
    python loaders/statistics.py cifar10 --subset 5000

Images are read, decoded and added up in threads, once, a few at a time: memory does not grow with the set. Sums are
kept in whole numbers, so the result is the same to the last digit whatever the number of threads.

Two figures go by the name of std, and both are printed:

- over all pixels of the set: how far a pixel is from the set's mean. Normalised by it, the set has a variance of 1.
- the mean of the images' own: how far a pixel is from its image's mean. It is smaller, as it leaves out what images
  differ by as wholes. The figures that most people use are of this kind: ImageNet's (.229, .224, .225), see
  github.com/pytorch/vision/pull/1965, CIFAR-10's (.2023, .1994, .2010; n - 1 in each image).

Each image weighs the same, as it does in training, however many pixels it has. What comes out where each pixel weighs
the same, so that large photographs count for more, is printed beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from penstock.augment.draw import draw
from penstock.augment.fused_cpu import run_slots
from penstock.augment.recipe import Recipe, evaluation
from penstock.errors import BrokenImage, UserError, run_command
from penstock.files import write_whole
from penstock.loaders.in_order import in_order
from penstock.loaders.pipeline import compile_views
from penstock.loaders.progress import Bar, bar
from penstock.loaders.skipped import ON_ERROR
from penstock.loaders.sources import Source, open_source
from penstock.loaders.threads import available_cpus
from penstock.options import read_options

LEVELS = 255  # the grey level that counts as 1
UNIT = 1 << 64  # what one grey level is in sums over images, whose means are fractions
STRIP = 1 << 15  # pixels added up at once: they stay in the processor's cache
CHUNK = 8  # images a task
Triple = tuple[float, float, float]  # red, green, blue
Integers = NDArray[np.object_]  # Python's, which do not overflow


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """What is known of some images; two of them added are what is known of both.

    Attributes:
        images, pixels: how many.
        levels: Integers [2, 3], over all pixels: the sums of the grey levels of each channel, and of their squares.
        moments: Integers [3, 3], over the images: the sums of each one's mean level, mean square and std, in `UNIT`s.
    """

    images: int
    pixels: int
    levels: Integers
    moments: Integers

    @classmethod
    def none(cls) -> Sums:
        """Of no image."""
        return cls(images=0, pixels=0, levels=np.full((2, 3), 0, object), moments=np.full((3, 3), 0, object))

    @classmethod
    def of(cls, image: NDArray[np.uint8]) -> Sums:
        """Of one image, uint8 [H, W, 3]."""
        pixels = image.shape[0] * image.shape[1]
        levels = _sums_of_levels(image).astype(object)
        std = [math.isqrt(scatter * UNIT**2) // pixels for scatter in _scatter(pixels, *levels)]
        moments = np.array([*(levels * UNIT // pixels), std], object)
        return cls(images=1, pixels=pixels, levels=levels, moments=moments)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            images=self.images + other.images,
            pixels=self.pixels + other.pixels,
            levels=self.levels + other.levels,
            moments=self.moments + other.moments,
        )


def _sums_of_levels(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64 [2, 3]: the sums of an image's levels and of their squares, exact: whole numbers."""
    pixels = image.reshape(-1, 3)
    sums = np.zeros((2, 3), np.int64)
    for first in range(0, len(pixels), STRIP):
        levels = pixels[first : first + STRIP].T.astype(np.uint16, order="C")  # whose squares fit, too
        sums += [levels.sum(1, dtype=np.int64), np.square(levels).sum(1, dtype=np.int64)]
    return sums


def _scatter(count: int, total: Integers, squares: Integers) -> Integers:
    """count² times the variance of numbers with these sums, exactly, where a difference of means would lose digits."""
    return count * squares - total * total


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and std of pixels scaled to 0 … 1, for red, green and blue.

    Attributes:
        images, pixels: how many there are.
        mean, std: over all pixels, where each image weighs the same.
        own_std: the mean of the images' own std.
        pixel_mean, pixel_std: over all pixels, where each pixel weighs the same.
        skipped: `location` and `reason` of each broken image left out.
    """

    images: int
    pixels: int
    mean: Triple
    std: Triple
    own_std: Triple
    pixel_mean: Triple
    pixel_std: Triple
    skipped: tuple[dict[str, str], ...]

    @classmethod
    def of(cls, sums: Sums, skipped: tuple[dict[str, str], ...] = ()) -> Statistics:
        """What these sums, of at least one image, come to."""
        mean, square, own_std = sums.moments
        total, squares = sums.levels
        return cls(
            images=sums.images,
            pixels=sums.pixels,
            mean=_scaled(mean, sums.images * UNIT),
            std=_std(sums.images * UNIT, mean, square),
            own_std=_scaled(own_std, sums.images * UNIT),
            pixel_mean=_scaled(total, sums.pixels),
            pixel_std=_std(sums.pixels, total, squares),
            skipped=skipped,
        )


def _scaled(total: Integers, count: int) -> Triple:
    """Sums of levels as means, 0 … 1."""
    red, green, blue = (channel / (count * LEVELS) for channel in total)
    return red, green, blue


def _std(count: int, total: Integers, squares: Integers) -> Triple:
    """The std of so many numbers with these sums, of levels, scaled to 0 … 1."""
    scatter = (max(0, channel) for channel in _scatter(count, total, squares))  # the last of 64 bits is rounded
    red, green, blue = (math.sqrt(channel) / (count * LEVELS) for channel in scatter)
    return red, green, blue


def measure(
    source: Source,
    *,
    size: int | None = None,
    workers: int | None = None,
    on_error: str = "stop",
    progress: bool = True,
) -> Statistics:
    """Read a source once and add up its pixels.

    Args:
        size: measure each image's centre at so many pixels a side (`recipe.evaluation`); None: whole images.
        workers: threads, at least one; None takes every CPU this process may use.
        on_error: `stop` at the first broken image, or `skip` it.
        progress: show a bar on standard error.

    Raises:
        UserError: a wrong option, a broken image (and `on_error="stop"`), or none that can be read.
    """
    if on_error not in ON_ERROR:
        raise UserError(f"--on-error {on_error!r} is not known: choose one of {', '.join(ON_ERROR)}")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: at least one thread must do the work")
    view = None if size is None else evaluation(size)
    compile_views(speaks=progress)
    sums, skipped = Sums.none(), list[dict[str, str]]()
    with bar(source.name, len(source), disable=not progress) as shown:
        for image in _each(source, view, workers or available_cpus(), shown):
            if isinstance(image, Sums):
                sums += image
            elif on_error == "skip":
                skipped.append({"location": image.location, "reason": image.reason})
            else:
                raise UserError(f"{image}, or leave such images out with --on-error skip")
    if not sums.images:
        first = "{location}: {reason}".format(**skipped[0])
        raise UserError(f"{source.name}: not one of its {len(source)} images can be read; {first}")
    return Statistics.of(sums, tuple(skipped))


def _each(source: Source, view: Recipe | None, workers: int, shown: Bar) -> Iterator[Sums | BrokenImage]:
    """What is known of each image, in order: how many are ahead of it in memory hangs on `workers` alone."""

    def task(first: int) -> list[tuple[Sums | BrokenImage, int]]:
        return [_one(source, index, view) for index in range(first, min(first + CHUNK, len(source)))]

    for results in in_order(task, range(0, len(source), CHUNK), workers):
        for image, size in results:
            shown.advance(size)
            yield image


def _one(source: Source, index: int, view: Recipe | None) -> tuple[Sums | BrokenImage, int]:
    """What is known of an image, and how many bytes it was decoded to."""
    try:
        image = source.decode(index)
    except BrokenImage as error:
        return error, 0
    return Sums.of(image if view is None else _view(image, view)), image.nbytes


def _view(image: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.uint8]:
    """The one view, uint8 [S, S, 3], of a recipe without chance."""
    height, width = (np.array([side]) for side in image.shape[:2])
    rows = draw(recipe, seed=0, epoch=0, index=np.zeros(1, np.int64), height=height, width=width)
    return run_slots(image, rows.opcode[0, 0], rows.parameters[0, 0], rows.seed[0, 0], recipe.size)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    source: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")] = "shapes"
    """A folder of images, a data set's name (shapes, cifar10, …), NAME:FOLDER, or a shard."""
    split: str = "train"
    """Split of the set: train, val, or unlabeled."""
    class_list: Path | None = None
    """Take only the classes named in this file, one a line."""
    subset: int | None = None
    """Take only so many images, the same class-balanced choice each time."""
    size: int | None = None
    """Measure each image's centre at so many pixels a side (224: resize to 256, centre crop), which is smoother than a
    photograph. Whole images as they are unless given."""
    workers: int | None = None
    """Threads; as many as there are CPUs unless given."""
    on_error: str = "stop"
    """What a broken image does: stop, or skip (and name it)."""
    json: Path | None = None
    """Write all figures, unrounded, to this file."""


def main(arguments: list[str] | None = None) -> int:
    config = read_options(Config, __doc__, arguments)
    source = open_source(config.source, config.split, class_list=config.class_list, limit=config.subset)
    begin = time.perf_counter()
    statistics = measure(source, size=config.size, workers=config.workers, on_error=config.on_error)
    rate = statistics.images / (time.perf_counter() - begin)
    skipped = f", {len(statistics.skipped)} broken skipped" if statistics.skipped else ""
    pixels = f"{statistics.pixels / 1e6:.1f} M pixels"
    print(f"{source.name}: {statistics.images} images of {pixels}, {rate:.0f} images/s{skipped}")
    for broken in statistics.skipped:
        print("skipped {location}: {reason}".format(**broken))
    Console().print(_table(statistics))
    print(_lines(statistics))
    if config.json:
        values = {"source": source.name, "size": config.size, **asdict(statistics)}
        write_whole(config.json, lambda path: path.write_text(json.dumps(values, indent=2) + "\n"))
    return 0


def _table(statistics: Statistics) -> Table:
    table = Table("", "red", "green", "blue", box=box.SIMPLE_HEAD)
    rows = {
        "mean": statistics.mean,
        "std over all pixels": statistics.std,
        "mean of the images' own std": statistics.own_std,
        "mean, each pixel weighing the same": statistics.pixel_mean,
        "std over all pixels, each weighing the same": statistics.pixel_std,
    }
    for name, triple in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in triple))
    return table


def _lines(statistics: Statistics) -> str:
    """YAML for a recipe; each image weighs the same."""
    mean, std, own_std = (
        f"[{', '.join(f'{value:.4f}' for value in triple)}]"
        for triple in (statistics.mean, statistics.std, statistics.own_std)
    )
    return f"mean: {mean}\nstd: {std}  # over all pixels; the mean of the images' own: {own_std}"


if __name__ == "__main__":
    run_command(main)
