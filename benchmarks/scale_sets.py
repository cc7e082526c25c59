"""Sets of any number of samples, made in seconds: tables, indexes and names are real, the pixels of a few pictures.

A sample of the `.beton` is a window of 32 × 32 × 3 bytes onto the pictures' pixels, each three bytes further on than
the one before: pointers and checksums differ as in any shard, for the first 1.28 million, and repeat from there. The
tar's index names the same few members again and again; a folder's files are hard links to a few.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import penstock
from penstock.loaders import Source
from penstock.loaders.beton import (
    ALLOCATION,
    CHECKSUM_RULE,
    DESCRIPTOR,
    FIELDS,
    HEADER,
    PAGE_SIZE,
    RAW,
    VERSION,
    round_up,
    row_type,
)
from penstock.loaders.formats import beside
from penstock.loaders.shard import Entry, checksum
from penstock.loaders.sidecar import Provenance
from penstock.loaders.webdataset import WebDatasetWriter

CLASSES = 1000
SIDE = 32  # of the images in a `.beton`, pixels
IMAGE_BYTES = SIDE * SIDE * 3
DISTINCT = 1_280_000  # windows onto the pictures; more would not lie in one page
PICTURES = 64
LINKS = 50_000  # names that one file may have: ext4 allows 65,000


def pictures_of(source: Source) -> list[int]:
    """Positions of a few images of a set, from all over it."""
    return np.linspace(0, len(source) - 1, min(PICTURES, len(source))).astype(int).tolist()


def write_set(kind: str, folder: Path, samples: int, source: Source) -> Path:
    """A `beton`, `webdataset` or `files` of so many samples in `folder`. Returns what `open_source` opens."""
    if kind == "files":
        return write_files(folder / f"files-{samples}", samples, source)
    path = folder / f"{samples}{'.beton' if kind == 'beton' else '.tar'}"
    (write_beton if kind == "beton" else write_webdataset)(path, samples, source)
    return path


def bytes_on_disk(kind: str, samples: int) -> int:
    """About how much room a set takes while it is measured (for `files`: entries of folders)."""
    each = {"beton": row_type(FIELDS).itemsize + ALLOCATION.itemsize, "webdataset": 80, "files": 60}[kind]
    return 4 * PAGE_SIZE + each * samples


def write_beton(path: Path, samples: int, source: Source) -> None:
    """A RAW `.beton` in chunks of at most `DISTINCT` rows: a hundred million are never in memory at once."""
    row = row_type(FIELDS)
    descriptors = np.zeros(len(FIELDS), DESCRIPTOR)
    descriptors["name"], descriptors["type"] = zip(*FIELDS, strict=True)
    descriptors["arguments"][-1] = CHECKSUM_RULE
    start = round_up(HEADER.itemsize + descriptors.nbytes + samples * row.itemsize, PAGE_SIZE)
    pixels = _pixels(source)
    rows = _rows(min(samples, DISTINCT), pixels, start)
    header = np.array((VERSION, len(FIELDS), PAGE_SIZE, samples, start + PAGE_SIZE), HEADER)
    with path.open("wb") as file:
        file.write(header.tobytes() + descriptors.tobytes())
        for first in range(0, samples, len(rows)):
            file.write(rows[: samples - first].data)
        file.seek(start)
        file.write(pixels.data)
        for first in range(0, samples, len(rows)):
            file.write(_allocations(first, rows[: samples - first]).data)
        _settle(file.fileno())


def _pixels(source: Source) -> NDArray[np.uint8]:
    """One page full of the pictures' pixels, uint8 [PAGE_SIZE]."""
    return np.resize(np.concatenate([source.decode(index).ravel() for index in pictures_of(source)]), PAGE_SIZE)


def _rows(count: int, pixels: NDArray[np.uint8], start: int) -> NDArray[np.void]:
    rows = np.zeros(count, row_type(FIELDS))
    shift = 3 * np.arange(count)
    rows["image"]["mode"], rows["image"]["width"], rows["image"]["height"] = RAW, SIDE, SIDE
    rows["image"]["pointer"] = start + shift
    rows["label"] = np.arange(count) * CLASSES // count
    rows["checksum"] = [
        checksum(pixels[first : first + IMAGE_BYTES].data, label)
        for first, label in zip(shift.tolist(), rows["label"].tolist(), strict=True)
    ]
    return rows


def _allocations(first: int, rows: NDArray[np.void]) -> NDArray[np.void]:
    table = np.empty(len(rows), ALLOCATION)
    table["sample"] = np.arange(first, first + len(rows))
    table["pointer"], table["length"] = rows["image"]["pointer"], IMAGE_BYTES
    return table


def write_webdataset(path: Path, samples: int, source: Source) -> None:
    """A tar of a few members, and an index of as many lines as asked for; beside them the sidecar with all labels."""
    chosen = pictures_of(source)
    with path.open("wb") as file:
        writer = WebDatasetWriter(file, len(chosen))
        for number, index in enumerate(chosen):
            data = source.encoded(index)
            kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
            writer.add(Entry(number, kind, 0, 0, number, len(data), checksum(data, number)), data)
        record = writer.finish()
        _settle(file.fileno())
    assert writer.index
    version, *lines = writer.index.splitlines(keepends=True)
    repeated = -(-samples // len(lines))
    writer.labels = (writer.labels * repeated)[:samples]
    writer.index = version.replace(b" %d" % len(lines), b" %d" % samples) + b"".join((lines * repeated)[:samples])
    digest = hashlib.sha256(writer.index).hexdigest()
    record |= {"samples": samples, "header_sha256": digest, "index_sha256": digest}
    for name, content in beside(path, writer, record, tuple(map(str, range(CLASSES))), _provenance(samples)).items():
        name.write_bytes(content)


def _provenance(samples: int) -> Provenance:
    return Provenance(
        source="scale", fingerprint="", source_samples=samples, options={}, version=penstock.__version__,
        untouched=samples, reencoded={}, skipped=[],
    )  # fmt: skip


def write_files(folder: Path, samples: int, source: Source) -> Path:
    """A thousand class folders whose files, named as ImageNet's, are hard links to a few."""
    originals = folder.with_name(f"{folder.name}-originals")  # beside it: all that lies in it is a class
    originals.mkdir()
    folder.mkdir()
    links = _links(originals, samples, source)
    classes = min(CLASSES, samples)
    for label in range(classes):
        name = f"n{label:08d}"
        (folder / name).mkdir()
        for i in range(label * samples // classes, (label + 1) * samples // classes):
            os.link(next(links), f"{folder}/{name}/{name}_{i:08d}.JPEG")
    return folder


def _links(originals: Path, samples: int, source: Source) -> Iterator[Path]:
    """The files to link to, one after the other; each is written as often as its number of names asks for."""
    chosen = [source.encoded(index) for index in pictures_of(source)]
    count = max(len(chosen), -(-samples // LINKS))
    paths = [originals / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(chosen[number % len(chosen)])
    while True:
        yield from paths


def _settle(file: int) -> None:
    """Have it on the disk, so that nobody is still writing while its opening is timed."""
    os.fsync(file)
