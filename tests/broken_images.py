"""Encoded images that are broken, each in another way, and sets that hold them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penstock.loaders import Source
from penstock.loaders.beton import (
    ALLOCATION,
    CHECKSUM_RULE,
    DESCRIPTOR,
    FIELDS,
    HEADER,
    BetonSource,
    BetonWriter,
    row_type,
)
from penstock.loaders.decode import encode_jpeg, encode_png
from penstock.loaders.shard import Entry, ShardWriter, checksum
from penstock.loaders.sources.folder import ImageFolder
from penstock.loaders.webdataset import WebDatasetSource, WebDatasetWriter, index_path

END = b"\xff\xd9"


def photo(i: int) -> NDArray[np.uint8]:
    """Something like a photograph: number i is always the same, and of a size of its own."""
    coarse = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((48 + i, 40 + i % 9), Image.Resampling.BICUBIC))


def good(i: int) -> bytes:
    return encode_jpeg(photo(i), 90)


def saved(image: Image.Image, format: str, **how: bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    return buffer.getvalue()


def in_frame(jpeg: bytes, height: int, width: int) -> bytes:
    """The same with another size in its frame header."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[place + 4 :]


def in_scan(jpeg: bytes, data: bytes) -> bytes:
    """The same with these bytes in the middle of its scan."""
    place = (jpeg.index(b"\xff\xda") + len(jpeg)) // 2
    return jpeg[:place] + data + jpeg[place + len(data) :]


def two_frames(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xc0")
    return jpeg[: start + 19] + jpeg[start:]


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


JPEG, PNG, PHOTO = good(0), encode_png(photo(0)), Image.fromarray(photo(0))
ONES = b"\xff\x00" * 20  # sixteen ones in a row are no Huffman code
BROKEN = {
    "empty": b"",
    "text": b"This is a text under the name of an image.\n" * 9,
    "cut in its header": JPEG[:100],
    "cut in its scan": JPEG[:-150],
    "cut in its scan, but with an end": halved(JPEG) + END,
    "invalid codes": in_scan(JPEG, ONES),
    "twice as high as its scan": in_frame(JPEG, 2 * PHOTO.height, PHOTO.width),
    "60000 x 60000": in_frame(JPEG, 60000, 60000),
    "12000 x 12000": in_frame(JPEG, 12000, 12000),  # which Pillow would make room for
    "no rows": in_frame(JPEG, 0, PHOTO.width),
    "no columns": in_frame(JPEG, PHOTO.height, 0),
    "two frame headers": two_frames(JPEG),
    "progressive, cut": halved(saved(PHOTO, "JPEG", progressive=True)),
    "CMYK, cut": halved(saved(PHOTO.convert("CMYK"), "JPEG")),
    "PNG, cut": halved(PNG),
    "PNG with a damaged chunk": PNG[:60] + b"garbage" + PNG[67:],
    "PNG of no rows": PNG[:20] + bytes(4) + PNG[24:],
}
SILENT = ("cut in its scan, but with an end", "invalid codes", "twice as high as its scan")  # to DALI


def numbered(name: str) -> int:
    """Where in a set the image that is broken in this way lies: good ones between, but for the second and third."""
    place = list(BROKEN).index(name)
    return 2 * place + 1 - (place >= 2)


NUMBERS = {numbered(name): name for name in BROKEN}
COUNT = max(NUMBERS) + 1


def encoded(*, broken: bool) -> list[bytes]:
    return [BROKEN[NUMBERS[i]] if broken and i in NUMBERS else good(i) for i in range(COUNT)]


def write_set(folder: Path, storage: str, images: Sequence[bytes]) -> Source:
    """Images in one of the storages; the second half has label 1. Shards' checksums are those of the bytes given.

    For `raw` they are the pixels of `photo`s. `foreign` and `foreign raw` are such a `.beton` without checksums.
    """
    labels = [int(2 * i >= len(images)) for i in range(len(images))]
    if storage == "files":
        for i, data in enumerate(images):
            path = folder / "ab"[labels[i]] / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return ImageFolder(folder, name="broken")
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / ("x.tar" if storage == "webdataset" else "x.beton")
    with open(shard, "wb") as file:
        writer: ShardWriter = (WebDatasetWriter if storage == "webdataset" else BetonWriter)(file, len(images))
        for i, (data, label) in enumerate(zip(images, labels, strict=True)):
            (height, width, _), kind = photo(i).shape, "raw" if storage.endswith("raw") else "jpeg"
            writer.add(Entry(i, kind, height, width, label, len(data), checksum(data, label)), data)
        writer.finish()
    if writer.index:
        index_path(shard).write_bytes(writer.index)
        return WebDatasetSource(shard)
    if storage.startswith("foreign"):
        shard.write_bytes(shard.read_bytes().replace(CHECKSUM_RULE, bytes(len(CHECKSUM_RULE)), 1))
    return BetonSource(shard)


BY_CHECKSUM = ("a bit of its data", "its label", "its checksum")  # which only that can tell
CHANGES = (
    *BY_CHECKSUM,
    *("cut", "of no length", "of no size and length", "of the other kind"),
    *("higher in the table", "narrower in the table", "without rows in the table", "huge in the table"),
)


def change(beton: Path, index: int, what: str) -> None:
    """Do one of `CHANGES` to an image of a shard and its entries in the tables, or what chance might do."""
    data = bytearray(beton.read_bytes())
    header = np.frombuffer(data, HEADER, 1)[0]
    front = HEADER.itemsize + len(FIELDS) * DESCRIPTOR.itemsize
    row = np.frombuffer(data, row_type(FIELDS), int(header["samples"]), offset=front)[index : index + 1]
    entry = np.frombuffer(data, ALLOCATION, offset=int(header["allocation_table"]))[index : index + 1]
    image = row["image"]
    match what:
        case "a bit of its data":
            data[int(entry["pointer"][0]) + int(entry["length"][0]) // 2] ^= 4
        case "its label":
            row["label"] ^= 1
        case "its checksum":
            row["checksum"] ^= 1
        case "cut":
            entry["length"] -= np.uint64(30)
        case "of no length":
            entry["length"] = 0
        case "of no size and length":
            entry["length"] = image["height"] = image["width"] = 0
        case "higher in the table":
            image["height"] += 1
        case "narrower in the table":
            image["width"] -= 8
        case "without rows in the table":
            image["height"] = 0
        case "huge in the table":
            image["height"] = image["width"] = 65535
        case "of the other kind":
            image["mode"] ^= 1
        case _:
            raise AssertionError(what)
    beton.write_bytes(data)
