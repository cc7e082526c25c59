"""Which images our own decoder has read without objection, for loaders whose decoder makes up pixels in silence.

Where a JPEG's codes turn invalid, or its data end too soon, DALI and the ffcv package show whatever came out. So each
image is read by `loaders/decode.py`, too, the first time it is handed out; in a shard whose images all were when it
was made (`convert --check decode`, or encoded anew), it is enough that their checksums hold.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.in_order import in_order
from penstock.loaders.sources.base import Source, Subset


class Examined:
    """The images of a source that were read once. May be used by many threads at once."""

    def __init__(self, source: Source) -> None:
        by_checksum = source.storage in ("jpeg", "webdataset") and decoded_when_made(source)
        self._read = source.encoded if by_checksum else source.decode
        self._left = np.full(len(source), True)

    def examine(self, indices: NDArray[np.int64]) -> None:
        """Read those of them that were not read before. Raises BrokenImage."""
        for index in indices[self._left[indices]].tolist():
            self._examine_one(index)

    def examine_in_threads(self, indices: NDArray[np.int64], workers: int) -> None:
        """The same, by so many threads."""
        left: Iterable[int] = indices[self._left[indices]].tolist()
        for _ in in_order(self._examine_one, left, workers):
            pass

    def _examine_one(self, index: int) -> None:
        self._read(index)
        self._left[index] = False


def decoded_when_made(source: Source) -> bool:
    """Whether whoever wrote a shard decoded every image of it, as its sidecar says."""
    if isinstance(source, Subset):
        return decoded_when_made(source.source)
    sidecar = getattr(source, "sidecar", None)
    options = sidecar.provenance.options if sidecar else {}
    return options.get("check") == "decode" or options.get("encoding") in ("jpeg", "raw")
