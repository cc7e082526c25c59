"""Convert any source into one shard: `.beton`, or a WebDataset tar with DALI's index. Or say what a shard holds.

    python loaders/convert.py path/to/images train.beton --max-side 400
    python loaders/convert.py cifar10 cifar.tar
    python loaders/convert.py --inspect train.beton

Threads read, decode and encode; one writer appends in order, so the same input and options give the same bytes
whatever the number of workers. The shard is written under a temporary name and renamed when whole.

`--encoding keep` passes a JPEG's bytes through untouched where every decoder reads them alike and no resize is
due. Other JPEGs (EXIF-rotated, CMYK, with bytes after their end) are encoded anew at `--quality`; what came as
anything else, arrays included, is kept losslessly: RAW in a `.beton`, PNG in a tar. Images shrink by Pillow's
bicubic filter, which takes in the whole area that a pixel comes from (no aliasing).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from penstock import __version__
from penstock.errors import BrokenImage, UserError, run_command
from penstock.loaders.beton import JPEG, PAGE_SIZE, RAW, BetonSource, BetonWriter
from penstock.loaders.decode import image_size
from penstock.loaders.encode import Encoding, Stored, encode_all
from penstock.loaders.sidecar import Provenance, Sidecar, sidecar_path, write_sidecar
from penstock.loaders.sources.base import Source
from penstock.loaders.threads import available_cpus
from penstock.loaders.webdataset import WebDatasetSource, WebDatasetWriter, index_path

SUFFIXES = {"beton": ".beton", "webdataset": ".tar"}
ON_ERROR = ("stop", "skip")
Images = Iterator[tuple[Stored, int]]  # each with its label


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did.

    Attributes:
        path: the shard.
        samples, bytes: images in it, and its length.
        untouched: images whose original bytes were passed through.
        reencoded: why the others were not, and how many for each reason.
        skipped: `location` and `reason` of each broken image left out.
        seconds: how long it took.
    """

    path: Path
    samples: int
    bytes: int
    untouched: int
    reencoded: dict[str, int]
    skipped: list[dict[str, str]]
    seconds: float

    def __str__(self) -> str:
        rate = f"{self.seconds:.1f} s, {self.samples / self.seconds:.0f} images/s, {self.bytes / 1e6:.1f} MB"
        skipped = f", {len(self.skipped)} broken ones skipped" if self.skipped else ""
        return f"{self.path}: {self.samples} images in {rate}; {_changes(self.untouched, self.reencoded)}{skipped}"


def _changes(untouched: int, reencoded: dict[str, int]) -> str:
    return ", ".join([f"{untouched} untouched", *(f"{count} encoded anew ({why})" for why, count in reencoded.items())])


@dataclass
class Tally:
    """Counts images on their way to the writer, and decides what a broken one means."""

    on_error: str
    untouched: int = 0
    reencoded: Counter[str] = field(default_factory=Counter)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def watch(self, source: Source, images: Iterator[Stored | BrokenImage], advance: Callable[[int], None]) -> Images:
        """Pass on the whole images with their labels.

        Raises:
            UserError: a broken image (and `on_error="stop"`), or none was whole.
        """
        for image, label in zip(images, source.labels.tolist(), strict=True):
            if isinstance(image, BrokenImage):
                self._broken(image)
                advance(0)
                continue
            self.untouched += image.change is None
            self.reencoded.update([image.change] if image.change else [])
            yield image, label
            advance(len(image.data))
        if len(self.skipped) == len(source):
            raise UserError(f"{source.name}: none of its {len(source)} images can be decoded, so nothing was written")

    def _broken(self, image: BrokenImage) -> None:
        if self.on_error == "stop":
            without = "python loaders/convert.py SRC DST --on-error skip"
            raise UserError(f"{image}, or leave such images out with `{without}`; nothing was written")
        self.skipped.append({"location": image.location, "reason": image.reason})

    def provenance(self, source: Source, how: Encoding) -> Provenance:
        return Provenance(
            source=source.name,
            fingerprint=source.fingerprint(),
            source_samples=len(source),
            options=asdict(how),
            version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            untouched=self.untouched,
            reencoded=dict(sorted(self.reencoded.items())),
            skipped=self.skipped,
        )


