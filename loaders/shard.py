"""What the shard formats share: what is known of an image besides its bytes, its checksum, and what a writer does."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, NamedTuple

CHANGED = "its bytes or its label changed since they were written"


@dataclass(frozen=True)
class Entry:
    """An image in a shard, but for its bytes.

    Attributes:
        number: its position in the source; not every format keeps it.
        kind: `jpeg`, `raw` (interleaved RGB) or `png`.
        height, width: in pixels; 0 where a format does not keep them.
        label: position in the class names, -1 where there is none.
        length: of its bytes.
        checksum: of its label and bytes, see `checksum`.
        change: why the original bytes were not passed through, or None if they were.
    """

    number: int
    kind: str
    height: int
    width: int
    label: int
    length: int
    checksum: int
    change: str | None = None


def checksum(data: bytes | memoryview, label: int) -> int:
    """CRC-32 of the label (64 bits, little-endian) and the bytes; fast beside decoding, and without the GIL."""
    return zlib.crc32(data, zlib.crc32(label.to_bytes(8, "little", signed=True)))


class Place(NamedTuple):
    """Where an image goes in the file: `before`, its bytes and `after`, from `start` on."""

    start: int
    before: bytes
    after: bytes


class ShardWriter(ABC):
    """Lays out a shard in one pass. The same images in the same order give the same file, to the last byte.

    Args:
        file: opened for writing; what it holds already is overwritten.
        capacity: the most images that will come; fewer may (broken ones are skipped).

    Attributes:
        page: the most bytes that an image may take, or None where there is no limit.
        samples, position: images placed so far, and where the last one ends.
        labels: those placed so far, where the format would have to be read whole to learn them; else None.
        index: what goes into the file beside the shard, after `finish`; None where there is no such file.
    """

    page: ClassVar[int | None] = None
    labels: list[int] | None = None
    index: bytes | None = None

    def __init__(self, file: BinaryIO, capacity: int) -> None:
        self.file, self.capacity = file, capacity
        self.samples = self.position = 0
        self._written_to = -1  # where the file stands after the last image; asking it would be a system call

    @abstractmethod
    def place(self, entry: Entry) -> Place:
        """Enter an image in the tables. Whoever calls this sees to it that its bytes get there."""

    def add(self, entry: Entry, data: bytes) -> None:
        """Append one image."""
        start, before, after = self.place(entry)
        if start != self._written_to:
            self.file.seek(start)
        for part in (before, data, after):
            self.file.write(part)
        self._written_to = start + len(before) + len(data) + len(after)

    @abstractmethod
    def finish(self) -> dict[str, int | str]:
        """Write the tables; returns the sidecar's record: `samples`, `bytes`, `header_sha256`, `index_sha256`."""
