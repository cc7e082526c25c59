"""A contact sheet: what a recipe makes of one photograph, and whether all executors make the same of it.

    python augment/preview.py photo.jpg --recipe simclr
    python augment/preview.py --recipe multi-crop --executors fused_cpu dali --out sheet.png

Columns are views, under the photograph with the crop's box and the values that were drawn; rows are the executors that
can run here, the reference first. The last column shows, for each, the view that is furthest from the reference's.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tyro.conf import Positional

from penstock.augment.draw import draw
from penstock.augment.executors import BACK_ENDS, choose_executor, fallback_opcodes, split_names
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.recipes import load_recipe
from penstock.augment.rows import Opcode, Rows
from penstock.errors import UserError, run_command
from penstock.files import write_whole
from penstock.options import read_options

ORACLE = "reference"
CELL = 2.0  # inches
LETTERS = 30  # of the captions, in a line
QUIETEST = 8  # levels: differences up to this are drawn on one scale, so that a small one looks small
Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Config:
    image: Positional[Path | None] = None
    """Photograph (JPEG, PNG and what else Pillow reads); if not given, a landscape that is drawn."""
    recipe: str = "moco-v2"
    """Augmentations: a name, or a YAML file."""
    size: int | None = None
    """Side of the first view in pixels, at the end if views grow; if not given, the recipe's own."""
    draws: int = 6
    """Views shown, at least: all views of a draw are."""
    seed: int = 0
    """Of the drawn values."""
    epoch: int = 0
    """Whose values, and whose strength and size where they depend on the epoch; counted from 0."""
    executors: tuple[str, ...] = ()
    """Executors to hold against the reference; if not given, all that can run here."""
    fallback: str = ""
    """Operations to send to Albumentations, such as clahe."""
    out: Path = Path("preview.png")
    """The picture to write."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """What one executor made: a view for each column, uint8 [S, S, 3], and how many it sent to Albumentations."""

    name: str
    views: list[NDArray[np.uint8]]
    routed: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two strips, in grey levels.

    Attributes:
        column, y, x, largest: where they differ most, and by how much.
        mean: over all values of all views.
        picture: [S, S], the largest difference of a pixel's three channels, in that column.
    """

    column: int
    y: int
    x: int
    largest: int
    mean: float
    picture: NDArray[np.int16]


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    for name in config.executors:
        if name not in BACK_ENDS:
            raise UserError(f"--executors {name!r} is not known: choose from {', '.join(BACK_ENDS)}")
    for name, least in (("draws", 1), ("epoch", 0)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)}: it takes at least {least}")
    if not 0 <= config.seed < 2**64:
        raise UserError(f"--seed {config.seed}: a seed is at least 0, and less than 2^64")
    if config.out.suffix != ".png":
        raise UserError(f"--out {config.out}: the name must end in .png")
    if not config.out.resolve().parent.is_dir():
        raise UserError(f"--out {config.out}: there is no folder {config.out.resolve().parent}; create it")


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as upright RGB, uint8 [H, W, 3].

    Raises:
        UserError: no such file, or no image that Pillow can read.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip what the loaders scale
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.array(upright.convert("RGB"))
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: is not an image; name a JPEG or PNG file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: is too large for an image; name one of fewer pixels") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path}: cannot be read ({reason}); name a JPEG or PNG file") from error


