"""Our loader: threads decode each image once, draw its rows, and cut every view from it.

    order ──▶ indices ──▶ decode (once) ──▶ Pixels ──┐
                                                     ├──▶ executor ──▶ Views
                          draw(recipe, seed, …) ──▶ rows

A batch is cut into chunks; a worker thread takes a chunk from bytes to normalised views, written straight into the
batch's tensors, so no pixel is passed between threads. Decoding and torch's kernels release the GIL. Nothing here
holds random state: whatever the number of threads, the same batch comes out, bit for bit.

For a GPU, the thread that finishes a batch's last chunk sends the views on their way; all copies run on the loader's
own stream, and nobody waits for them but the stream that uses the batch. Where the executor itself is on the GPU,
chunks go there as decoded images, and views are made of them by one call (`on_device.py`).
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment import fused_cpu, jit
from penstock.augment.draw import draw
from penstock.augment.executors import Executor, Work, choose_executor
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import SMALLEST, Group, Recipe, evaluation
from penstock.augment.rows import Rows
from penstock.errors import BrokenImage, NotWritten
from penstock.loaders.contract import Loader, Options, Views
from penstock.loaders.fetched import Fetched, Ready
from penstock.loaders.jpeg import decode_jpeg
from penstock.loaders.lock import locked
from penstock.loaders.memory import Recycler, Room
from penstock.loaders.on_device import Piece, bring, enough, joined
from penstock.loaders.order import permute
from penstock.loaders.sources.base import Source
from penstock.loaders.threads import one_thread_each

PREFETCH = 2  # batches made ahead of the one in use: one being finished, one to even out slow images
CHUNKS_PER_WORKER = 4  # small enough that no thread is left with the last large images
UNDER_WAY = 4  # batches that were handed out before a GPU had made them: each holds memory, pinned memory too
LEAST_PIXELS = 1 << 19  # of views that a chunk makes: of small images so many that Python's share of the work is small

Fetch = Callable[[slice], Fetched | Ready]  # reads the images of a part of a batch; called in the workers


@dataclass
class _Pending:
    """A batch being made: its views are whole, and its index settled, once every future is done."""

    recipe: Recipe  # the one in force in its epoch
    epoch: int
    index: NDArray[np.int64]
    fetch: Fetch
    groups: list[torch.Tensor]  # [V·N, 3, S, S] each
    missing: int  # samples whose chunks are not done
    futures: list[Future[None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)  # for whoever counts, or sends
    pieces: list[Piece] = field(default_factory=list)  # images on the device whose views are yet to be made
    sent: torch.cuda.Event | None = None  # on the loader's stream, behind all that makes the batch


class PipelineLoader(Loader):
    """Views of a source, made by threads that fetch from it, decode, and call the executor.

    A forked child has none of the threads: make its loader there.
    """

    executor: Executor

    def __init__(self, source: Source, options: Options) -> None:
        super().__init__(source, options)
        self.device = options.device
        self.executor = choose_executor(options.executor, self.recipe, fallback=options.fallback, device=self.device)
        compile_views(speaks=self.order.rank == 0)
        self.pool = one_thread_each(options.workers, "penstock-loader")
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="penstock-reader")  # has no thread until it is used
        self.memory = Recycler()
        self.rooms = threading.local()
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.under_way = deque[torch.cuda.Event]()

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        recipe, pending = self.recipe.at(epoch), deque[_Pending]()
        self.memory.turn_to(recipe.groups)
        try:
            for step, (index, fetch) in enumerate(self._fetched(epoch, consumed)):
                self._read_ahead(epoch, step, consumed)
                pending.append(self._start(recipe, epoch, index, fetch))
                if len(pending) > PREFETCH:
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())
        finally:  # an early break or an error: leave no work behind that would write into dropped batches
            for future in [future for batch in pending for future in batch.futures]:
                future.cancel()

    def _read_ahead(self, epoch: int, step: int, consumed: int) -> None:
        """Have the disk read what the quasi-random order comes to, in long runs, while this thread goes on."""
        for first, last in self.order.ahead(epoch, step, consumed).tolist():
            self.reader.submit(self.source.will_need, first, last)

    def _fetched(self, epoch: int, consumed: int) -> Iterator[tuple[NDArray[np.int64], Fetch]]:
        """Each step's samples, and a function that fetches a part of them."""
        for step in range(self.order.steps(consumed)):
            index = self.order.indices(epoch, step, consumed)
            yield index, partial(self._fetch_part, index)

    def _fetch_part(self, index: NDArray[np.int64], part: slice) -> Fetched | Ready:
        return self.source.fetch(index[part])

    def _start(self, recipe: Recipe, epoch: int, index: NDArray[np.int64], fetch: Fetch) -> _Pending:
        groups = [self._empty(group, len(index)) for group in recipe.groups]
        batch = _Pending(recipe, epoch, index, fetch, groups, missing=len(index))
        chunk = self._chunk(recipe, len(index))
        parts = [slice(first, min(first + chunk, len(index))) for first in range(0, len(index), chunk)]
        batch.futures = [self.pool.submit(self._make, batch, part) for part in parts]
        return batch

    def _chunk(self, recipe: Recipe, samples: int) -> int:
        """How many of a batch's samples a worker takes at once."""
        pixels = sum(view.count * view.size**2 for view in recipe.views)
        worthwhile = min(ceil(LEAST_PIXELS / pixels), ceil(samples * PREFETCH / self.options.workers))
        return max(1, worthwhile, ceil(samples / (self.options.workers * CHUNKS_PER_WORKER)))

    def _empty(self, group: Group, samples: int) -> torch.Tensor:
        """Room for a group's views: where the executor writes them."""
        shape = ((group.views.stop - group.views.start) * samples, 3, group.size, group.size)
        if self.device.type == "cpu":
            return self.memory.empty(shape, self.options.dtype)
        there = self.device if self.executor.on_device or not samples else torch.device("cpu")
        with torch.cuda.stream(self.stream):  # memory that other streams still read is not given out here
            return torch.empty(
                shape,
                dtype=self.options.dtype,
                device=there,
                memory_format=torch.channels_last,
                pin_memory=there.type == "cpu",
            )

    def _make(self, batch: _Pending, part: slice) -> None:
        """Take one chunk from bytes to views, or to the device: fill its samples' part of every group."""
        index = batch.index[part]
        self.skipped.replace(index)
        with torch.cuda.stream(self.stream):
            while True:
                try:
                    piece = self._fill(batch, part)
                    break
                except BrokenImage as error:
                    self.skipped.add(index, error)
            if piece or self.stream:
                self._count(batch, part, piece)

    def _fill(self, batch: _Pending, part: slice) -> Piece | None:
        """Fill the chunk's part; or leave that to an executor on the device, and give the chunk as a piece for it."""
        fetched = batch.fetch(part)
        rows = draw(
            batch.recipe,
            seed=self.order.seed,
            epoch=batch.epoch,
            index=batch.index[part],
            height=fetched.height,
            width=fetched.width,
        )
        boxes = rows.boxes() if self.executor.within_crops and isinstance(fetched, Fetched) else None
        if self.executor.on_device:
            return bring(part, fetched, boxes, partial(self._around, batch.recipe, rows), self.device)
        for some, pixels in fetched.portions(self._room(), boxes):
            for group, by_view in self._places(batch, part):
                self.executor(pixels, rows.views(group.views, some), batch.recipe, by_view[:, some])
        return None

    def _places(self, batch: _Pending, part: slice) -> Iterator[tuple[Group, torch.Tensor]]:
        """Each group of views, and where those of some samples belong, [V, n, 3, S, S]."""
        for group, out in zip(batch.recipe.groups, batch.groups, strict=True):
            yield group, out.unflatten(0, (-1, len(batch.index)))[:, part]

    def _around(self, recipe: Recipe, rows: Rows, pixels: Pixels) -> list[Work]:
        """What is left to the executor of each group's views, when the rows that go around it are finished."""
        return [self.executor.around(pixels, rows.views(g.views), recipe, g.size) for g in recipe.groups]

    def _count(self, batch: _Pending, part: slice, piece: Piece | None) -> None:
        """Count a chunk that is done. With the last one, the batch goes to the device, or is made there."""
        with batch.lock:
            batch.missing -= part.stop - part.start
            if piece:
                batch.pieces.append(piece)
                if not batch.missing or enough(batch.pieces):
                    self._run_pieces(batch)
            if self.stream and not batch.missing:
                batch.groups = [group.to(self.device, non_blocking=True) for group in batch.groups]
                batch.sent = self.stream.record_event()

    def _run_pieces(self, batch: _Pending) -> None:
        """Let the executor make the views of all images that are on the device by now."""
        for piece in joined(batch.pieces):
            for (_, by_view), work in zip(self._places(batch, piece.part), piece.work, strict=True):
                self.executor.run(piece.pixels, work, batch.recipe, by_view)
        batch.pieces.clear()

    def _room(self) -> Room:
        """This thread's."""
        if not hasattr(self.rooms, "room"):
            self.rooms.room = Room()
        return self.rooms.room

    def _finish(self, batch: _Pending) -> Views:
        for future in batch.futures:
            future.result()
        if batch.sent is not None:
            self._hand_over(batch.groups, batch.sent)
        return Views(
            groups=batch.groups,
            index=torch.from_numpy(batch.index),
            label=torch.from_numpy(self.source.labels[batch.index]),
        )

    def _hand_over(self, groups: list[torch.Tensor], sent: torch.cuda.Event) -> None:
        """Let the consumer's stream wait for the views, and keep their memory until it is done with them.

        The host waits only where it is far ahead: whoever does nothing with batches would take them faster than a GPU
        makes them.
        """
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(sent)
        for group in groups:
            group.record_stream(consumer)
        self.under_way.append(sent)
        if len(self.under_way) > UNDER_WAY:
            self.under_way.popleft().synchronize()

    def close(self) -> None:
        for pool in (self.pool, self.reader):
            pool.shutdown(wait=True, cancel_futures=True)


