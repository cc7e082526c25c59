"""WebDataset: a tar of `000000012.jpg` (or `.png`) and `000000012.cls`, with the index that DALI's `wds2idx` makes.

A sample's number is its place in the source. Its checksum stands in the tar header as the name of the owning group,
which no reader of data sets looks at; it is tested when the image is first read. Tars made elsewhere have none: what
changed in their files and still decodes is not noticed, but an index that points elsewhere is, by the tar's headers.

The index `NAME.idx` says where each file's bytes lie in `NAME.tar`: a line `v1.2 N`, then for each sample its
components, `extension offset size name`. With it any sample can be read at once, by DALI's
`fn.readers.webdataset` and by `WebDatasetSource`; the webdataset package reads the tar from end to end without it.

Format: https://github.com/webdataset/webdataset, https://docs.nvidia.com/deeplearning/dali (wds2idx).
"""

from __future__ import annotations

import hashlib
import logging
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BrokenImage, UserError
from penstock.files import write_whole
from penstock.loaders import wds_index
from penstock.loaders.beton import MOST_CLASSES
from penstock.loaders.decode import decode_rgb, fetch_encoded
from penstock.loaders.fetched import Fetched
from penstock.loaders.shard import CHANGED, Entry, Place, ShardWriter, checksum
from penstock.loaders.shard_file import ShardFile
from penstock.loaders.sidecar import read_sidecar
from penstock.loaders.sources.base import UNLABELLED, Source

LOG = logging.getLogger(__name__)
BLOCK = tarfile.BLOCKSIZE
SIZE, SUM, OWNER, GROUP = slice(124, 136), slice(148, 156), slice(265, 271), slice(297, 305)  # of a ustar header
CHECKSUM_OWNER = b"crc32\0"  # who has this name belongs to a group named after the checksum, in hexadecimal
EXTENSIONS = {"jpeg": "jpg", "png": "png"}
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff", "img", "image")


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".idx")


class WebDatasetWriter(ShardWriter):
    """Writes a tar: see `ShardWriter`. Dates are left at zero: the same images give the same bytes."""

    def __init__(self, file: BinaryIO, capacity: int) -> None:
        super().__init__(file, capacity)
        self.labels: list[int] = []
        self._lines: list[str] = []

    def place(self, entry: Entry) -> Place:
        start, extension, label = self.position, EXTENSIONS[entry.kind], str(entry.label).encode()
        image, cls = f"{entry.number:09d}.{extension}", f"{entry.number:09d}.cls"
        before = _header(image, entry.length, entry.checksum)
        after = bytes(-entry.length % BLOCK) + _header(cls, len(label)) + label + bytes(-len(label) % BLOCK)
        self.position += len(before) + entry.length + len(after)
        places = f"{start + BLOCK} {entry.length} {image} cls {self.position - BLOCK} {len(label)} {cls}"
        self._lines.append(f"{extension} {places}\n")
        self.labels.append(entry.label)
        self.samples += 1
        return Place(start, before, after)

    def finish(self) -> dict[str, int | str]:
        self.file.seek(self.position)
        self.file.write(bytes(2 * BLOCK))
        self.index = f"{wds_index.VERSION} {self.samples}\n{''.join(self._lines)}".encode()
        digest = hashlib.sha256(self.index).hexdigest()
        size = self.position + 2 * BLOCK
        return {"samples": self.samples, "bytes": size, "header_sha256": digest, "index_sha256": digest}


_BLANK = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)


def _header(name: str, size: int, written: int | None = None) -> bytes:
    """A file's header, as tarfile makes it at ten times the cost; a checksum goes in the owner's names."""
    block = bytearray(_BLANK)
    block[: len(name)] = name.encode()
    block[SIZE] = b"%011o\0" % size
    if written is not None:
        block[OWNER], block[GROUP] = CHECKSUM_OWNER, b"%08x" % written
    block[SUM] = b" " * 8
    block[SUM] = b"%06o\0 " % sum(block)
    return bytes(block)