def landscape(height: int = 375, width: int = 500) -> NDArray[np.uint8]:
    """Hills under a sky with a sun: edges, slopes, grain and many hues, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y / height, x / height
    image = np.array([80, 140, 220]) + np.array([190, 90, -60]) * y[..., None]
    image[np.hypot(x - 1, y - 0.22) < 0.11] = 255, 232, 150
    for nearness, colour in enumerate(((90, 110, 150), (130, 90, 120), (70, 120, 70), (40, 70, 30))):
        ridge = 0.42 + 0.13 * nearness + 0.06 * np.sin(x * (4 + 3 * nearness) + 2 * nearness) + 0.01 * np.sin(x * 47)
        image = np.where((y > ridge)[..., None], np.array(colour) * (1.3 - 2 * (y - ridge)[..., None]), image)
    image += np.random.default_rng(0).normal(0, 7, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def make_strip(name: str, pixels: Pixels, rows: Rows, recipe: Recipe, fallback: tuple[str, ...]) -> Strip:
    """All views by one executor, those of an image next to each other."""
    executor = choose_executor(name, recipe, fallback=fallback)
    device = "cuda" if executor.on_device and torch.cuda.is_available() else "cpu"
    made = []
    for size, views in recipe.groups:
        group = rows.views(views)
        out = torch.empty(*group.opcode.shape[:2], size, size, 3, device=device).permute(0, 1, 4, 2, 3)
        executor(pixels, group, recipe, out)
        made += list(levels(out, recipe))
    return Strip(name=name, views=[view[n] for n in range(len(pixels)) for view in made], routed=executor.routed)


def levels(out: torch.Tensor, recipe: Recipe) -> NDArray[np.uint8]:
    """Normalised [V, N, 3, S, S] as the grey levels it was made from, uint8 [V, N, S, S, 3]."""
    mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
    scaled = (out.permute(0, 1, 3, 4, 2).float().cpu() * std + mean) * 255
    return scaled.round().clamp(0, 255).to(torch.uint8).numpy()


def make_strips(config: Config, pixels: Pixels, rows: Rows, recipe: Recipe) -> tuple[list[Strip], dict[str, str]]:
    """The reference's strip and those of the others; and why an executor that was not asked for cannot run."""
    fallback_opcodes(split_names(config.fallback))  # a wrong name is no executor's fault
    strips, absent = [make_strip(ORACLE, pixels, rows, recipe, ())], {}
    for name in config.executors or BACK_ENDS:
        if name == ORACLE:
            continue
        if name == "fused_gpu" and not config.executors and not torch.cuda.is_available():
            absent[name] = "slow without a GPU, in Triton's interpreter: --executors fused_gpu runs it all the same"
            continue
        try:
            strips.append(make_strip(name, pixels, rows, recipe, split_names(config.fallback)))
        except (UserError, ImportError) as error:
            if config.executors:
                raise UserError(f"--executors {name}: {error}") from error
            absent[name] = str(error)
    return strips, absent


def compare(strip: Strip, oracle: Strip) -> Difference:
    """How far a strip is from the reference's."""
    apart = [abs(ours.astype(np.int16) - theirs) for ours, theirs in zip(strip.views, oracle.views, strict=True)]
    column = int(np.argmax([each.max() for each in apart]))
    y, x, _ = np.unravel_index(np.argmax(apart[column]), apart[column].shape)
    mean = sum(int(each.sum()) for each in apart) / sum(each.size for each in apart)
    largest = int(apart[column].max())
    return Difference(column=column, y=int(y), x=int(x), largest=largest, mean=mean, picture=apart[column].max(axis=2))


# Captions: each slot in a few letters.


def short(value: float, sign: str = "") -> str:
    """Two decimals at most, and none that say nothing: 1.2, .04, +3; `sign="+"` always writes a sign."""
    text = f"{value:{sign}.2f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".", 1) if abs(value) < 1 and "." in text else text


CAPTIONS: dict[Opcode, Callable[[Values], str]] = {
    Opcode.CROP: lambda v: f"crop {v[3]:.0f}×{v[2]:.0f}+{v[1]:.0f}+{v[0]:.0f}",  # X11's: width, height, left, top
    Opcode.HORIZONTAL_FLIP: lambda v: "flip",
    Opcode.VERTICAL_FLIP: lambda v: "flip ↕",
    Opcode.BRIGHTNESS: lambda v: f"bright ×{short(v[0])}",
    Opcode.CONTRAST: lambda v: f"contrast ×{short(v[0])}",
    Opcode.SATURATION: lambda v: f"saturation ×{short(v[0])}",
    Opcode.HUE: lambda v: f"hue {short(v[0], '+')}",
    Opcode.GRAY: lambda v: "gray",
    Opcode.GAUSSIAN_BLUR: lambda v: f"blur σ{short(v[0])}",
    Opcode.SOLARIZE: lambda v: f"solarize ≥{short(v[0])}",
    Opcode.BRIGHTNESS_CONTRAST: lambda v: f"levels ×{short(v[0])}{v[1]:+.0f}",
    Opcode.CLAHE: lambda v: f"CLAHE {short(v[0])}",
    Opcode.BOX_BLUR: lambda v: f"box {2 * v[0] + 1:.0f}×{2 * v[0] + 1:.0f}",
    Opcode.SHARPEN: lambda v: f"sharpen α{short(v[0])}",
    Opcode.CHANNEL_SHUFFLE: lambda v: "channels " + "".join("RGB"[int(source)] for source in v[:3]),
    Opcode.HSV_SHIFT: lambda v: f"HSV {short(v[0], '+')} {short(v[1], '+')} {short(v[2], '+')}",
    Opcode.COARSE_DROPOUT: lambda v: f"{v[0]:.0f} holes {v[2]:.0f}×{v[1]:.0f}",
    Opcode.GAUSSIAN_NOISE: lambda v: f"noise σ{short(v[0])}",
}


