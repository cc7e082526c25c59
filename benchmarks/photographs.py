"""The files that a benchmark reads: enough of them for epochs that are long against the prefetch, each one distinct.

A few photographs named again and again would be served from the processor's caches, and a loader that keeps what it
has seen would decode each only once. So a set that is too small is written out several times, as separate files;
a set that is larger than needed is cut down, so that converting it does not take hours.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from penstock.files import cache_folder
from penstock.loaders import Source, open_source

BATCHES = 32  # in an epoch, at least
FEWEST, MOST = 2_048, 16_384  # images in an epoch, unless 32 batches are more

ARRAYS, FILES = "arrays", "files"


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """What each row opens: `open_source(data, limit=limit)`, `count` images, of which `distinct` differ."""

    data: str
    limit: int | None
    count: int
    distinct: int


def photographs(data: str, *, batch: int) -> Photographs:
    """The set `data` as files (or arrays), with at least 32 batches in an epoch."""
    source = open_source(data)
    needed = max(FEWEST, BATCHES * batch)
    if source.storage in (FILES, ARRAYS) and len(source) >= needed:
        limit = max(needed, MOST)
        count = min(len(source), limit)
        return Photographs(data=data, limit=limit if len(source) > limit else None, count=count, distinct=count)
    source = open_source(data, limit=min(len(source), max(needed, MOST)))  # a shard may hold millions
    copies = -(-needed // len(source))
    folder = cache_folder() / "benchmark" / f"{source.name}-{source.fingerprint()[:16]}-x{copies}"
    if not folder.exists():
        _write_copies(source, folder, copies)
    return Photographs(data=str(folder), limit=None, count=copies * len(source), distinct=len(source))


def in_words(count: int, distinct: int) -> str:
    """What lies in an epoch: 2,400 images, or 400 images, repeated 6 times."""
    repeated = f", repeated {count // distinct} times" if distinct < count else ""
    return f"{distinct:,} images{repeated}"


def _write_copies(source: Source, folder: Path, copies: int) -> None:
    """Write each image `copies` times, under class folders where there are classes, then move all into place."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    folders = [unfinished / name for name in source.classes] or [unfinished]
    for each in folders:
        each.mkdir(parents=True)
    try:
        for i in track(range(len(source)), description=f"{source.name}, {copies} times", transient=True):
            data = source.encoded(i)
            suffix = ".jpg" if data.startswith(b"\xff\xd8") else ".png"
            for copy in range(copies):
                (folders[max(0, source.labels[i])] / f"{i:07d}-{copy:03d}{suffix}").write_bytes(data)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
