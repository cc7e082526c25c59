"""One set converted by n machines: part i of n each, and their join.

    python loaders/convert.py SRC train.beton --part 3/8        # writes train.part-3-of-8.beton
    python loaders/convert.py --join train.beton                # from train.part-1-of-8.beton … train.part-8-of-8.beton

In a Slurm array that counts from 1: --part $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT.

A part holds a run of consecutive images and is a shard like any other. The join copies bytes inside the kernel, in
runs of up to a page or more, and writes new tables: nothing is decoded, and the file is, to the last byte, the one
that a single conversion would have written (its sidecar too, but for the date). Tables are verified on the way; the
images' own checksums come along, for --verify and for reading.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from penstock.errors import UserError
from penstock.loaders.formats import WRITERS, Shard, beside, open_shard, resolve_format, tables_changed
from penstock.loaders.progress import bar
from penstock.loaders.report import Report, Tally
from penstock.loaders.shard import ShardWriter
from penstock.loaders.sidecar import Provenance, sidecar_path
from penstock.loaders.unfinished import unfinished

SHARED = ("source", "source_samples", "fingerprint", "options", "version")  # what parts must have in common
COPIED_AT_ONCE = 8 << 20  # bytes, where the kernel cannot copy by itself


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`."""

    number: int
    of: int

    @staticmethod
    def parse(text: str) -> Part:
        """From `3/8`. Raises UserError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        part = Part(*map(int, found.groups())) if found else Part(0, 0)
        if not 1 <= part.number <= part.of:
            raise UserError(f"--part {text!r} is not a part: the third of eight is --part 3/8, the last one --part 8/8")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def numbers(self, samples: int) -> range:
        """The part's images of a source of so many. Raises UserError where there are more parts than images."""
        if self.of > samples:
            raise UserError(f"--part {self}: the source has {samples} images, too few for {self.of} parts")
        return range(samples * (self.number - 1) // self.of, samples * self.number // self.of)

    def path(self, shard: Path) -> Path:
        """The part's name, from the whole shard's."""
        return shard.with_name(f"{shard.stem}.part-{self.number}-of-{self.of}{shard.suffix}")


def join(destination: str | Path, *, overwrite: bool = False, progress: bool = True) -> Report:
    """Join the parts of a shard that lie in its folder; they stay there.

    Raises:
        UserError: parts are missing, damaged or do not belong together, or the shard exists already.
    """
    shard = resolve_format(Path(destination), None)
    parts = [open_shard(path) for path in find_parts(shard)]
    made = together(parts)
    tally = Tally.total(made)
    images = sum(map(len, parts))
    with unfinished(shard, overwrite=overwrite) as work, bar(shard.name, images, disable=not progress) as shown:
        work.begin({"join": [part.index_sha256() for part in parts]})
        work.data.truncate(0)
        writer = WRITERS[shard.suffix](work.data, made[0].source_samples)
        for part in parts:
            with open(part.path, "rb") as file:
                for length, start, to in runs(part, writer):
                    copy(file, work.data, length, start, to)
                shown.advance(part.path.stat().st_size, images=len(part))
        record = writer.finish()
        whole = Provenance(**{name: getattr(made[0], name) for name in SHARED}, **tally.fields())
        work.publish(beside(shard, writer, record, parts[0].classes, whole))
    size = int(record["bytes"])
    return Report(path=shard, samples=writer.samples, bytes=size, kept=0, seconds=shown.seconds, **tally.fields())


def find_parts(shard: Path) -> list[Path]:
    """The files of a shard's parts, in order. Raises UserError where some are missing."""
    pattern = re.compile(re.escape(shard.stem) + r"\.part-(\d+)-of-(\d+)" + re.escape(shard.suffix))
    found = [match for path in shard.parent.glob("*") if (match := pattern.fullmatch(path.name))]
    counts = sorted({int(match[2]) for match in found})
    if len(counts) != 1:
        why = f"there are parts of {' and '.join(map(str, counts))}: remove those of all but one" if counts else "none"
        raise UserError(f"{shard}: its parts are called {Part(1, 8).path(shard).name} and so on, and here are {why}")
    parts = [Part(number, counts[0]) for number in range(1, counts[0] + 1)]
    missing = [str(part) for part in parts if not part.path(shard).exists()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(f"{shard}: --part {', '.join(missing[:5])}{more} is not there yet: convert the source to that")
    return [part.path(shard) for part in parts]


def together(parts: list[Shard]) -> list[Provenance]:
    """How each part was made. Raises UserError unless all are whole and of one source and one set of options."""
    made = []
    for number, part in enumerate(parts, 1):
        if part.sidecar is None:
            raise UserError(f"{part.path}: {sidecar_path(part.path).name} is missing beside it: copy both")
        if tables_changed(part):
            raise UserError(f"{part.path}: its tables changed since they were written: convert or copy it again")
        if part.sidecar.provenance.part != str(Part(number, len(parts))):
            raise UserError(f"{part.path}: was written as part {part.sidecar.provenance.part}: give it back its name")
        made.append(part.sidecar.provenance)
    for what in SHARED:
        values = [getattr(provenance, what) for provenance in made]
        for part, value in zip(parts, values, strict=True):
            if value != values[0]:
                _differ(parts[0], part, what, values[0], value)
    for part in parts:
        if part.classes != parts[0].classes:
            _differ(parts[0], part, "class names", len(parts[0].classes), len(part.classes))
    return made


def _differ(first: Shard, other: Shard, what: str, expected: object, found: object) -> None:
    advice = "copy the files with their dates (cp -p, rsync -t)" if what == "fingerprint" else "make both alike"
    raise UserError(
        f"{other.path}: does not belong to {first.path.name}: its {what} is {found}, not {expected}; {advice} and "
        "convert that part again"
    )


def runs(part: Shard, writer: ShardWriter) -> Iterator[tuple[int, int, int]]:
    """Place all images of a part; yields (length, from, to) of each stretch of bytes that stays in one piece."""
    length = start = to = 0
    for index in range(len(part)):
        entry = part.entry(index)
        place = writer.place(entry)
        here, size = part.start(index) - len(place.before), len(place.before) + entry.length + len(place.after)
        if (start + length, to + length) != (here, place.start):
            if length:
                yield length, start, to
            length, start, to = 0, here, place.start
        length += size
    yield length, start, to


def copy(source: BinaryIO, target: BinaryIO, length: int, start: int, to: int) -> None:
    """Copy bytes between files, in the kernel where it can: without a copy at all on file systems that share blocks."""
    end = start + length
    while start < end:
        try:
            done = os.copy_file_range(source.fileno(), target.fileno(), end - start, start, to)
        except OSError:  # different file systems, or one that cannot: what is really wrong shows again below
            done = 0
        if not done:
            done = os.pwrite(target.fileno(), os.pread(source.fileno(), min(end - start, COPIED_AT_ONCE), start), to)
        if not done:
            raise OSError(f"{source.name} ends before byte {end}")
        start, to = start + done, to + done
