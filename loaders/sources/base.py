"""A source: random access to a set of images, as files, arrays or shards alike.

Everything downstream (conversion, loaders, evaluation) knows only this interface, so a shard is a source too,
and a new data set is one file in this folder.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.fetched import Fetched, Ready, copied

UNLABELLED = -1


class Source(ABC):
    """Random access to N images; every method may be called from many threads at once.

    Attributes:
        name: what the set is called in logs and cache names, such as `cifar10-train`.
        storage: how the images are kept: `files`, `arrays`, `jpeg`, `raw`, `mixed` or `webdataset`.
        classes: class names; empty for an unlabelled set.
        labels: int64 [N], positions in `classes`, `UNLABELLED` (-1) where there is none.
        broken: the images that are known to be unreadable, by index, and why.
        stored_bytes: size of the one file in which all images lie in order; None where there is none.
    """

    name: str
    storage: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    stored_bytes: int | None = None
    broken: Mapping[int, str] = MappingProxyType({})

    def __len__(self) -> int:
        return len(self.labels)

    def will_need(self, first: int, last: int) -> None:  # noqa: B027 (most sources lie in many files)
        """Have the images from `first` up to `last` read from the disk, if it is one file in which they lie so."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The image as an encoded file's bytes: as stored (JPEG, PNG…), or PNG where pixels are stored."""

    @abstractmethod
    def decode(self, index: int) -> NDArray[np.uint8]:
        """The image as uint8 [H, W, 3] RGB, upright (see `loaders/decode.py`). Raises BrokenImage, naming it."""

    def fetch(self, indices: NDArray[np.int64]) -> Fetched | Ready:
        """The images at `indices` on their way to an executor: read, their sizes known. Raises BrokenImage."""
        return copied([self.decode(int(i)) for i in indices])

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Upright heights and widths, int64 [N] each, from headers alone where there are any. Raises BrokenImage."""
        fetched = self.fetch(indices)
        return fetched.height, fetched.width

    @abstractmethod
    def location(self, index: int) -> str:
        """Where the image comes from, for messages: a path, or `cifar10-train[17]`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hex digest that changes when the set does; it names cached shards."""

    def close(self) -> None:  # noqa: B027 (most have nothing to let go of)
        """Let go of open files and mappings."""


class Subset(Source):
    """The chosen images of another source, in the order given."""

    def __init__(self, source: Source, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        self.name, self.storage, self.classes = source.name, source.storage, source.classes
        self.labels = source.labels[self.indices]

    def encoded(self, index: int) -> bytes:
        return self.source.encoded(int(self.indices[index]))

    def decode(self, index: int) -> NDArray[np.uint8]:
        return self.source.decode(int(self.indices[index]))

    def fetch(self, indices: NDArray[np.int64]) -> Fetched | Ready:
        return self.source.fetch(self.indices[indices])

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.source.sizes(self.indices[indices])

    def location(self, index: int) -> str:
        return self.source.location(int(self.indices[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint().encode() + self.indices.tobytes()).hexdigest()

    def close(self) -> None:
        self.source.close()


class Mended(Subset):
    """A shard of a set's readable images, under the indices of the whole set; nothing is behind the `broken` ones."""

    def __init__(self, shard: Source, broken: Mapping[int, str]) -> None:
        length = len(shard) + len(broken)
        readable = np.ones(length, np.bool_)
        readable[list(broken)] = False
        super().__init__(shard, np.minimum(np.cumsum(readable) - readable, len(shard) - 1))
        self.broken, self.stored_bytes = broken, shard.stored_bytes

    def will_need(self, first: int, last: int) -> None:
        self.source.will_need(int(self.indices[first]), int(self.indices[last - 1]) + 1)
