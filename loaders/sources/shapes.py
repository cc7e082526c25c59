"""`shapes`: the embedded data set. Ten kinds of small things, scattered on a table and photographed in uneven light.

    python engine/train.py --data shapes        # generates it in the cache folder on first use

JPEG files of several sizes, drawn from a seed; image number i is the same whatever the number of threads. A class is
the kind of thing that lies there. Everything that raw pixels, colour histograms and random convolutions respond to is
drawn apart from it: colours, contrasts and turns for each thing, light and shadow for each spot of the table. So
neighbours in those features say little of the class, while it is what two crops of one photograph share.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.progress import track

from penstock.errors import NotWritten, UserError
from penstock.loaders.decode import encode_jpeg
from penstock.loaders.sources.folder import ImageFolder
from penstock.loaders.threads import available_cpus

VERSION = "shapes-v1"  # names the folder in the cache: count up when a single pixel changes
SPLITS = {"train": 3000, "val": 600}  # images, all classes alike
SEED = 0
QUALITY = 90  # of the JPEG files

Field = NDArray[np.floating]  # float32: one number for each pixel, or a colour's three
Generator = np.random.Generator


# What lies on the table. An outline is negative inside; its thing is about one unit in radius.


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A class: what its things look like, in coordinates of their own."""

    outline: Callable[[Field, Field], Field]
    second_colour: Callable[[Field, Field], Field] | None = None
    """Where this is positive, the thing has its second colour."""
    size: float = 1.0


def disc(x: Field, y: Field) -> Field:
    return np.hypot(x, y) - 1