class WebDatasetSource(Source):
    """The images of a tar, by position, through its index (made first where it is missing).

    Attributes (besides a source's):
        path: the tar.
        offsets, lengths: int64 [N], where each image's bytes lie.
        sidecar: class names and provenance, or None (a tar made elsewhere).

    Args:
        path: the tar.
        keep_index: whether an index that had to be made is written beside the tar, for the next time.

    Raises:
        UserError: no such tar, it is cut short, or the index does not fit it.
    """

    storage = "webdataset"

    def __init__(self, path: str | Path, *, keep_index: bool = True) -> None:
        self.path = Path(path)
        self._file = ShardFile(self.path)
        index = self._index(keep_index)
        self._index_sha256 = hashlib.sha256(index).hexdigest()
        self.offsets, self.lengths = self._component(index, IMAGE_EXTENSIONS, "image")
        sidecar = read_sidecar(
            self.path,
            length=self._file.size,
            header_sha256=self._index_sha256,
            index_sha256=self.index_sha256,
        )
        self.labels = self._labels(index, sidecar.labels if sidecar else None)
        self.sidecar = replace(sidecar, labels=None) if sidecar else None  # a list takes several times the memory
        self.name = self.sidecar.provenance.source if self.sidecar else self.path.stem
        self._unchecked = np.full(len(self.labels), True)
        self.stored_bytes = self._file.size
        self.classes = self._classes()

    def will_need(self, first: int, last: int) -> None:
        self._file.will_need(int(self.offsets[first]), int(self.offsets[last - 1] + self.lengths[last - 1]))

    def _index(self, keep: bool) -> bytes:
        """The index beside the tar, or one made from the tar."""
        path = index_path(self.path)
        if path.exists():
            return _read(path)
        purpose = f" to make {path.name}" if keep else ""
        LOG.warning("%s: no index beside it; reading it through once%s", self.path, purpose)
        index = make_index(self.path)
        if keep:
            try:
                write_whole(path, lambda partial: partial.write_bytes(index))
            except UserError as error:  # a folder that is read-only
                reason = str(error).partition("; ")[0]
                LOG.warning("%s: the tar is read through each time it is opened", reason)
        return index

    def _component(
        self, index: bytes, extensions: tuple[str, ...], what: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets and lengths, int64 [N] each, of the one component that has any of the extensions."""
        try:
            offsets, lengths = wds_index.component(index, extensions, what)
        except ValueError as error:
            raise self._broken(str(error)) from error
        if (lengths > self._file.size - offsets).any():
            raise self._broken("its index reaches beyond its end: it is cut short, or the index is another tar's")
        return offsets, lengths

    def _labels(self, index: bytes, known: list[int] | None) -> NDArray[np.int64]:
        """From the sidecar, or from the `.cls` files, which lie scattered over the tar."""
        try:
            if known is not None:
                return np.array(known, np.int64)
            if not wds_index.has(index, b"cls"):
                return np.full(len(self.offsets), UNLABELLED, np.int64)
            offsets, lengths = self._component(index, ("cls",), "label (.cls)")
            files = zip(offsets.tolist(), lengths.tolist(), strict=True)
            return np.array([int(self._member(offset, length)[1]) for offset, length in files], np.int64)
        except (OSError, ValueError, TypeError, OverflowError) as error:
            where = "a .cls file" if known is None else "the sidecar"
            raise self._broken(f"{where} does not hold a number: {error}") from error

    def _classes(self) -> tuple[str, ...]:
        count = len(self.sidecar.classes) if self.sidecar else MOST_CLASSES
        wrong = (self.labels >= count) | (self.labels < UNLABELLED)
        if len(self.labels) != len(self.offsets):
            raise self._broken(f"it holds {len(self.offsets)} images and {len(self.labels)} labels")
        if wrong.any():
            index = int(np.argmax(wrong))
            raise self._broken(f"the label of image {index} is {self.labels[index]}, of {count} classes at most")
        return self.sidecar.classes if self.sidecar else tuple(map(str, range(int(self.labels.max()) + 1)))

    def _broken(self, reason: str) -> UserError:
        index = index_path(self.path).name
        return UserError(
            f"{self.path}: not a WebDataset tar with its index ({reason}): convert or copy it again, or remove {index} "
            "if it is of an older tar"
        )

    def encoded(self, index: int) -> bytes:
        """The file's bytes; their checksum, where there is one, is tested the first time. Raises BrokenImage."""
        try:
            if not self._unchecked[index]:
                return self._file.read(self.start(index), int(self.lengths[index]))
            header, data = self._member(self.start(index), int(self.lengths[index]))
        except (OSError, ValueError) as error:
            raise BrokenImage(self.location(index), getattr(error, "strerror", None) or str(error)) from error
        written = _written(header)
        if written is not None and written != b"%08x" % checksum(data, int(self.labels[index])):
            raise BrokenImage(self.location(index), CHANGED)
        self._unchecked[index] = False
        return data

    def _member(self, start: int, length: int) -> tuple[bytes, bytes]:
        """A file's header in the tar, and its bytes. Raises OSError, and ValueError where no such file begins there."""
        if start < BLOCK or start % BLOCK:
            raise ValueError("its place in the index is none that a file can have")
        data = self._file.read(start - BLOCK, BLOCK + length)
        header = data[:BLOCK]
        if header[SIZE].strip(b" \0").zfill(12) != b"%012o" % length:
            raise ValueError("the tar's header before it is damaged, or the index points elsewhere")
        return header, data[BLOCK:]

    @property
    def checksums(self) -> bool:
        """Whether the file has them."""
        return _written(self._header(0)) is not None

    def _header(self, index: int) -> bytes:
        """Of the image's file in the tar."""
        return self._file.read(max(0, self.start(index) - BLOCK), BLOCK)

    def entry(self, index: int) -> Entry:
        """What is known of an image of a tar made here, to copy it into another. Raises BrokenImage."""
        header = self._header(index)
        name = header[:100].rstrip(b"\0").decode("latin-1")
        number, _, extension = name.partition(".")
        kinds = {kept: kind for kind, kept in EXTENSIONS.items()}
        label, length = int(self.labels[index]), int(self.lengths[index])
        try:
            return Entry(int(number), kinds[extension], 0, 0, label, length, int(_written(header) or b"", 16))
        except (KeyError, ValueError) as error:
            raise BrokenImage(self.location(index), f"its tar header, {name!r}, was not written here") from error

    def start(self, index: int) -> int:
        """Where the image's bytes begin in the file."""
        return int(self.offsets[index])

    def decode(self, index: int) -> NDArray[np.uint8]:
        return decode_rgb(self.encoded(index), self.location(index))

    def fetch(self, indices: NDArray[np.int64]) -> Fetched:
        return fetch_encoded([self.encoded(int(i)) for i in indices], [self.location(int(i)) for i in indices])

    def location(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def fingerprint(self) -> str:
        """A digest of the index and classes, and of the tar's date where no sidecar vouches for its content."""
        written = self.sidecar.provenance.fingerprint if self.sidecar else str(self.path.stat().st_mtime_ns)
        parts = "\0".join((self._index_sha256, *self.classes, written))
        return hashlib.sha256(parts.encode(errors="surrogateescape")).hexdigest()

    def index_sha256(self) -> str:
        """To hold against the sidecar's `index_sha256`."""
        return self._index_sha256

    def __reduce__(self) -> tuple[type[WebDatasetSource], tuple[Path]]:
        """A process that is not forked opens the file anew; pickling the mapping would copy it."""
        return WebDatasetSource, (self.path,)

    def close(self) -> None:
        self._file.close()


def _written(header: bytes) -> bytes | None:
    """The checksum in an image's header, in hexadecimal; None in a tar made elsewhere."""
    return header[GROUP] if header[OWNER] == CHECKSUM_OWNER else None


def _read(index: Path) -> bytes:
    try:
        return index.read_bytes()
    except OSError as error:
        raise UserError(f"{index}: cannot be read ({error.strerror}): remove it, and it is made anew") from error


def make_index(tar: Path) -> bytes:
    """The index of a tar, as `wds2idx` makes it: regular files, grouped by the name up to the first dot.

    Raises:
        UserError: it is no tar, or not a whole one.
    """
    samples: dict[str, list[str]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                stem, _, extension = file.partition(".")
                if member.isreg() and stem:
                    words = extension, str(member.offset_data), str(member.size), member.name
                    component = " ".join("_".join(word.split()) for word in words)  # a space would end a word
                    samples.setdefault(f"{folder}/{stem}", []).append(component)
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            _check_end(tar, archive.offset)
    except tarfile.TarError as error:
        raise UserError(f"{tar}: not a whole, uncompressed tar ({error}): unpack or copy it again") from error
    lines = "".join(" ".join(components) + "\n" for components in samples.values())
    return f"{wds_index.VERSION} {len(samples)}\n{lines}".encode(errors="surrogateescape")


def _check_end(tar: Path, end: int) -> None:
    """Hold that two blocks of zeros follow the last file, which ends at byte `end`.

    tarfile takes any end between two files, and any damaged header, for the archive's. Raises UserError.
    """
    with open(tar, "rb") as file:
        file.seek(end)
        found = file.read(2 * BLOCK)
    if found == bytes(2 * BLOCK):
        return
    reason = f"{tar}: cut short or damaged, for no end of the archive is marked at byte {end}: copy it again"
    if not any(found):
        reason += f"; if it is known to be whole, `truncate -s +{2 * BLOCK} {tar}` marks its end"
    raise UserError(reason)
