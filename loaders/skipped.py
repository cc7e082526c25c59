"""Images that cannot be read, and what is taken in their place where a run is told to go on (`--on-error skip`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BrokenImage, UserError
from penstock.loaders.sources.base import Source

LOG = logging.getLogger(__name__)
ON_ERROR = ("stop", "skip")


class Skipped(Mapping[int, str]):
    """Index and reason of each image of a source that turned out to be broken.

    The next image of the set that can be read takes its place, so batches keep their size, and which one it is hangs
    on the data alone: not on workers, ranks, or where a run goes on. May be used by many threads at once.

    Args:
        source: the set.
        on_error: `stop`, or `skip`.
    """

    def __init__(self, source: Source, on_error: str) -> None:
        if on_error not in ON_ERROR:
            raise UserError(f"--on-error {on_error!r} is not known: choose one of {', '.join(ON_ERROR)}")
        self.source, self.on_error = source, on_error
        self._reasons: dict[int, str] = dict(source.broken)

    def __getitem__(self, index: int) -> str:
        return self._reasons[index]

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._reasons))

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, indices: NDArray[np.int64], error: BrokenImage) -> None:
        """Count the one of these images that `error` names, and put the next ones in its place, in `indices` itself.

        Raises:
            BrokenImage: the error, where the loader is to stop at it.
            UserError: no image is left.
        """
        if self.on_error == "stop":
            raise error
        broken = next(int(i) for i in indices if self.source.location(int(i)) == error.location)
        if broken not in self._reasons:
            LOG.warning("skipped %s: %s", error.location, error.reason)
        self._reasons[broken] = error.reason
        self.replace(indices)

    def replace(self, indices: NDArray[np.int64]) -> None:
        """Put, in place, the next images for those that are known to be broken. Raises UserError: no image is left."""
        if self._reasons:
            for n, index in enumerate(indices.tolist()):
                indices[n] = self._readable(index)

    def _readable(self, index: int) -> int:
        """The first image from this one on, and on from the start, that is not known to be broken."""
        count = len(self.source)
        for candidate in (i % count for i in range(index, index + count)):
            if candidate not in self._reasons:
                return candidate
        first = f"{self.source.location(index)}: {self._reasons[index]}"
        raise UserError(f"{self.source.name}: not one of its {count} images can be read; {first}")
