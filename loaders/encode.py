"""How an image is stored in a shard: its own JPEG bytes, a new JPEG, or pixels; and threads that do it in order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penstock.errors import BrokenImage, UserError
from penstock.loaders.decode import MOST_PIXELS, decode_rgb, encode_jpeg, encode_png, image_size, is_canonical
from penstock.loaders.in_order import in_order
from penstock.loaders.jpeg_check import looks_whole
from penstock.loaders.shard import Entry, checksum
from penstock.loaders.sources.base import Source

ENCODINGS = ("keep", "jpeg", "raw")
CHECKS = ("quick", "decode")
LONGEST_SIDE = 65535  # JPEG's limit, and that of the 16 bits that a `.beton` has for it
CHUNK = 8  # images per task: enough to hide a task's overhead, few enough to bound memory


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are stored."""

    encoding: str = "keep"
    """keep (a JPEG's bytes untouched where possible), jpeg (all encoded anew), raw (pixels; PNG in a tar).
    Pixels in a .beton are 8 MiB at most, 2.8 megapixels: what is larger becomes a JPEG, and is counted."""
    quality: int = 90
    """JPEG quality of what is encoded anew, 1-100."""
    max_side: int | None = None
    """Shrink images whose longer side is above this many pixels, down to it."""
    short_side: int | None = None
    """Shrink images whose shorter side is above this many pixels, down to it."""
    check: str = "quick"
    """How JPEGs that pass through are looked at; all others are decoded anyway.
    quick: headers, end, stray markers, holes; finds files cut short, at the speed of the disk.
    decode: every pixel too; finds damage between whole markers, which quick leaves to --verify and to reading."""

    def validate(self) -> None:
        """Raises UserError for values that cannot work."""
        if self.encoding not in ENCODINGS:
            raise UserError(f"--encoding {self.encoding!r} is not known: choose one of {', '.join(ENCODINGS)}")
        if self.check not in CHECKS:
            raise UserError(f"--check {self.check!r} is not known: choose one of {', '.join(CHECKS)}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: JPEG quality is a number from 1 to 100")
        for flag, side in (("--max-side", self.max_side), ("--short-side", self.short_side)):
            if side is not None and side < 1:
                raise UserError(f"{flag} {side}: a side is at least 1 pixel")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The stored height and width of an image: within both limits, never enlarged."""
        longer = self.max_side / max(height, width) if self.max_side else 1.0
        shorter = self.short_side / min(height, width) if self.short_side else 1.0
        scale = min(1.0, longer, shorter)
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True)
class Stored:
    """One image as it will lie in the shard."""

    entry: Entry
    data: bytes


Form = tuple[bytes, str, int, int, str | None]  # what an image becomes: its bytes; kind, height, width, change of Entry


def encode_all(
    source: Source, how: Encoding, page: int | None, workers: int, numbers: range | None = None
) -> Iterator[Stored | BrokenImage]:
    """The source's images, in order, made by threads that run a bounded way ahead.

    Args:
        page: the most bytes an image may take, for shards of pages; None where there is no limit.
        numbers: which images; None takes all.
    """
    numbers = range(len(source)) if numbers is None else numbers

    def chunk(first: int) -> list[Stored | BrokenImage]:
        return [encode_one(source, number, how, page) for number in numbers[first : first + CHUNK]]

    for images in in_order(chunk, range(0, len(numbers), CHUNK), workers):
        yield from images


def encode_one(source: Source, number: int, how: Encoding, page: int | None) -> Stored | BrokenImage:
    """One image as `how` wants it; a broken one is returned, so that the writer meets it in its turn."""
    try:
        data, kind, height, width, change = _form(source, number, how, page)
    except BrokenImage as error:
        return error
    except (OSError, ValueError) as error:
        return BrokenImage(source.location(number), str(error))
    label = int(source.labels[number])
    return Stored(Entry(number, kind, height, width, label, len(data), checksum(data, label), change), data)


def _form(source: Source, number: int, how: Encoding, page: int | None) -> Form:
    """Raises BrokenImage, or ValueError for an image that the shard cannot hold."""
    original = b"" if source.storage in ("arrays", "raw") else source.encoded(number)
    jpeg = original.startswith(b"\xff\xd8\xff")
    obstacle = _obstacle(original, how, page) if jpeg else "not JPEG"
    if obstacle is None and how.check == "quick" and looks_whole(original):
        height, width = image_size(original)
        if 0 < height * width <= MOST_PIXELS:
            return original, "jpeg", height, width, None
    image = decode_rgb(original, source.location(number)) if original else source.decode(number)
    if obstacle is None:
        height, width = image.shape[:2]
        return original, "jpeg", height, width, None
    lossless = how.encoding == "raw" or (how.encoding == "keep" and not jpeg)
    return _encode(_shrink(image, how), how, page, lossless, obstacle)


def _obstacle(jpeg: bytes, how: Encoding, page: int | None) -> str | None:
    """Why a JPEG's bytes cannot be passed through, or None. Only headers and the end are looked at."""
    if how.encoding != "keep":
        return "as asked"
    if not is_canonical(jpeg):
        return "not a plain upright JPEG"
    if not jpeg.endswith(b"\xff\xd9"):
        return "bytes after its end"  # or cut short, which decoding will tell
    if len(jpeg) > (page or sys.maxsize):
        return "larger than a page"
    size = image_size(jpeg)
    return "resized" if how.size(*size) != size else None


def _shrink(image: NDArray[np.uint8], how: Encoding) -> NDArray[np.uint8]:
    height, width = how.size(*image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _encode(image: NDArray[np.uint8], how: Encoding, page: int | None, lossless: bool, change: str) -> Form:
    """Raises ValueError for an image that the shard cannot hold."""
    height, width = image.shape[:2]
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(f"{width} x {height} pixels; a side has at most {LONGEST_SIDE}: use --max-side")
    if lossless:
        if page is None:
            return encode_png(image), "png", height, width, change
        if image.nbytes <= page:
            return image.tobytes(), "raw", height, width, change
        change = "larger than a page"
    data = encode_jpeg(image, how.quality)
    if len(data) > (page or sys.maxsize):
        raise ValueError(f"{len(data)} bytes as JPEG, more than a page of {page}: use --max-side")
    return data, "jpeg", height, width, change