def square(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - 0.95


def box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def cross(x: Field, y: Field) -> Field:
    return np.minimum(box(x, y, 1.1, 0.32), box(x, y, 0.32, 1.1))


def beads(x: Field, y: Field) -> Field:
    """One bead, and six around it."""
    u, v = folded(x, y, 6)
    return np.minimum(np.hypot(x, y), np.hypot(u - 0.85, v)) - 0.26


def ring(x: Field, y: Field) -> Field:
    return np.abs(np.hypot(x, y) - 0.85) - 0.19


def snowflake(x: Field, y: Field) -> Field:
    """Three thin bars that cross."""
    u, v = folded(x, y, 6)
    return np.maximum(u - 1.25, np.abs(v) - 0.11)


def star(x: Field, y: Field, tips: int = 5, waist: float = 0.45) -> Field:
    """A star, or a polygon, whose tips lie at 1.2; `waist` is the radius halfway between two of them."""
    u, v = folded(x, y, tips)
    along, across = waist * cos(pi / tips) - 1.2, waist * sin(pi / tips)
    return ((u - 1.2) * across - np.abs(v) * along) / hypot(along, across)


def triangle(x: Field, y: Field) -> Field:
    return star(x, y, 3, waist=0.6)


def folded(x: Field, y: Field, times: int) -> tuple[Field, Field]:
    """Turn every point into the sector around the x axis, one of `times` equal ones."""
    sector = 2 * pi / times
    angle = (np.arctan2(y, x) + sector / 2) % sector - sector / 2
    radius = np.hypot(x, y)
    return radius * np.cos(angle), radius * np.sin(angle)


CLASSES = {
    "beads": Kind(outline=beads),
    "chequer": Kind(outline=square, second_colour=lambda x, y: np.cos(x * 4.9) * np.cos(y * 4.9), size=1.15),
    "cross": Kind(outline=cross, size=1.1),
    "disc": Kind(outline=disc, size=1.3),
    "needle": Kind(outline=lambda x, y: box(x, y, 1.5, 0.12)),
    "ring": Kind(outline=ring),
    "snowflake": Kind(outline=snowflake),
    "star": Kind(outline=star, size=0.9),
    "stripes": Kind(outline=disc, second_colour=lambda x, y: np.sin(x * 7), size=1.15),
    "triangle": Kind(outline=triangle, size=1.1),
}


# How it is photographed. Images are float32 [H, W, 3] of 0 to 1 until they are exposed.


def render(class_index: int, seed: int, *, split: str, number: int) -> NDArray[np.uint8]:
    """One photograph, uint8 [H, W, 3] with sides of 64 to 160 pixels: a pure function of its arguments."""
    kind = tuple(CLASSES.values())[class_index]
    rng = np.random.Generator(np.random.Philox(key=[seed, list(SPLITS).index(split) << 32 | number]))
    short = int(rng.integers(64, 113))
    long = int(short * rng.uniform(1, 1.42))
    height, width = (short, long) if rng.random() < 0.5 else (long, short)
    light = rng.uniform(0, 2 * pi)
    tilt = rng.uniform(0.9, 1)  # the camera does not look straight down
    image = table(rng, height, width)
    for x, y, radius in scatter(rng, height, width, kind.size):
        put(rng, image, kind, x=x, y=y, radius=radius, light=light, tilt=tilt)
    return expose(rng, image)


def table(rng: Generator, height: int, width: int) -> Field:
    """An almost grey surface, whose grain is of another size each way."""
    across, down = np.exp(rng.uniform(-0.9, 0.9, 2))
    octaves = [(cells * down, cells * across, 0.75**octave) for octave, cells in enumerate((2, 5, 12, 28))]
    grain = sum(smooth(rng, height, width, d, a) * (weight * rng.uniform(0.1, 1)) for d, a, weight in octaves)
    dark, bright = colour(rng, (0, 0.05), (0.42, 0.58)), colour(rng, (0, 0.05), (0.42, 0.58))
    return dark + (bright - dark) * np.clip(0.5 + 0.1 * grain, 0, 1)[..., None]


def scatter(rng: Generator, height: int, width: int, size: float) -> list[tuple[float, float, float]]:
    """(x, y, radius) of things that hardly touch: so many that a crop rarely misses them all."""
    wanted = rng.integers(9, 15)
    placed: list[tuple[float, float, float]] = []
    for _ in range(60):
        radius = min(height, width) * size * rng.uniform(0.17, 0.21)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if len(placed) < wanted and all(hypot(x - a, y - b) > 0.98 * (radius + r) for a, b, r in placed):
            placed.append((x, y, radius))
    return placed


def put(
    rng: Generator, image: Field, kind: Kind, *, x: float, y: float, radius: float, light: float, tilt: float
) -> None:
    """Lay one thing on the table, turned at random, with its shadow."""
    reach = 1.7 * radius
    rows = slice(max(0, int(y - reach)), int(y + reach) + 1)
    columns = slice(max(0, int(x - reach)), int(x + reach) + 1)
    patch = image[rows, columns]
    down, across = np.mgrid[rows, columns][:, : patch.shape[0], : patch.shape[1]].astype(np.float32)
    turn, shadow = rng.uniform(0, 2 * pi), rng.uniform(0.1, 0.35)

    def own(shift: float) -> tuple[Field, Field]:
        """The patch's coordinates in the thing's frame, moved towards the light by `shift`."""
        u = (across - x) / radius + shift * cos(light)
        v = (down - y) / (radius * tilt) + shift * sin(light)
        return u * cos(turn) + v * sin(turn), v * cos(turn) - u * sin(turn)

    shade = np.clip(0.5 - kind.outline(*own(shadow)) / rng.uniform(0.15, 0.5), 0, 1)
    patch *= 1 - rng.uniform(0.2, 0.6) * shade[..., None]
    outline = kind.outline(*own(0))
    paint = painted(rng, kind, *own(0), below=float(patch.mean())) * lit(rng, outline, radius, light)[..., None]
    patch += (paint - patch) * np.clip(0.5 - outline * radius / 1.2, 0, 1)[..., None]


def painted(rng: Generator, kind: Kind, x: Field, y: Field, *, below: float) -> Field:
    """A thing's colours: the first stands out from what is `below`, the second from the first."""
    first = distinct(rng, below, 0.2)
    if kind.second_colour is None:
        return first
    second = distinct(rng, float(first.mean()), 0.25)
    return np.where(kind.second_colour(x, y)[..., None] > 0, first, second)


def lit(rng: Generator, outline: Field, radius: float, light: float) -> Field:
    """How bright the thing's surface is: round towards its edges, with a little grain."""
    height = np.sqrt(np.clip(-2 * outline, 0, 1))
    slope_down, slope_across = np.gradient(height)
    slope = slope_across * cos(light) + slope_down * sin(light)
    grain = smooth(rng, outline.shape[0], outline.shape[1], 6, 6) * rng.uniform(0, 0.1)
    return np.clip(1 - rng.uniform(0.06, 0.18) * radius * slope + grain, 0.3, 1.7)


def expose(rng: Generator, image: Field) -> NDArray[np.uint8]:
    """Uneven light, haze, a colour cast, the sensor's noise and a lens that is not quite in focus."""
    height, width, _ = image.shape
    light = smooth(rng, height, width, 3, 3) * rng.uniform(0.2, 0.4) + rng.uniform(-0.2, 0.15)
    image = image * np.exp(light)[..., None] * rng.uniform(0.97, 1.03, 3).astype(np.float32)
    image += (image.mean() - image) * rng.uniform(0, 0.3)
    image += 0.012 * rng.standard_normal(image.shape, np.float32)
    pixels = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.5))))