def caption(rows: Rows, view: int, sample: int, recipe: Recipe) -> str:
    """The drawn values of a row: `crop 120×98+14+33 · bright ×1.23 · hue +.04 · blur σ1.1 · flip`."""
    return " · ".join(
        recipe.foreign[int(values[0])].transform if opcode == Opcode.ALBUMENTATIONS else CAPTIONS[opcode](values)
        for opcode, values, _ in rows.program(view, sample)
    )


def wrapped(text: str) -> str:
    """A caption in lines of at most LETTERS, whose slots are kept whole where they fit."""
    slots = text.replace(" · ", "\n").replace(" ", "\N{NO-BREAK SPACE}").replace("\n", "\N{NO-BREAK SPACE}· ")
    return textwrap.fill(slots, LETTERS)


# The sheet.


def draw_sheet(image: NDArray[np.uint8], rows: Rows, recipe: Recipe, strips: list[Strip]) -> Figure:
    """One row for the photograph and one for each strip; one column for each view and one for the differences."""
    columns = len(strips[0].views)
    dpi = max(110, min(220, -(-recipe.size // CELL)))  # a view's pixel is at least one of the picture's
    shape = len(strips) + 1, columns + 1
    figure = Figure(figsize=(CELL * shape[1], (CELL + 0.25) * shape[0] + 0.8), dpi=dpi, layout="constrained")
    grid = figure.subplots(*shape, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for column, axes in enumerate(grid[0, :-1]):
        sample, view = divmod(column, recipe.count)
        _source(axes, image, rows.parameters[view, sample, 0])
        axes.set_title(f"draw {sample}, view {view}: {len(strips[0].views[column])} px", fontsize=8)
        axes.set_xlabel(wrapped(caption(rows, view, sample, recipe)), fontsize=7)
    for line, strip in zip(grid[1:], strips, strict=True):
        _strip(line, strip, strips[0], recipe.count)
    grid[0, -1].text(0.5, 0.5, "largest difference\nto the reference,\ngrey levels", ha="center", va="center", size=8)
    figure.suptitle(textwrap.fill(str(recipe), LETTERS * columns), fontsize=8, x=0.01, ha="left")
    return figure


def _source(axes: Axes, image: NDArray[np.uint8], box: Values) -> None:
    """The photograph with the crop's box."""
    top, left, height, width = box[:4].tolist()
    axes.imshow(image)
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color="white", linewidth=2))
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color="black", linewidth=0.8))


def _strip(line: NDArray[np.object_], strip: Strip, oracle: Strip, count: int) -> None:
    """An executor's views, and where it is furthest from the reference."""
    for axes, view in zip(line[:-1], strip.views, strict=True):
        axes.imshow(view, interpolation="nearest")
    routed = f"\n{strip.routed} of {len(strip.views)} routed" if strip.routed else ""
    line[0].set_ylabel(strip.name + routed, fontsize=9)
    if strip is oracle:
        return
    found = compare(strip, oracle)
    place = f" at x {found.x}, y {found.y}\nof draw {found.column // count}, view {found.column % count}"
    most = f"max {found.largest}{place if found.largest else ''}"
    line[-1].set_xlabel(f"{most}\nmean {found.mean:.2g}", fontsize=7)
    line[-1].imshow(found.picture, cmap="inferno", vmin=0, vmax=max(QUIETEST, found.largest), interpolation="nearest")
    if found.largest:
        line[-1].add_patch(Circle((found.x, found.y), len(found.picture) / 14, fill=False, color="white"))


def main(arguments: list[str] | None = None) -> int:
    config = read_options(Config, __doc__, arguments)
    check(config)
    recipe = load_recipe(config.recipe, size=config.size).at(config.epoch)
    image = landscape() if config.image is None else read_image(config.image)
    draws = -(-config.draws // recipe.count)
    pixels = Pixels.from_images([image] * draws)
    index, height, width = np.arange(draws), pixels.height, pixels.width
    rows = draw(recipe, seed=config.seed, epoch=config.epoch, index=index, height=height, width=width)
    strips, absent = make_strips(config, pixels, rows, recipe)
    write_whole(config.out, draw_sheet(image, rows, recipe, strips).savefig)
    print(recipe)
    for name, reason in absent.items():
        print(f"without {name}: {reason}")
    print(f"{config.out}: {len(strips)} executors, {len(strips[0].views)} views")
    return 0


if __name__ == "__main__":
    run_command(main)