@cache
def compile_views(*, speaks: bool) -> None:
    """Compile what decodes, draws and makes views, by tiny ones, so that no batch waits for it and no clock counts it.

    It is kept on the disk (`augment/jit.py`), so this takes long once for each version of the package, and each clone.
    Left to the workers, several would load or compile one function at once, and numba was seen to fail at that with a
    KeyError; so were processes that wrote one cache at once.
    """
    folder = Path(jit.cache_folder())
    if speaks and not any(folder.glob("fused_cpu*/*._run-*.nbi")):
        print(
            "compiling the augmentation, once for this clone: up to two minutes",
            file=sys.stderr,
            flush=True,
        )
    try:
        with locked(folder / "compiling"):
            _call_once()
    except OSError as error:  # numba's
        raise NotWritten(folder, error, "make room there") from error


def _call_once() -> None:
    """Call each function that is compiled, with the types that it gets later."""
    recipe, first = evaluation(SMALLEST), np.zeros(1, np.int64)
    pixels = Pixels.from_images([np.zeros((SMALLEST, SMALLEST, 3), np.uint8)])
    out = torch.empty(1, 1, SMALLEST, SMALLEST, 3).permute(0, 1, 4, 2, 3)
    rows = draw(recipe, seed=0, epoch=0, index=first, height=pixels.height, width=pixels.width)
    fused_cpu.run(pixels, rows, recipe, out)
    fused_cpu.write(pixels.image(0)[None], first, first, recipe, out)  # as views that went around are written
    decode_jpeg(b"", pixels.image(0))
    permute(first, 1, np.uint64(0), 0)
