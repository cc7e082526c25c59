"""WebDataset: a tar of `000000012.jpg` (or `.png`) and `000000012.cls`, with the index that DALI's `wds2idx` makes.

The index `NAME.idx` says where each file's bytes lie in `NAME.tar`: a line `v1.2 N`, then for each sample its
components, `extension offset size name`. With it any sample can be read at once, by DALI's
`fn.readers.webdataset` and by `WebDatasetSource`; the webdataset package reads the tar from end to end without it.

Format: https://github.com/webdataset/webdataset, https://docs.nvidia.com/deeplearning/dali (wds2idx).
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UserError
from penstock.loaders.beton import MOST_CLASSES
from penstock.loaders.decode import decode_rgb
from penstock.loaders.sidecar import read_sidecar
from penstock.loaders.sources.base import UNLABELLED, Source

LOG = logging.getLogger(__name__)
INDEX_VERSION = "v1.2"
BLOCK = tarfile.BLOCKSIZE
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff", "img", "image")


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".idx")


class WebDatasetWriter:
    """Writes a tar and its index in one pass. Same images, same bytes: dates and owners are left at zero."""

    def __init__(self, tar: BinaryIO, index: BinaryIO) -> None:
        self.tar, self.index = tar, index
        self.lines: list[str] = []
        self.position = 0

    def add(self, data: bytes, *, extension: str, label: int) -> None:
        """Append one image, as an encoded file's bytes."""
        sample = len(self.lines)
        image = self._file(f"{sample:09d}.{extension}", data)
        cls = self._file(f"{sample:09d}.cls", str(label).encode())
        self.lines.append(f"{extension} {image} cls {cls}\n")

    def _file(self, name: str, data: bytes) -> str:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self.tar.write(header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK))
        start = self.position + BLOCK
        self.position = start + len(data) + -len(data) % BLOCK
        return f"{start} {len(data)} {name}"

    def finish(self) -> dict[str, int | str]:
        """Write the tar's end and the index; returns the sidecar's record of the shard."""
        self.tar.write(bytes(2 * BLOCK))
        index = f"{INDEX_VERSION} {len(self.lines)}\n{''.join(self.lines)}".encode()
        self.index.write(index)
        digest = hashlib.sha256(index).hexdigest()
        size = self.position + 2 * BLOCK
        return {"samples": len(self.lines), "bytes": size, "header_sha256": digest, "index_sha256": digest}


