"""What no loader of the same bytes exceeds with this decoder: libjpeg-turbo alone, in as many threads.

It stands apart from our loaders, so that it means the same whatever they do: each image's bytes are read as they are
stored, in the loaders' order, and decoded by simplejpeg into memory that its thread uses again. Pixels (RAW) are copied
there. Nothing is cropped, augmented, normalised or batched.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from penstock.loaders import Order, Source
from penstock.loaders.threads import one_thread_each

PREFETCH = 2  # batches ahead, and parts in which a thread takes a batch: as in our loaders
PARTS_PER_WORKER = 4


class Ceiling:
    """Batches of indices, each of whose images was decoded (or, of pixels, copied) and dropped."""

    def __init__(self, source: Source, *, batch: int, workers: int) -> None:
        self.source, self.order, self.workers = source, Order(len(source), batch), workers
        self.pool = one_thread_each(workers, "ceiling")
        self.mine = threading.local()
        self.take = self._copy if source.storage == "raw" else self._decode
        self.epoch = -1

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        self.epoch += 1
        pending: deque[tuple[NDArray[np.int64], list[Future[None]]]] = deque()
        for step in range(self.order.steps()):
            pending.append(self._start(self.order.indices(self.epoch, step)))
            if len(pending) > PREFETCH:
                yield self._finish(*pending.popleft())
        while pending:
            yield self._finish(*pending.popleft())

    def _start(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Future[None]]]:
        parts = np.array_split(index, min(len(index), self.workers * PARTS_PER_WORKER))
        return index, [self.pool.submit(self._part, part.tolist()) for part in parts]

    def _finish(self, index: NDArray[np.int64], futures: list[Future[None]]) -> NDArray[np.int64]:
        for future in futures:
            future.result()
        return index

    def _part(self, index: list[int]) -> None:
        for i in index:
            self.take(i)

    def _decode(self, index: int) -> None:
        data = self.source.encoded(index)
        if not data.startswith(b"\xff\xd8"):  # PNG and others: by Pillow, as the loaders do
            self.source.decode(index)
            return
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        room = self._room(height * width * 3)
        simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=room)

    def _copy(self, index: int) -> None:
        pixels = self.source.decode(index).reshape(-1)
        self._room(len(pixels))[: len(pixels)] = pixels

    def _room(self, size: int) -> NDArray[np.uint8]:
        """At least so many bytes, this thread's."""
        room = getattr(self.mine, "room", None)
        if room is None or len(room) < size:
            room = self.mine.room = np.empty(size, np.uint8)
        return room

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