def convert(
    source: Source,
    destination: str | Path,
    *,
    format: str | None = None,
    encoding: str = "keep",
    quality: int = 90,
    max_side: int | None = None,
    short_side: int | None = None,
    workers: int | None = None,
    on_error: str = "stop",
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Write the source's images into one shard at `destination`, with its sidecar (and index).

    Args:
        format: `beton` or `webdataset`; None takes it from the destination's suffix.
        encoding, quality, max_side, short_side: as in `Encoding`.
        workers: threads; None takes every CPU this process may use.
        on_error: `stop` at the first broken image, or `skip` it and list it in the sidecar.
        overwrite: replace a shard of that name.
        progress: show a bar on standard error.

    Raises:
        UserError: a wrong option, the destination exists, a broken image (and `on_error="stop"`), no whole image.
            Nothing is then left under the final name.
    """
    how = Encoding(encoding=encoding, quality=quality, max_side=max_side, short_side=short_side)
    how.check()
    if on_error not in ON_ERROR:
        raise UserError(f"--on-error {on_error!r} is not known: choose one of {', '.join(ON_ERROR)}")
    shard, format = resolve_format(Path(destination), format)
    if shard.exists() and not overwrite:
        raise UserError(f"{shard} exists already: --overwrite replaces it, another name keeps both")
    begin, tally = time.perf_counter(), Tally(on_error)
    write, page = (write_beton, PAGE_SIZE) if format == "beton" else (write_webdataset, None)
    with _bar(shard.name, len(source), disable=not progress) as advance:
        images = tally.watch(source, encode_all(source, how, page, workers or available_cpus()), advance)
        record = write(shard, images, source, lambda: tally.provenance(source, how))
    return Report(
        path=shard,
        samples=int(record["samples"]),
        bytes=int(record["bytes"]),
        untouched=tally.untouched,
        reencoded=dict(sorted(tally.reencoded.items())),
        skipped=tally.skipped,
        seconds=time.perf_counter() - begin,
    )


def resolve_format(destination: Path, format: str | None) -> tuple[Path, str]:
    """The shard's path, with its suffix, and its format. Raises UserError where the two disagree."""
    if format is not None and format not in SUFFIXES:
        raise UserError(f"--format {format!r} is not known: choose one of {', '.join(SUFFIXES)}")
    if not destination.suffix and format:
        return destination.with_suffix(SUFFIXES[format]), format
    named = {suffix: name for name, suffix in SUFFIXES.items()}.get(destination.suffix)
    if named is None or (format or named) != named:
        raise UserError(f"{destination}: a shard is called NAME.beton, or NAME.tar for WebDataset: give it such a name")
    return destination, named


def write_beton(
    shard: Path, images: Images, source: Source, provenance: Callable[[], Provenance]
) -> dict[str, int | str]:
    """Write the images as `.beton` with its sidecar; returns the writer's record."""
    with _replacing(sidecar_path(shard), shard) as (sidecar, temporary):
        with open(temporary, "wb") as file:
            writer = BetonWriter(file, len(source))
            for image, label in images:
                mode = JPEG if image.kind == "jpeg" else RAW
                writer.add(image.data, mode=mode, height=image.height, width=image.width, label=label)
            record = writer.finish()
        write_sidecar(sidecar, Sidecar(classes=source.classes, provenance=provenance(), shard=record))
    return record


def write_webdataset(
    shard: Path, images: Images, source: Source, provenance: Callable[[], Provenance]
) -> dict[str, int | str]:
    """Write the images as tar, index and sidecar; returns the writer's record."""
    with _replacing(sidecar_path(shard), index_path(shard), shard) as (sidecar, index, temporary):
        labels = []
        with open(temporary, "wb") as tar, open(index, "wb") as lines:
            writer = WebDatasetWriter(tar, lines)
            for image, label in images:
                writer.add(image.data, extension="jpg" if image.kind == "jpeg" else "png", label=label)
                labels.append(label)
            record = writer.finish()
        beside = Sidecar(classes=source.classes, provenance=provenance(), shard=record, labels=labels)
        write_sidecar(sidecar, beside)
    return record


@contextmanager
def _replacing(*finals: Path) -> Iterator[list[Path]]:
    """Temporary names in the same folder, renamed to the final ones in that order at the end, or removed."""
    temporary = [final.with_name(f".{final.name}.{os.getpid()}.tmp") for final in finals]
    try:
        finals[0].parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for path, final in zip(temporary, finals, strict=True):
            path.replace(final)
    except OSError as error:  # the source's own are BrokenImage by now
        raise UserError(f"{finals[-1]}: cannot be written ({error.strerror}): name another place") from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


@contextmanager
def _bar(name: str, total: int, *, disable: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; yields a function to call with the bytes of each image done."""
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    begin, written = time.perf_counter(), [0, 0]
    with Progress(*columns, console=Console(stderr=True), disable=disable) as progress:
        task = progress.add_task(name, total=total, rate="")

        def advance(size: int) -> None:
            written[0] += 1
            written[1] += size
            seconds = time.perf_counter() - begin
            text = f"{written[0] / seconds:.0f} images/s {written[1] / seconds / 1e6:.1f} MB/s"
            progress.update(task, advance=1, rate=text)

        yield advance


def open_shard(path: Path) -> BetonSource | WebDatasetSource:
    """Open a shard by its suffix. Raises UserError."""
    _, format = resolve_format(path, None)
    return BetonSource(path) if format == "beton" else WebDatasetSource(path)


def describe(shard: BetonSource | WebDatasetSource) -> Table:
    """What a shard holds and how it was made, as a table to print."""
    table = Table(title=str(shard.path), show_header=False)
    for row in [*_contents(shard), *_history(shard)]:
        table.add_row(*row)
    return table


def _contents(shard: BetonSource | WebDatasetSource) -> Iterator[tuple[str, str]]:
    labelled = np.unique(shard.labels[shard.labels >= 0])
    yield "images", f"{len(shard)}, {shard.storage}"
    if isinstance(shard, BetonSource):
        raw = int((shard.images["mode"] == RAW).sum())
        yield "stored as", f"{len(shard) - raw} JPEG, {raw} RAW"
        height, width = shard.images["height"], shard.images["width"]
        yield "format", f"beton version 2, pages of {shard.page_size >> 20} MiB; the ffcv package opens it"
    else:
        measured = np.linspace(0, len(shard) - 1, min(len(shard), 1000)).astype(int)
        height, width = np.array([image_size(shard.encoded(i), shard.location(i)) for i in measured.tolist()]).T
        yield "format", f"tar with {index_path(shard.path).name}; DALI and the webdataset package open it"
    yield "classes", f"{len(shard.classes)}: {_some(shard.classes)}" if len(labelled) else "none: unlabelled"
    yield "file", f"{shard.path.stat().st_size / 1e6:.1f} MB"
    for what, values, unit in (("height", height, "px"), ("width", width, "px"), ("bytes", shard.lengths, "")):
        smallest, median, largest = values.min(), np.median(values), values.max()
        yield what, f"min {smallest}, median {median:.0f}, max {largest} {unit}".rstrip()


def _history(shard: BetonSource | WebDatasetSource) -> Iterator[tuple[str, str]]:
    if shard.sidecar is None:
        yield "made", f"unknown: there is no {sidecar_path(shard.path).name}, so class names are numbers"
        return
    made = shard.sidecar.provenance
    yield "made", f"{made.created} by penstock {made.version}"
    yield "source", f"{made.source}, {made.source_samples} images, fingerprint {made.fingerprint[:16]}"
    yield "options", ", ".join(f"{name} {value}" for name, value in made.options.items() if value is not None)
    yield "images", _changes(made.untouched, made.reencoded)
    yield "skipped", f"{len(made.skipped)} broken" + "".join(f"\n{s['location']}: {s['reason']}" for s in made.skipped)
    same = shard.sidecar.shard["index_sha256"] == shard.index_sha256()
    yield "tables", "as written" if same else "CHANGED since they were written: convert or copy it again"


def _some(names: tuple[str, ...], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


@dataclass(frozen=True, kw_only=True)
class Config(Encoding):
    """What to convert, and how."""

    source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="SRC")] = None
    """A folder of images, a data set's name (shapes, cifar10, …), NAME:FOLDER, or a shard."""
    destination: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DST")] = None
    """NAME.beton, or NAME.tar for WebDataset."""
    inspect: Path | None = None
    """Say what this shard holds and how it was made, instead."""
    format: str | None = None
    """beton or webdataset, where the destination's suffix does not say it."""
    split: str = "train"
    """Split of the source: train, val, or unlabeled."""
    class_list: Path | None = None
    """Take only the classes named in this file, one a line."""
    limit: int | None = None
    """Take only so many images, the same class-balanced choice each time."""
    workers: int | None = None
    """Threads; as many as there are CPUs unless given."""
    on_error: str = "stop"
    """What a broken image does: stop, or skip (and list it)."""
    overwrite: bool = False
    """Replace the destination."""


def main(arguments: list[str] | None = None) -> int:
    from penstock.loaders.sources import open_source  # it opens shards too, so it imports their modules

    config = tyro.cli(Config, args=arguments, description=__doc__)
    if config.inspect:
        Console().print(describe(open_shard(config.inspect)))
        return 0
    if not config.source or not config.destination:
        raise UserError("a source and a destination are needed: python loaders/convert.py SRC DST (or --inspect FILE)")
    report = convert(
        open_source(config.source, config.split, class_list=config.class_list, limit=config.limit),
        config.destination,
        format=config.format,
        encoding=config.encoding,
        quality=config.quality,
        max_side=config.max_side,
        short_side=config.short_side,
        workers=config.workers,
        on_error=config.on_error,
        overwrite=config.overwrite,
    )
    for broken in report.skipped:
        print(f"skipped {broken['location']}: {broken['reason']}")
    print(report)
    return 0


if __name__ == "__main__":
    run_command(main)
