"""Our loader: threads decode each image once, draw its rows, and cut every view from it.

    order ──▶ indices ──▶ decode (once) ──▶ Pixels ──┐
                                                     ├──▶ executor ──▶ Views
                          draw(recipe, seed, …) ──▶ rows

A batch is cut into chunks; a worker thread takes a chunk from bytes to normalised views, written straight into the
batch's tensor, so no pixel is passed between threads. Decoding and torch's kernels release the GIL. Nothing here
holds random state: whatever the number of threads, the same batch comes out, bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.draw import draw
from penstock.augment.executors import choose_executor
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.loaders.contract import Loader, LoaderState, Views
from penstock.loaders.order import Order
from penstock.loaders.sources.base import Source
from penstock.loaders.threads import one_thread_each

PREFETCH = 2  # batches made ahead of the one in use: one being finished, one to even out slow images
CHUNKS_PER_WORKER = 4  # small enough that no thread is left with the last large images, large enough to share overhead

Decode = Callable[[slice], Sequence[NDArray[np.uint8]]]  # the images of a part of a batch; called in the workers


@dataclass
class _Pending:
    """A batch being made: its views are whole once every future is done."""

    index: NDArray[np.int64]
    out: torch.Tensor
    futures: list[Future[None]]


class PipelineLoader(Loader):
    """Views of a source, made by `workers` threads.

    Args:
        source: where the images are; decoded by `source.decode` in the workers.
        recipe: what is done to them; drawn with the order's seed.
        workers: threads that decode and augment.
        device, dtype: where the views end up, and as what.
        executor: the code that moves the pixels, by name (`augment/executors.py`).
    """

    def __init__(
        self,
        source: Source,
        *,
        recipe: Recipe,
        order: Order,
        workers: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        executor: str = "auto",
    ) -> None:
        self.source, self.recipe, self.order, self.workers = source, recipe, order, workers
        self.device, self.dtype, self.state = torch.device(device), dtype, LoaderState()
        self.execute = choose_executor(executor, recipe)
        self.pool = one_thread_each(workers, "penstock-loader")
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        pending: deque[_Pending] = deque()
        try:
            for index, decode in self._decoded(epoch, consumed):
                pending.append(self._start(epoch, index, decode))
                if len(pending) > PREFETCH:
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())
        finally:  # an early break or an error: leave no work behind that would write into dropped batches
            for future in [future for batch in pending for future in batch.futures]:
                future.cancel()

    def _decoded(self, epoch: int, consumed: int) -> Iterator[tuple[NDArray[np.int64], Decode]]:
        """Each step's samples, and a function that decodes a part of them."""
        for step in range(self.order.steps(consumed)):
            index = self.order.indices(epoch, step, consumed)
            yield index, partial(self._decode_part, index)

    def _decode_part(self, index: NDArray[np.int64], part: slice) -> list[NDArray[np.uint8]]:
        return [self.source.decode(int(i)) for i in index[part]]

    def _start(self, epoch: int, index: NDArray[np.int64], decode: Decode) -> _Pending:
        size, views = self.recipe.size, self.recipe.views
        out = torch.empty(
            (views * len(index), 3, size, size),
            dtype=self.dtype,
            memory_format=torch.channels_last,
            pin_memory=self.device.type == "cuda",
        )
        chunk = max(1, -(-len(index) // (self.workers * CHUNKS_PER_WORKER)))
        parts = [slice(first, first + chunk) for first in range(0, len(index), chunk)]
        by_view = out.unflatten(0, (views, len(index))) if len(index) else out
        futures = [self.pool.submit(self._make, epoch, index, decode, part, by_view) for part in parts]
        return _Pending(index, out, futures)

    def _make(self, epoch: int, index: NDArray[np.int64], decode: Decode, part: slice, out: torch.Tensor) -> None:
        """Take one chunk from bytes to views: fill `out[:, part]`, of [V, N, 3, S, S]."""
        pixels = Pixels.from_images(decode(part))
        rows = draw(
            self.recipe,
            seed=self.order.seed,
            epoch=epoch,
            index=index[part],
            height=pixels.height,
            width=pixels.width,
        )
        self.execute(pixels, rows, self.recipe, out[:, part])

    def _finish(self, batch: _Pending) -> Views:
        for future in batch.futures:
            future.result()
        return Views(
            groups=[self._upload(batch.out)],
            index=torch.from_numpy(batch.index),
            label=torch.from_numpy(self.source.labels[batch.index]),
        )

    def _upload(self, out: torch.Tensor) -> torch.Tensor:
        """Copy to the device on this loader's own stream; the consumer's stream waits for it, the host does not."""
        if self.stream is None:
            return out
        with torch.cuda.stream(self.stream):
            views = out.to(self.device, non_blocking=True)
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_stream(self.stream)
        views.record_stream(consumer)
        return views

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
