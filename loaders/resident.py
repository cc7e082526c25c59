"""`resident`: every image is decoded once, before the first batch, and held. Epochs need neither disk nor decoder.

    python engine/train.py --data cifar10 --loader resident

The pixels lie in RAM, or on the GPU where the views are made there (`fused_gpu`): then only rows and the places of a
batch's images travel. Views are cut straight out of the one buffer: nothing is copied for a batch. Arrays that are in
memory already (CIFAR) are taken where they are.

Sizes are asked for first, so a set that does not fit is refused before anything is decoded. It may take half of the
memory that is free, or what `--memory-budget` says; on a GPU that is its own memory, whose other half is left to the
model. Each rank holds all images, so in RAM the ranks on one machine share that amount among them. Where that is too
much: a RAW `.beton` under the `ffcv` loader lies in the page cache once, for all ranks.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal

from penstock.augment.executors import choose_executor
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.errors import BrokenImage, UserError
from penstock.loaders.contract import Options
from penstock.loaders.fetched import Ready, TensorPixels
from penstock.loaders.in_order import in_order
from penstock.loaders.pipeline import PipelineLoader
from penstock.loaders.progress import bar
from penstock.loaders.ram import memory_available
from penstock.loaders.skipped import Skipped
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import Source, Subset

SIZES_AT_ONCE = 256  # images a task
IMAGES_AT_ONCE = 16


class ResidentLoader(PipelineLoader):
    """Views of images that are held, in RAM or on the GPU."""

    def __init__(self, source: Source, options: Options) -> None:
        executor = choose_executor(options.executor, options.recipe, fallback=options.fallback, device=options.device)
        self.on_gpu = executor.on_device and options.device.type == "cuda"
        resident = ResidentSource(
            source,
            workers=options.workers,
            budget=options.budget,
            device=options.device if self.on_gpu else None,
            on_error=options.on_error,
            progress=options.order.rank == 0,
        )
        super().__init__(resident, options)
        self.skipped = resident.skipped

    def _chunk(self, recipe: Recipe, samples: int) -> int:
        """A whole batch on a GPU: there is nothing to decode, and one call of the executor makes it."""
        if self.on_gpu and self.executor.finishes(recipe):
            return max(1, samples)
        return super()._chunk(recipe, samples)

    def close(self) -> None:
        super().close()
        self.source.close()


class ResidentSource(Source):
    """All images of another source, decoded and held in one buffer.

    Args:
        source: whose images; it stays with whoever opened it.
        workers: threads that decode.
        budget: bytes to hold at most; see `allowance`.
        device: where they are held, as a tensor; None: an array in RAM.
        on_error: `stop`, or `skip` broken images (see `skipped.py`).
        progress: show a bar on standard error.

    Attributes:
        images: all of them. Those that are `skipped` have a place, too, with nothing of use in it.

    Raises:
        UserError: they do not fit, or not one can be read.
        BrokenImage: one cannot be read, and `on_error` is `stop`.
    """

    def __init__(
        self,
        source: Source,
        *,
        workers: int,
        budget: int | None = None,
        device: torch.device | None = None,
        on_error: str = "stop",
        progress: bool = False,
    ) -> None:
        self.source, self.skipped = source, Skipped(source, on_error)
        self.name, self.storage = source.name, source.storage
        self.classes, self.labels = source.classes, source.labels
        self._workers, self._progress = workers, progress
        held = in_memory(source) if device is None else None
        self.images = self._take_in(allowance(budget, device), device) if held is None else held

    def _take_in(self, allowed: Allowance, device: torch.device | None) -> Pixels:
        height, width = self._measure(allowed)
        sizes = height * width * 3
        offset, total = np.cumsum(sizes) - sizes, int(sizes.sum())
        images: Pixels
        if device is None:
            images = Pixels(data=np.empty(total, np.uint8), offset=offset, height=height, width=width)
        else:
            data = torch.empty(total, dtype=torch.uint8, device=device)
            images = TensorPixels(data=data, offset=offset, height=height, width=width)
        for _ in self._in_threads("decoding", lambda part: self._decode_into(images, part), IMAGES_AT_ONCE):
            pass
        return images

    def _measure(self, allowed: Allowance) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All heights and widths, int64 [N], 0 where they cannot be read; stops where more is needed than allowed."""
        height, width = np.zeros((2, len(self)), np.int64)

        def measure(part: slice) -> int:
            try:
                height[part], width[part] = self.source.sizes(np.arange(part.start, part.stop))
            except BrokenImage:  # one by one, to learn the sizes of the others
                for index in range(part.start, part.stop):
                    with self._skipping(index):
                        (height[index],), (width[index],) = self.source.sizes(np.array([index]))
            return 3 * int(height[part] @ width[part])

        for done, size in self._in_threads("measuring", measure, SIZES_AT_ONCE):
            allowed.check(size, self.source, done)
        return height, width

    def _decode_into(self, images: Pixels, part: slice) -> int:
        """Decode some images into their places; gives their size in bytes."""
        height, width, offset = images.height[part], images.width[part], images.offset[part]
        start, size = int(offset[0]), 3 * int(height @ width)
        place = images.data[start : start + size]
        memory = place if isinstance(place, np.ndarray) else np.empty(size, np.uint8)
        into = Pixels(data=memory, offset=offset - start, height=height, width=width)
        for i, index in enumerate(range(part.start, part.stop)):
            with self._skipping(index):
                self._decode_one(index, into.image(i))
        if isinstance(place, torch.Tensor):
            place.copy_(torch.from_numpy(memory))
        return size

    def _decode_one(self, index: int, out: NDArray[np.uint8]) -> None:
        image = self.source.decode(index)
        if image.shape != out.shape:
            (height, width), (rows, columns) = image.shape[:2], out.shape[:2]
            reason = f"it decodes to {height}×{width} pixels, {rows}×{columns} were announced"
            raise BrokenImage(self.location(index), reason)
        np.copyto(out, image)

    @contextmanager
    def _skipping(self, index: int) -> Iterator[None]:
        try:
            yield
        except BrokenImage as error:
            self.skipped.add(np.array([index]), error)

    def _in_threads(self, what: str, work: Callable[[slice], int], at_once: int) -> Iterator[tuple[int, int]]:
        """Let threads do the work, `at_once` images a task; yields how many are done, and the sum of what it gave."""
        parts = (slice(first, min(first + at_once, len(self))) for first in range(0, len(self), at_once))
        done = total = 0
        with bar(f"{self.name}: {what}", len(self), disable=not self._progress) as shown:
            for size in in_order(work, parts, self._workers):
                images = min(at_once, len(self) - done)
                done, total = done + images, total + size
                shown.advance(size, images=images)
                yield done, total

    def encoded(self, index: int) -> bytes:
        return self.source.encoded(index)

    def decode(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], read-only."""
        if index in self.skipped:
            raise BrokenImage(self.location(index), self.skipped[index])
        image = self.images.image(index)
        image.flags.writeable = False
        return image

    def fetch(self, indices: NDArray[np.int64]) -> Ready:
        held = self.images
        height, width = self.sizes(indices)
        return Ready(type(held)(data=held.data, offset=held.offset[indices], height=height, width=width))

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.images.height[indices], self.images.width[indices]

    def location(self, index: int) -> str:
        return self.source.location(index)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def close(self) -> None:
        """Let go of the memory; it is freed when the last view of it is."""
        self.__dict__.pop("images", None)


def in_memory(source: Source) -> Pixels | None:
    """A source's images where they lie, if they are one array in RAM, not strided and not a file's mapping."""
    arrays = source
    while isinstance(arrays, Subset):
        arrays = arrays.source
    if not isinstance(arrays, ImageArrays) or not arrays.images.flags.c_contiguous or _is_mapped(arrays.images):
        return None
    fetched = source.fetch(np.arange(len(source)))
    assert isinstance(fetched, Ready)
    return fetched.images


def _is_mapped(array: NDArray[np.uint8]) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """How much memory may be held.

    Attributes:
        size: in bytes.
        why: what sets it, for the message of a refusal.
        stretches: whether a larger `--memory-budget` could allow more.
    """

    size: int
    why: str
    stretches: bool

    def check(self, needed: int, source: Source, done: int) -> None:
        """Raises UserError where `done` images of the source need more, and says what all of them would."""
        if needed <= self.size:
            return
        total = decimal(round(needed / done * len(source)), precision=1)
        remedies = ["raise --memory-budget"] if self.stretches else []
        remedies.append("make them smaller (python loaders/convert.py SRC DST.beton --encoding raw --short-side 256)")
        raise UserError(
            f"{source.name}: --loader resident holds all images decoded; these {len(source)} take"
            f" {'about ' if done < len(source) else ''}{total}, and {decimal(self.size, precision=1)} is {self.why}:"
            f" {', '.join(remedies)}, or use --loader ffcv"
        )


def allowance(budget: int | None, device: torch.device | None = None) -> Allowance:
    """How much memory may be taken: the budget, or half of what is free; not more than is free.

    In RAM that is shared by all ranks on this machine; a GPU is taken to be one rank's own.
    """
    on_gpu = device is not None and device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else memory_available()
    ranks = 1 if on_gpu else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    where = f"{'of the GPU' if on_gpu else 'here'}{f', for each of {ranks} ranks' if ranks > 1 else ''}"
    if budget is None:
        return Allowance(size=free // 2 // ranks, why=f"half of what is free {where}", stretches=True)
    if budget > free:
        return Allowance(size=free // ranks, why=f"all that is free {where}", stretches=False)
    return Allowance(size=budget // ranks, why=f"the --memory-budget {where}", stretches=True)
