"""Images between a source and an executor: their sizes are known, so rows can be drawn; their pixels come next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.pixels import Pixels
from penstock.loaders.memory import Room

PORTION = 16 << 20  # bytes of pixels decoded before views are cut: both go faster for longer, and memory stays bounded
Box = tuple[int, int, int, int]  # top, left, bottom, right: the part of an image that is wanted
# Fills the upright image's memory, uint8 [H, W, 3], at least within the box (None: all of it).
DecodeInto = Callable[[NDArray[np.uint8], Box | None], None]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """N images that are yet to be decoded.

    Attributes:
        height, width: int64 [N], upright, in pixels.
        decode: one function for each image.
    """

    height: NDArray[np.int64]
    width: NDArray[np.int64]
    decode: Sequence[DecodeInto]

    def portions(self, room: Room, boxes: NDArray[np.int64] | None = None) -> Iterator[tuple[slice, Pixels]]:
        """Decode some images at a time into `room`: which ones, and their pixels, until the next ones are asked for.

        Args:
            boxes: int64 [N, 4], the part of each image that is wanted (top, left, bottom, right); None: all of it.

        Raises:
            BrokenImage: an image cannot be decoded.
        """
        sizes = self.height * self.width * 3
        for part in _portions(sizes):
            yield part, self._decode(part, room.take(int(sizes[part].sum())), boxes)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels, decoded."""
        return 3 * int(self.height @ self.width)

    def into(self, data: NDArray[np.uint8], boxes: NDArray[np.int64] | None = None) -> Pixels:
        """All of them, in `data`, uint8 [nbytes]. Arguments and errors as for `portions`."""
        return self._decode(slice(0, len(self.decode)), data, boxes)

    def _decode(self, part: slice, data: NDArray[np.uint8], boxes: NDArray[np.int64] | None) -> Pixels:
        height, width = self.height[part], self.width[part]
        pixels = Pixels(data=data, offset=_offsets(height, width), height=height, width=width)
        for i, decode in enumerate(self.decode[part]):
            decode(pixels.image(i), None if boxes is None else tuple(boxes[part.start + i].tolist()))
        return pixels


def _offsets(height: NDArray[np.int64], width: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of some images begins, int64 [N], if they lie one after the other."""
    sizes = height * width * 3
    return np.cumsum(sizes) - sizes


def _portions(sizes: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of images that fit into a portion, or single ones that do not; sizes int64 [N], in bytes."""
    first = filled = 0
    for i, size in enumerate(sizes.tolist()):
        if filled and filled + size > PORTION:
            yield slice(first, i)
            first, filled = i, 0
        filled += size
    if first < len(sizes):
        yield slice(first, len(sizes))


@dataclass(frozen=True)
class Ready:
    """N images whose pixels lie in memory, or in a mapped file, as executors take them: nothing is copied."""

    images: Pixels

    @property
    def height(self) -> NDArray[np.int64]:
        return self.images.height

    @property
    def width(self) -> NDArray[np.int64]:
        return self.images.width

    @property
    def nbytes(self) -> int:
        """Bytes of these images' pixels."""
        return 3 * int(self.height @ self.width)

    def portions(self, room: Room, boxes: NDArray[np.int64] | None = None) -> Iterator[tuple[slice, Pixels]]:
        yield slice(0, len(self.images)), self.images

    def into(self, data: NDArray[np.uint8], boxes: NDArray[np.int64] | None = None) -> Pixels:
        """A copy of these images alone, in `data`, uint8 [nbytes]: they may lie in a file of any size."""
        held, sizes = self.images, self.height * self.width * 3
        ranges = zip(held.offset.tolist(), (held.offset + sizes).tolist(), strict=True)
        np.concatenate([held.data[first:last] for first, last in ranges], out=data)
        return Pixels(data=data, offset=_offsets(self.height, self.width), height=self.height, width=self.width)


@dataclass(frozen=True, kw_only=True)
class TensorPixels(Pixels):
    """Images in a tensor, on a GPU: as `fused_gpu` takes them, one at a time for executors on the CPU."""

    data: torch.Tensor  # type: ignore[assignment]

    def image(self, i: int) -> NDArray[np.uint8]:
        """A copy in RAM."""
        height, width, start = int(self.height[i]), int(self.width[i]), int(self.offset[i])
        return self.data[start : start + height * width * 3].cpu().numpy().reshape(height, width, 3)


def copied(images: Sequence[NDArray[np.uint8]]) -> Fetched:
    """Images that somebody else decoded, uint8 [H, W, 3] each: to be copied."""
    shapes = np.array([image.shape for image in images], np.int64).reshape(-1, 3)
    return Fetched(height=shapes[:, 0], width=shapes[:, 1], decode=[partial(_copy, image) for image in images])


def _copy(image: NDArray[np.uint8], out: NDArray[np.uint8], box: Box | None) -> None:
    np.copyto(out, image)
