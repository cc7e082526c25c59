"""The same images as each row wants them stored: files, and shards made of them once, in the benchmark's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.benchmarks.peers.peer import paths
from penstock.benchmarks.photographs import Photographs
from penstock.files import cache_folder
from penstock.loaders import Source, open_source
from penstock.loaders.convert import convert
from penstock.loaders.lock import locked
from penstock.loaders.webdataset import index_path

MAX_SIDE, QUALITY, SHORT_SIDE = 400, 90, 256

ENCODINGS: dict[str, dict[str, Any]] = {  # each shard's options of `convert`
    "jpeg": {"format": "beton", "encoding": "jpeg", "max_side": MAX_SIDE, "quality": QUALITY},
    "raw": {"format": "beton", "encoding": "raw", "short_side": SHORT_SIDE},
    "webdataset": {"format": "webdataset"},
}
ABOUT = {
    "files": "the original files",
    "arrays": "the set's own arrays",
    "jpeg": f".beton, JPEG: max side {MAX_SIDE}, quality {QUALITY}",
    "raw": f".beton, RAW: short side {SHORT_SIDE}",
    "webdataset": "tar and index, the original bytes",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a storage lies: `open_source(data, limit=limit)`.

    Attributes:
        about: how its images were made.
        bytes: of all its images (and tables); of arrays, of their pixels.
    """

    data: str
    limit: int | None = None
    about: str
    bytes: int

    def open(self) -> Source:
        return open_source(self.data, limit=self.limit)


def place(storage: str, files: Photographs, *, workers: int) -> Place:
    """The photographs in a storage, converted where that has not been done."""
    source = open_source(files.data, limit=files.limit)
    if storage not in ENCODINGS:
        held = sum(os.path.getsize(path) for path in paths(source)) if storage == "files" else _pixels(source)
        return Place(data=files.data, limit=files.limit, about=ABOUT[storage], bytes=held)
    options = ENCODINGS[storage]
    suffix = ".tar" if options["format"] == "webdataset" else f".{storage}.beton"
    shard = cache_folder() / "benchmark" / f"{source.name}-{source.fingerprint()[:16]}{suffix}"
    with locked(shard):
        if not shard.exists():
            convert(source, shard, workers=workers, **options)
    return Place(data=str(shard), about=ABOUT[storage], bytes=shard.stat().st_size)


def _pixels(source: Source) -> int:
    return len(source) * source.decode(0).nbytes


def read_once(place: Place) -> None:
    """Read all that lies there, so that every row finds it in the page cache."""
    for path in _files(place):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def forget(place: Place) -> None:
    """Ask the kernel to drop it from the page cache; a page that another process maps stays."""
    for path in _files(place):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # what is not yet written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _files(place: Place) -> Iterator[Path]:
    """What a loader of this place reads; nothing for arrays, which are read when the set is opened."""
    path = Path(place.data)
    if path.is_file():
        yield path
        yield from (other for other in [index_path(path)] if path.suffix == ".tar" and other.exists())
        return
    source = place.open()
    if source.storage == "files":
        yield from map(Path, paths(source))