def smooth(rng: Generator, height: int, width: int, down: float, across: float) -> Field:
    """Bicubic noise of unit variance at its knots, with so many cells down and across."""
    knots = rng.standard_normal((max(1, int(down)) + 1, max(1, int(across)) + 1), np.float32)
    return np.asarray(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC))


def colour(rng: Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Field:
    """An RGB colour of any hue: HSV's formula."""
    hue, s, v = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(*value)
    sector = (np.array([5, 3, 1], np.float32) + hue) % 6
    return v - v * s * np.clip(np.minimum(sector, 4 - sector), 0, 1)


def distinct(rng: Generator, brightness: float, by: float) -> Field:
    """A colour that differs from a brightness, if eight tries find one."""
    for _ in range(8):
        found = colour(rng, (0, 0.5), (0.1, 1))
        if abs(float(found.mean()) - brightness) > by:
            break
    return found


# Where it is kept.


def shapes_source(split: str, cache: Path) -> ImageFolder:
    """The images of `train` or `val`, generated under `cache` if they are not there.

    Raises:
        UserError: there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"shapes has no split {split!r}: choose one of {', '.join(SPLITS)}")
    root = cache / VERSION / split
    if not root.is_dir():
        try:
            generate(root, split, SPLITS[split])
        except OSError as error:
            raise NotWritten(root, error, "set PENSTOCK_CACHE=FOLDER to another place") from error
    return ImageFolder(root, name=f"shapes-{split}")


def generate(root: Path, split: str, count: int) -> None:
    """Draw `count` images into `root`, which appears when it is whole; of two processes at work, one's is kept."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent, ignore_cleanup_errors=True) as folder:
        unfinished = Path(folder) / root.name
        for name in CLASSES:
            (unfinished / name).mkdir(parents=True)
        with ThreadPoolExecutor(available_cpus()) as pool:
            drawn = pool.map(lambda number: write(unfinished, split, number), range(count))
            for _ in track(drawn, f"drawing shapes ({split})", total=count):
                pass
        try:
            os.rename(unfinished, root)
        except OSError:
            if not root.is_dir():  # else another process was first, with the same images
                raise


def write(folder: Path, split: str, number: int) -> None:
    label = number % len(CLASSES)
    image = render(label, SEED, split=split, number=number)
    (folder / tuple(CLASSES)[label] / f"{number:05d}.jpg").write_bytes(encode_jpeg(image, QUALITY))