class WebDatasetSource(Source):
    """The images of a tar, by position, through its index (made first where it is missing).

    Attributes (besides a source's):
        path: the tar.
        offsets, lengths: int64 [N], where each image's bytes lie.
        sidecar: class names and provenance, or None (a tar made elsewhere).

    Raises:
        UserError: no such tar, or the index does not fit it.
    """

    storage = "webdataset"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _map(self.path)
        index = self._index()
        self._index_sha256 = hashlib.sha256(index).hexdigest()
        columns = self._columns(index)
        self.offsets, self.lengths = self._component(columns, IMAGE_EXTENSIONS, "image")
        self.sidecar = read_sidecar(self.path, length=len(self._file), header_sha256=hashlib.sha256(index).hexdigest())
        self.labels = self._labels(columns)
        self.name = self.sidecar.provenance.source if self.sidecar else self.path.stem
        self.classes = self._classes()

    def _index(self) -> bytes:
        path = index_path(self.path)
        if not path.exists():
            LOG.warning("%s: no index beside it; reading it through once to make %s", self.path, path.name)
            write_index(self.path, path)
        return path.read_bytes()

    def _columns(self, index: bytes) -> NDArray[np.bytes_]:
        """The index as [N, components, 4] byte strings: extension, offset, size, name."""
        header, _, body = index.partition(b"\n")
        version, _, count = header.decode("latin-1").partition(" ")
        if version != INDEX_VERSION or not count.isdigit() or not int(count):
            raise self._broken(f"its index starts with {header[:20]!r} instead of `{INDEX_VERSION} <samples>`")
        words = np.array(body.split())
        if not len(words) or len(words) % (4 * int(count)):
            raise self._broken("its index does not list the same components for every sample")
        return words.reshape(int(count), -1, 4)

    def _component(
        self, columns: NDArray[np.bytes_], extensions: tuple[str, ...], what: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets and lengths, int64 [N] each, of the one component that has any of the extensions."""
        found = np.isin(np.char.lower(columns[:, :, 0]), np.array(extensions, np.bytes_))
        single = found.sum(axis=1) == 1
        if not single.all():
            raise self._broken(f"sample {int(np.argmin(single))} has not one {what}")
        try:
            places = columns[found][:, 1:3].astype(np.int64)
        except (ValueError, OverflowError) as error:
            raise self._broken(f"its index does not hold numbers: {error}") from error
        offsets, lengths = places[:, 0].copy(), places[:, 1].copy()
        if (offsets < 0).any() or (lengths < 0).any() or (lengths > len(self._file) - offsets).any():
            raise self._broken("its index reaches beyond its end: it is cut short, or the index is another tar's")
        return offsets, lengths

    def _labels(self, columns: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """From the sidecar, or from the `.cls` files, which lie scattered over the tar."""
        if self.sidecar and self.sidecar.labels is not None:
            return np.array(self.sidecar.labels, np.int64)
        if b"cls" not in columns[0, :, 0]:
            return np.full(len(columns), UNLABELLED, np.int64)
        offsets, lengths = self._component(columns, ("cls",), "label (.cls)")
        try:
            return np.array([int(self._file[o : o + n]) for o, n in zip(offsets, lengths, strict=True)], np.int64)
        except ValueError as error:
            raise self._broken(f"a .cls file does not hold a number: {error}") from error

    def _classes(self) -> tuple[str, ...]:
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        count = len(self.sidecar.classes) if self.sidecar else MOST_CLASSES
        if highest >= count or lowest < UNLABELLED or len(self.labels) != len(self.offsets):
            raise self._broken(f"its labels reach from {lowest} to {highest}, for {count} classes at most")
        return self.sidecar.classes if self.sidecar else tuple(map(str, range(highest + 1)))

    def _broken(self, reason: str) -> UserError:
        return UserError(f"{self.path}: not a WebDataset tar with its index ({reason}): convert or copy it again")

    def encoded(self, index: int) -> bytes:
        start = int(self.offsets[index])
        return self._file[start : start + int(self.lengths[index])]

    def decode(self, index: int) -> NDArray[np.uint8]:
        return decode_rgb(self.encoded(index), self.location(index))

    def location(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def fingerprint(self) -> str:
        """A digest of the index and classes, and of the tar's date where no sidecar vouches for its content."""
        written = self.sidecar.provenance.fingerprint if self.sidecar else str(self.path.stat().st_mtime_ns)
        return hashlib.sha256("\0".join((self._index_sha256, *self.classes, written)).encode()).hexdigest()

    def index_sha256(self) -> str:
        """To hold against the sidecar's `index_sha256`."""
        return self._index_sha256

    def __reduce__(self) -> tuple[type[WebDatasetSource], tuple[Path]]:
        """A process that is not forked opens the file anew; pickling the mapping would copy it."""
        return WebDatasetSource, (self.path,)

    def close(self) -> None:
        self._file.close()


def write_index(tar: Path, index: Path) -> None:
    """Make the index of a tar, as `wds2idx` does: regular files, grouped by the name up to the first dot."""
    samples: dict[str, list[str]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                stem, _, extension = file.partition(".")
                if member.isreg() and stem:
                    component = f"{extension} {member.offset_data} {member.size} {member.name}"
                    samples.setdefault(f"{folder}/{stem}", []).append(component)
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
    except tarfile.TarError as error:
        raise UserError(f"{tar}: not an uncompressed tar ({error}): unpack or copy it again") from error
    lines = "".join(" ".join(components) + "\n" for components in samples.values())
    temporary = index.with_name(f".{index.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(f"{INDEX_VERSION} {len(samples)}\n{lines}")
        temporary.replace(index)
    except OSError as error:
        raise UserError(f"{index}: cannot be written ({error.strerror}): make it with `wds2idx {tar}`") from error


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}): is the path right?") from error
    except ValueError as error:  # mmap's word for an empty file
        raise UserError(f"{path}: empty, so not a tar: convert or copy it again") from error
