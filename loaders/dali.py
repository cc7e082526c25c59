"""`dali`: NVIDIA DALI decodes, our executor makes the views.

Bytes go in, in our order, through `external_source(batch=True, batch_info=True)`: what a step holds is a pure
function of epoch and iteration, so a run resumes exactly. The decoder is nvJPEG where there is a GPU
(`device="mixed"`) and DALI's CPU decoder elsewhere, which gives PIL's pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BrokenImage, MissingExtra
from penstock.loaders.contract import Options
from penstock.loaders.examined import Examined
from penstock.loaders.fetched import Fetched, Ready, copied
from penstock.loaders.pipeline import Fetch, PipelineLoader
from penstock.loaders.sources.base import Source

DALI_PREFETCH = 2  # decoded batches that DALI's own threads keep ahead


class DALILoader(PipelineLoader):
    """Views of a source whose stored bytes DALI decodes.

    `workers` threads decode (DALI's) and as many augment (ours). On a CPU both are bound by the same cores.
    """

    def __init__(self, source: Source, options: Options) -> None:
        super().__init__(source, options)
        self.walk: tuple[int, int] = (0, 0)  # (epoch, consumed) that DALI's current pass walks
        self.fed: deque[NDArray[np.int64]] = deque()  # the samples of the batches that DALI has and we do not
        self.pipe: Any = None
        self.examined = Examined(source)

    def _build(self) -> Any:
        """DALI's graph: encoded bytes in, uint8 [H, W, 3] out. Built anew only after a pass that was left early."""
        try:
            from nvidia.dali import Pipeline, fn
            from nvidia.dali.types import DALIDataType, DALIImageType
        except ImportError as error:
            raise MissingExtra("DALI (nvidia.dali)", "dali-cuda13 or dali-cuda12") from error
        gpu = self.device.type == "cuda"
        pipe = Pipeline(
            batch_size=self.order.batch,
            num_threads=self.options.workers,
            device_id=(self.device.index or 0) if gpu else None,
            prefetch_queue_depth=DALI_PREFETCH,
            exec_dynamic=True,  # outputs then own their memory: no copy is needed to keep them past the next run
        )
        with pipe:
            encoded = fn.external_source(self._encoded, batch=True, batch_info=True, dtype=DALIDataType.UINT8, ndim=1)
            images = fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=DALIImageType.RGB)
            pipe.set_outputs(images.cpu())  # by DALI's threads, ahead of us
        pipe.build()
        return pipe

    def _encoded(self, info: Any) -> list[NDArray[np.uint8]]:
        """The encoded bytes of one iteration's samples, for DALI."""
        epoch, consumed = self.walk
        if info.iteration >= self.order.steps(consumed):
            raise StopIteration
        index = self.order.indices(epoch, info.iteration, consumed)
        if not len(index):  # no part in a kept tail: DALI refuses empty batches
            raise StopIteration
        self.skipped.replace(index)
        self.fed.append(index)
        return [self._bytes(index[n : n + 1]) for n in range(len(index))]

    def _bytes(self, one: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The bytes of the one sample named; where they cannot be read, of the one that is put in its place."""
        while True:
            try:
                return np.frombuffer(self.source.encoded(int(one[0])), np.uint8)
            except BrokenImage as error:
                self.skipped.add(one, error)

    def _fetched(self, epoch: int, consumed: int) -> Iterator[tuple[NDArray[np.int64], Fetch]]:
        pipe, self.pipe = self.pipe, None
        self._begin(epoch, consumed)
        for step in range(self.order.steps(consumed)):
            if not len(index := self.order.indices(epoch, step, consumed)):
                yield index, partial(self._fetch_part, index)
                break
            pipe = pipe or self._build()
            try:
                images = self._run(pipe)
            except RuntimeError as error:
                index, pipe = self.fed[0], None  # DALI gives up the whole pass for one image
                if self.options.on_error == "stop":
                    raise self._broken(index, error) from error
                self._begin(epoch, consumed + (step + 1) * self.order.global_batch)
                yield index, partial(self._fetch_part, index)
            else:
                index = self.fed.popleft()
                yield index, partial(self._decoded_part, images, index.copy(), index)
        if pipe:
            self.pipe = self._at_its_start(pipe)

    def _decoded_part(
        self, images: list[NDArray[np.uint8]], fed: NDArray[np.int64], index: NDArray[np.int64], part: slice
    ) -> Fetched | Ready:
        """DALI's images; our decoder's where DALI saw nothing wrong in a broken one, or others are wanted by now."""
        if np.array_equal(fed[part], index[part]):
            try:
                self.examined.examine(fed[part])
                return copied(images[part])
            except BrokenImage:
                pass
        return self._fetch_part(index, part)

    def _begin(self, epoch: int, consumed: int) -> None:
        """What DALI's next pass walks."""
        self.walk = epoch, consumed
        self.fed.clear()

    def _run(self, pipe: Any) -> list[NDArray[np.uint8]]:
        (images,) = pipe.run()
        return [np.asarray(images[i]) for i in range(len(images))]

    def _at_its_start(self, pipe: Any) -> Any:
        """The same graph, ready for another pass."""
        try:
            pipe.run()  # DALI learns that the pass is over …
        except StopIteration:
            pipe.reset()  # … and the next one may begin
        return pipe

    def close(self) -> None:
        super().close()
        self.pipe = None  # ends DALI's threads

    def _broken(self, index: NDArray[np.int64], error: RuntimeError) -> BrokenImage:
        """DALI names a position in a batch; decoding the batch by hand names the image."""
        for i in index:
            try:
                self.source.decode(int(i))
            except BrokenImage as broken:
                return broken
        return BrokenImage(f"{self.source.name}, samples {index[0]}…{index[-1]}", str(error).strip().splitlines()[0])
