"""How an image is stored in a shard: its own JPEG bytes, a new JPEG, or pixels; and threads that do it in order."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penstock.errors import BrokenImage, UserError
from penstock.loaders.decode import decode_rgb, encode_jpeg, encode_png, image_size, is_canonical
from penstock.loaders.sources.base import Source

ENCODINGS = ("keep", "jpeg", "raw")
LONGEST_SIDE = 65535  # JPEG's limit, and that of the 16 bits that a `.beton` has for it
CHUNK = 8  # images per task: enough to hide a task's overhead, few enough to bound memory
AHEAD = 2  # tasks in flight for each worker


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are stored."""

    encoding: str = "keep"
    """keep (a JPEG's bytes untouched where possible), jpeg (all encoded anew), raw (pixels; PNG in a tar)."""
    quality: int = 90
    """JPEG quality of what is encoded anew, 1-100."""
    max_side: int | None = None
    """Shrink images whose longer side is above this many pixels, down to it."""
    short_side: int | None = None
    """Shrink images whose shorter side is above this many pixels, down to it."""

    def check(self) -> None:
        """Raises UserError for values that cannot work."""
        if self.encoding not in ENCODINGS:
            raise UserError(f"--encoding {self.encoding!r} is not known: choose one of {', '.join(ENCODINGS)}")
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
    """One image as it will lie in the shard.

    Attributes:
        kind: `jpeg`, `raw` (interleaved RGB) or `png`.
        height, width: in pixels.
        change: why the original bytes were not passed through, or None if they were.
    """

    data: bytes
    kind: str
    height: int
    width: int
    change: str | None


def encode_all(source: Source, how: Encoding, page: int | None, workers: int) -> Iterator[Stored | BrokenImage]:
    """Every image of the source, in order, made by threads that run a bounded way ahead.

    Args:
        page: the most bytes an image may take, for shards of pages; None where there is no limit.
    """

    def chunk(start: int) -> list[Stored | BrokenImage]:
        return [encode_one(source, i, how, page) for i in range(start, min(start + CHUNK, len(source)))]

    pending: deque[Future[list[Stored | BrokenImage]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="convert")
    try:
        for start in range(0, len(source), CHUNK):
            pending.append(pool.submit(chunk, start))
            if len(pending) >= AHEAD * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def encode_one(source: Source, index: int, how: Encoding, page: int | None) -> Stored | BrokenImage:
    """One image as `how` wants it; a broken one is returned, so that the writer meets it in its turn."""
    try:
        original = b"" if source.storage in ("arrays", "raw") else source.encoded(index)
        jpeg = original.startswith(b"\xff\xd8\xff")
        obstacle = _obstacle(original, how, page) if jpeg else "not JPEG"
        image = decode_rgb(original, source.location(index)) if original else source.decode(index)
        if obstacle is None:  # decoded all the same: headers do not tell whether the scan is whole
            height, width = image.shape[:2]
            return Stored(original, "jpeg", height, width, None)
        lossless = how.encoding == "raw" or (how.encoding == "keep" and not jpeg)
        return _encode(_shrink(image, how), how, page, lossless, obstacle)
    except BrokenImage as error:
        return error
    except (OSError, ValueError) as error:
        return BrokenImage(source.location(index), str(error))


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


def _encode(image: NDArray[np.uint8], how: Encoding, page: int | None, lossless: bool, change: str) -> Stored:
    """Raises ValueError for an image that the shard cannot hold."""
    height, width = image.shape[:2]
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(f"{width} x {height} pixels; a side has at most {LONGEST_SIDE}: use --max-side")
    if lossless:
        if page is None:
            return Stored(encode_png(image), "png", height, width, change)
        if image.nbytes <= page:
            return Stored(image.tobytes(), "raw", height, width, change)
        change = "larger than a page"
    data = encode_jpeg(image, how.quality)
    if len(data) > (page or sys.maxsize):
        raise ValueError(f"{len(data)} bytes as JPEG, more than a page of {page}: use --max-side")
    return Stored(data, "jpeg", height, width, change)
