"""`.beton`: FFCV's file format (version 2), read and written by our own code.

    header             24 bytes: version, number of fields, page size, number of samples, where the allocation table is
    field descriptors  1041 bytes each: type, name, arguments
    metadata table     one row a sample: image (mode, width, height, pointer), label, checksum: 32 bytes
    data region        pages; an image lies whole within one, as JPEG (mode 0) or interleaved RGB (mode 1)
    allocation table   sample, pointer, length of each image: the only place where lengths are

Tables and RAW pixels are mapped, nothing else is read at opening, and no Python runs per sample. An image's checksum
is tested when it is first read: a bit that flipped on the disk, in pixels or in a label, is an error and not a picture.
Files that the ffcv package writes have none: what changed in them and still decodes is not noticed. Tables that cannot
be right refuse the file; an image that is not what they say is a broken image. The ffcv package opens what is written
here (with the fast DCT, so its JPEG pixels are off by some levels) and what it writes opens here.

Format: https://github.com/libffcv/ffcv (Leclerc et al. 2023, arXiv 2306.12517).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from penstock.augment.pixels import Pixels
from penstock.errors import BrokenImage, UserError
from penstock.loaders.decode import DENSEST, MOST_PIXELS, encode_png, encoded_decoder
from penstock.loaders.fetched import DecodeInto, Fetched, Ready
from penstock.loaders.shard import CHANGED, Entry, Place, ShardWriter, checksum
from penstock.loaders.shard_file import ShardFile
from penstock.loaders.sidecar import read_sidecar
from penstock.loaders.sources.base import UNLABELLED, Source

VERSION = 2
PAGE_SIZE = 8 << 20  # ffcv's default
JPEG, RAW = 0, 1
MODES = {"jpeg": JPEG, "raw": RAW}
MOST_CLASSES = 1 << 20  # that a file without class names may number: a damaged label would ask for billions

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("allocation_table", "<u8")]
)
DESCRIPTOR = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("length", "<u8")])

IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
BYTES = np.dtype([("pointer", "<u8"), ("length", "<u8")])
FLOAT_FIELD, INT_FIELD, IMAGE_FIELD = 0, 1, 2
FIELD_TYPES = {  # ffcv's type number: what a sample's row holds (float, int, image, bytes, array, JSON, tensor)
    FLOAT_FIELD: np.dtype("<f8"),
    INT_FIELD: np.dtype("<i8"),
    IMAGE_FIELD: IMAGE,
    3: BYTES,
    4: np.dtype("<u8"),
    5: BYTES,
    6: np.dtype("<u8"),
}
FIELDS = (("image", IMAGE_FIELD), ("label", INT_FIELD), ("checksum", INT_FIELD))
CHECKSUM_RULE = b"crc32(label, bytes)"  # in the field's arguments, where ffcv's integer fields have none


def row_type(fields: tuple[tuple[str, int], ...]) -> np.dtype:
    """A row of the metadata table: the fields in order, aligned as a C struct is."""
    return np.dtype([(name, FIELD_TYPES[kind]) for name, kind in fields], align=True)


def round_up(position: int, multiple: int) -> int:
    return -(-position // multiple) * multiple


class BetonWriter(ShardWriter):
    """Writes a `.beton`: see `ShardWriter`. Where an image goes depends on the lengths of those before it alone."""

    page = PAGE_SIZE

    def __init__(self, file: BinaryIO, capacity: int) -> None:
        super().__init__(file, capacity)
        self.rows = np.zeros(capacity, row_type(FIELDS))
        self.allocations = np.zeros(capacity, ALLOCATION)
        self.position = round_up(HEADER.itemsize + len(FIELDS) * DESCRIPTOR.itemsize + self.rows.nbytes, PAGE_SIZE)

    def place(self, entry: Entry) -> Place:
        if self.position % PAGE_SIZE + entry.length > PAGE_SIZE:
            self.position = round_up(self.position, PAGE_SIZE)
        start, image = self.position, (MODES[entry.kind], entry.width, entry.height, self.position)
        self.rows[self.samples] = (image, entry.label, entry.checksum)
        self.allocations[self.samples] = (self.samples, start, entry.length)
        self.position += entry.length
        self.samples += 1
        return Place(start, b"", b"")

    def finish(self) -> dict[str, int | str]:
        table = round_up(self.position, 8)
        rows, allocations = self.rows[: self.samples], self.allocations[: self.samples]
        descriptors = np.zeros(len(FIELDS), DESCRIPTOR)
        descriptors["name"], descriptors["type"] = zip(*FIELDS, strict=True)
        descriptors["arguments"][-1] = CHECKSUM_RULE
        header = np.array((VERSION, len(FIELDS), PAGE_SIZE, self.samples, table), HEADER)
        front = header.tobytes() + descriptors.tobytes()
        self.file.seek(table)
        self.file.write(allocations.tobytes())
        self.file.seek(0)
        self.file.write(front + rows.tobytes())
        return {
            "samples": self.samples,
            "bytes": table + allocations.nbytes,
            "header_sha256": hashlib.sha256(front).hexdigest(),
            "index_sha256": hashlib.sha256(front + rows.tobytes() + allocations.tobytes()).hexdigest(),
        }


class BetonSource(Source):
    """The images of a `.beton`, by position.

    Attributes (besides a source's):
        path: the file.
        page_size: bytes in a page.
        images: the table's image column, structured [N]: `mode`, `width`, `height`, `pointer`. A view of the file.
        lengths: uint64 [N], bytes of each image.
        field_names, image_field, label_field: names in the file; the last is None where nothing looks like a label.
        checksums: whether the file has them (those that the ffcv package writes have none).
        sidecar: class names and provenance, or None (a file written by the ffcv package).

    Raises:
        UserError: no such file, or not a whole `.beton`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._shard = ShardFile(self.path)
        self._file = self._shard.mapped()
        self._read_tables()
        self.lengths = self._lengths()
        self._check_images()
        self.sidecar = read_sidecar(
            self.path,
            length=len(self._file),
            header_sha256=_sha256(self._front),
            index_sha256=self.index_sha256,
        )
        self._unchecked = np.full(len(self._rows), self.checksums)
        self.storage = {(JPEG,): "jpeg", (RAW,): "raw"}.get(tuple(np.unique(self.images["mode"])), "mixed")
        self.name = self.sidecar.provenance.source if self.sidecar else self.path.stem
        self.stored_bytes = len(self._file)
        self.labels = self._labels()
        self.classes = self._classes()

    def will_need(self, first: int, last: int) -> None:
        pointers = self.images["pointer"][first:last]
        self._shard.will_need(int(pointers.min()), int((pointers + self.lengths[first:last]).max()))

    def _read_tables(self) -> None:
        """Header, descriptors and metadata table, as views of the mapped file."""
        if len(self._file) < HEADER.itemsize:
            raise self._broken("it is too short for a header")
        header = self._file[: HEADER.itemsize].view(HEADER)[0]
        if header["version"] != VERSION or not header["page_size"]:
            raise self._broken("it does not start with the header of format version 2")
        count, samples, table = int(header["fields"]), int(header["samples"]), int(header["allocation_table"])
        self._front = self._file[: HEADER.itemsize + count * DESCRIPTOR.itemsize]
        if len(self._front) < HEADER.itemsize + count * DESCRIPTOR.itemsize:
            raise self._broken("its field descriptors are cut short")
        descriptors = self._front[HEADER.itemsize :].view(DESCRIPTOR)
        fields = self._fields(descriptors)
        row = row_type(fields)
        end = len(self._front) + samples * row.itemsize
        if not samples or not end <= table <= len(self._file) or (len(self._file) - table) % ALLOCATION.itemsize:
            raise self._broken("it holds no image" if not samples else "its tables are cut short")
        self.page_size = int(header["page_size"])
        self._rows = self._file[len(self._front) : end].view(row)
        self._allocations = self._file[table:].view(ALLOCATION)
        self._data_region = (end, table)
        self.field_names = tuple(name for name, _ in fields)
        self.image_field = next(name for name, kind in fields if kind == IMAGE_FIELD)
        integers = [name for name, kind in fields if kind == INT_FIELD and name != "checksum"]
        self.label_field = "label" if "label" in integers else next(iter(integers), None)
        self.images = self._rows[self.image_field]
        rule = descriptors["arguments"][-1].tobytes().rstrip(b"\0")
        self.checksums = fields == FIELDS and rule == CHECKSUM_RULE
        ours = rule == CHECKSUM_RULE or (bool(rule) and fields[-1][1] == INT_FIELD)  # others' have no arguments
        if ours and not self.checksums:
            raise self._broken("its fields are damaged")
        if self.checksums and len(self._allocations) != samples:
            raise self._broken(f"it holds {samples} images, or {len(self._allocations)}: its tables disagree")

    def _fields(self, descriptors: NDArray[np.void]) -> tuple[tuple[str, int], ...]:
        fields = tuple((name.decode("latin-1"), int(kind)) for kind, name, _ in descriptors)
        if not all(kind in FIELD_TYPES for _, kind in fields) or len(dict(fields)) < len(fields):
            raise self._broken(f"its fields are not ones that FFCV defines: {dict(fields)}")
        if IMAGE_FIELD not in dict(fields).values():
            raise self._broken(f"it has no image field, only {', '.join(dict(fields))}")
        return fields

    def _lengths(self) -> NDArray[np.uint64]:
        """Each image's length, from the allocation table: in sample order as we write it, in any order as ffcv does."""
        pointers, table = self.images["pointer"], self._allocations
        if np.array_equal(pointers, table["pointer"]):
            return table["length"]
        order = np.argsort(table["pointer"])
        position = np.searchsorted(table["pointer"], pointers, sorter=order)
        found = order[np.minimum(position, len(order) - 1)] if len(order) else np.empty(0, np.int64)
        if not np.array_equal(table["pointer"][found], pointers):
            raise self._broken("its allocation table does not list every image")
        return table["length"][found]

    def _check_images(self) -> None:
        """Each image lies within the data region and is of a known kind, so that no read goes astray."""
        start, end = self._data_region
        pointers = self.images["pointer"]
        # `end - pointers` cannot wrap around once pointers <= end holds, whereas `pointers + lengths` could
        inside = (pointers >= start) & (pointers <= end) & (self.lengths <= np.uint64(end) - pointers)
        if not inside.all():
            raise self._broken(f"image {int(np.argmin(inside))} lies outside of its data region")
        if self.images["mode"].max() > RAW:
            raise self._broken(f"image {int(np.argmax(self.images['mode'] > RAW))} is neither JPEG nor RAW")

    def _labels(self) -> NDArray[np.int64]:
        """A view of the table: a copy would be memory that cannot be let go of."""
        if self.label_field is None:
            return np.full(len(self._rows), UNLABELLED, np.int64)
        return self._rows[self.label_field]

    def _classes(self) -> tuple[str, ...]:
        count = len(self.sidecar.classes) if self.sidecar else MOST_CLASSES
        wrong = (self.labels >= count) | (self.labels < UNLABELLED)
        if wrong.any():
            index = int(np.argmax(wrong))
            raise self._broken(f"the label of image {index} is {self.labels[index]}, of {count} classes at most")
        return self.sidecar.classes if self.sidecar else tuple(map(str, range(int(self.labels.max()) + 1)))

    def _broken(self, reason: str) -> UserError:
        return UserError(f"{self.path}: not a whole .beton file ({reason}): convert or copy it again")

    def stored(self, index: int) -> bytes:
        """The image's bytes as they lie in the file. Raises BrokenImage."""
        self._shard.check()
        try:
            data = self._shard.read(self.start(index), int(self.lengths[index]))
        except OSError as error:
            raise BrokenImage(self.location(index), error.strerror or str(error)) from error
        self._test(index, data)
        return data

    def _test(self, index: int, data: bytes | memoryview) -> None:
        """Hold an image against its checksum, the first time (twice, harmlessly, where two threads come at once)."""
        if self._unchecked[index]:
            _, label, written = self._rows[index].item()
            if checksum(data, label) != written:
                raise BrokenImage(self.location(index), CHANGED)
            self._unchecked[index] = False

    def entry(self, index: int) -> Entry:
        """What the tables say of an image, to copy it into another shard."""
        (mode, width, height, _), label, written = self._rows[index].item()
        kind = "raw" if mode == RAW else "jpeg"
        return Entry(index, kind, height, width, label, int(self.lengths[index]), written)

    def start(self, index: int) -> int:
        """Where the image's bytes begin in the file."""
        return int(self.images["pointer"][index])

    def encoded(self, index: int) -> bytes:
        if self.images["mode"][index] == RAW:
            return encode_png(self.decode(index))
        return self.stored(index)

    def decode(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]; of a RAW image a read-only view of the file."""
        if self.images["mode"][index] == RAW:
            return self._raw(index)
        out = np.empty((*self._size(index), 3), np.uint8)
        self._decoder(index)(out, None)
        return out

    def fetch(self, indices: NDArray[np.int64]) -> Fetched | Ready:
        height, width = self.sizes(indices)
        if self.storage != "raw":
            return Fetched(height=height, width=width, decode=[self._decoder(int(i)) for i in indices])
        for index in indices[self._unchecked[indices]]:
            self._raw(int(index))
        offset = self.images["pointer"][indices].astype(np.int64)
        return Ready(Pixels(data=self._file, offset=offset, height=height, width=width))

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """From the table: no image is touched. Raises BrokenImage for sizes that its bytes cannot be."""
        self._shard.check()
        images, lengths = self.images[indices], self.lengths[indices].astype(np.int64)
        height, width = images["height"].astype(np.int64), images["width"].astype(np.int64)
        pixels = height * width
        fits = np.where(images["mode"] == RAW, 3 * pixels == lengths, pixels <= DENSEST * lengths)
        possible = fits & (pixels > 0) & (pixels <= MOST_PIXELS)
        if not possible.all():
            n = int(np.argmin(possible))
            reason = f"{lengths[n]} bytes cannot be {height[n]}×{width[n]} pixels"
            raise BrokenImage(self.location(int(indices[n])), reason)
        return height, width

    def _size(self, index: int) -> tuple[int, int]:
        (height,), (width,) = self.sizes(np.array([index]))
        return int(height), int(width)

    def _decoder(self, index: int) -> DecodeInto:
        if self.images["mode"][index] == RAW:
            raw = self._raw(index)
            return lambda out, box: np.copyto(out, raw)
        return encoded_decoder(self.stored(index), self.location(index))

    def _raw(self, index: int) -> NDArray[np.uint8]:
        """A RAW image's pixels, as a view of the file. Raises BrokenImage."""
        height, width = self._size(index)
        start = self.start(index)
        data = self._file[start : start + height * width * 3]
        self._test(index, data.data)
        return data.reshape(height, width, 3)

    def location(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def fingerprint(self) -> str:
        """A digest of both tables (our checksums are in them) and the classes; without checksums, of the date too."""
        written = "" if "checksum" in self.field_names else str(self.path.stat().st_mtime_ns)
        names = "\0".join((*self.classes, written)).encode(errors="surrogateescape")
        return _sha256(self._front, self._rows, self._allocations, names)

    def index_sha256(self) -> str:
        """To hold against the sidecar's `index_sha256`."""
        return _sha256(self._front, self._rows, self._allocations)

    def __reduce__(self) -> tuple[type[BetonSource], tuple[Path]]:
        """A process that is not forked opens the file anew; pickling the mapping would copy it."""
        return BetonSource, (self.path,)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last RAW view handed out does. Labels stay."""
        self._shard.close()
        self.labels = self.labels.copy()
        for view in ("_file", "_front", "_rows", "_allocations", "images", "lengths"):
            self.__dict__.pop(view, None)  # it may be closed twice


def _sha256(*parts: NDArray[np.generic] | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.data)
    return digest.hexdigest()
