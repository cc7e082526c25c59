"""Convert any source into one shard: `.beton`, or a WebDataset tar with DALI's index.

    python loaders/convert.py path/to/images train.beton --max-side 400
    python loaders/convert.py cifar10 cifar.tar
    python loaders/convert.py path/to/images train.beton --part 3/8     # on each of eight machines, then:
    python loaders/convert.py --join train.beton
    python loaders/convert.py --inspect train.beton                     # what it holds, how it was made
    python loaders/convert.py --verify train.beton                      # reads it whole, names what is broken

Threads read, decode and encode; one writer appends in order, so the same input and options give the same bytes
whatever the number of workers, interruptions or parts. The shard appears under its name when it is whole. Until then
it grows beside it as .train.beton.partial; killed for whatever reason, the same command goes on from there.

`--encoding keep` passes a JPEG's bytes through untouched where every decoder reads them alike and no resize is
due, at the speed of the disk. Other JPEGs (EXIF-rotated, CMYK, with bytes after their end) are encoded anew at
`--quality`; what came as anything else, arrays included, is kept losslessly: RAW in a `.beton`, PNG in a tar. But a
`.beton` has pages of 8 MiB, and what is larger as pixels (2.8 megapixels) becomes JPEG there. Images shrink by
Pillow's bicubic filter, which takes in the whole area that a pixel comes from (no aliasing).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

import tyro
from rich.console import Console

from penstock import __version__
from penstock.counts import counted
from penstock.errors import BrokenImage, UserError, run_command
from penstock.loaders.describe import describe
from penstock.loaders.encode import Encoding, Stored, encode_all
from penstock.loaders.formats import WRITERS, Shard, beside, open_shard, resolve_format, tables_changed
from penstock.loaders.parts import Part, join
from penstock.loaders.progress import Bar, bar
from penstock.loaders.report import Report, Tally
from penstock.loaders.shard import Entry, ShardWriter
from penstock.loaders.sidecar import Provenance
from penstock.loaders.skipped import ON_ERROR
from penstock.loaders.sources.base import Source
from penstock.loaders.threads import available_cpus
from penstock.loaders.unfinished import Outcome, Skipped, Unfinished, unfinished
from penstock.loaders.verify import verify
from penstock.options import read_options


def convert(
    source: Source,
    destination: str | Path,
    *,
    format: str | None = None,
    encoding: str = "keep",
    quality: int = 90,
    max_side: int | None = None,
    short_side: int | None = None,
    check: str = "quick",
    part: str | None = None,
    workers: int | None = None,
    on_error: str = "stop",
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Write the source's images into one shard at `destination`, with its sidecar (and index).

    What an interrupted call left is gone on with, where source and options are the same.

    Args:
        format: `beton` or `webdataset`; None takes it from the destination's suffix.
        encoding, quality, max_side, short_side, check: as in `Encoding`.
        part: `3/8` writes the third of eight parts under a name of its own; see `loaders/parts.py`.
        workers: threads, at least one; None takes every CPU this process may use.
        on_error: `stop` at the first broken image, or `skip` it and list it in the sidecar.
        overwrite: replace a shard of that name.
        progress: show a bar on standard error.

    Raises:
        UserError: a wrong option, the destination exists, a broken image (and `on_error="stop"`), no whole image.
            Nothing is then left under the final name.
    """
    how = Encoding(encoding=encoding, quality=quality, max_side=max_side, short_side=short_side, check=check)
    how.validate()
    threads = _threads(workers)
    if on_error not in ON_ERROR:
        raise UserError(f"--on-error {on_error!r} is not known: choose one of {', '.join(ON_ERROR)}")
    shard, chosen = resolve_format(Path(destination), format), Part.parse(part) if part else None
    numbers = chosen.numbers(len(source)) if chosen else range(len(source))
    shard = chosen.path(shard) if chosen else shard
    with unfinished(shard, overwrite=overwrite) as work, bar(shard.name, len(numbers), disable=not progress) as shown:
        made = _made(source, how, chosen)
        work.begin(made | {"classes": list(source.classes)})
        writer = WRITERS[shard.suffix](work.data, len(numbers))
        conversion = _Conversion(source, how, numbers, threads, work, writer, shown)
        conversion.run(on_error)
        record = writer.finish()
        provenance = Provenance(**made, **conversion.tally.fields())
        work.publish(beside(shard, writer, record, source.classes, provenance))
    return Report(
        path=shard,
        samples=writer.samples,
        bytes=int(record["bytes"]),
        kept=conversion.kept,
        seconds=shown.seconds,
        **conversion.tally.fields(),
    )


def _threads(workers: int | None) -> int:
    """How many: as given, or one for each CPU. Raises UserError."""
    if workers is None:
        return available_cpus()
    if workers < 1:
        raise UserError(f"--workers {workers}: at least one thread must do the work")
    return workers


def _made(source: Source, how: Encoding, part: Part | None) -> dict[str, Any]:
    """What is converted, and how: the fields of `Provenance` that are known before the first image."""
    return {
        "source": source.name,
        "fingerprint": source.fingerprint(),
        "source_samples": len(source),
        "options": asdict(how),
        "version": __version__,
        "part": str(part) if part else None,
    }


class _Refused(UserError):
    """A broken image, with `on_error="stop"`. The remedy is a flag of all commands that convert."""


@dataclass
class _Conversion:
    """Brings images from the source to the writer, and enters each in the journal."""

    source: Source
    how: Encoding
    numbers: range  # the images of the source that are wanted
    workers: int
    work: Unfinished
    writer: ShardWriter
    shown: Bar
    tally: Tally = field(default_factory=Tally)
    kept: int = 0  # images that an earlier run had stored

    def run(self, on_error: str) -> None:
        """Raises UserError: a broken image (and `on_error="stop"`), or none was whole."""
        left = self.numbers[self._resume() :]
        try:
            images = encode_all(self.source, self.how, self.writer.page, self.workers, left)
            for image, number in zip(images, left, strict=True):
                self._take(image, number, on_error)
        except _Refused:  # the same command would stop there again
            raise
        except BaseException:
            if self.writer.samples:
                done = counted(self.writer.samples, "image")
                self.shown.say(f"kept what is done ({done}): the same command goes on from there")
            raise
        if not self.writer.samples:
            what = f"none of its images ({len(self.numbers)}) can be decoded, so nothing was written"
            advice = "; use fewer parts" if len(self.numbers) < len(self.source) else ""
            raise UserError(f"{self.source.name}: {what}{advice}")

    def _resume(self) -> int:
        """Take what an earlier run did; returns how many images that is, the skipped ones included."""
        if self.work.other:
            self.shown.say("what an interrupted run left is of another source or other options: starting over")
        done = 0
        for outcome in self.work.resume(self.writer, self.numbers, self.workers):
            self.tally.count(outcome)
            self.shown.advance(outcome.length if isinstance(outcome, Entry) else 0)
            done += 1
        self.kept = self.writer.samples
        if done:
            self.shown.say(f"going on from {counted(self.kept, 'image')} that an interrupted run left whole")
            self.shown.restart()
        return done

    def _take(self, image: Stored | BrokenImage, number: int, on_error: str) -> None:
        if isinstance(image, Stored):
            self.writer.add(image.entry, image.data)
            outcome: Outcome = image.entry
        elif on_error == "skip":
            outcome = Skipped(number, image.location, image.reason)
        else:
            raise _Refused(f"{image}, or leave such images out with --on-error skip")
        self.work.note(outcome)
        self.tally.count(outcome)
        self.shown.advance(outcome.length if isinstance(outcome, Entry) else 0)


@dataclass(frozen=True, kw_only=True)
class Config(Encoding):
    """What to convert, and how. Or one of --join, --inspect and --verify."""

    source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="SRC")] = None
    """A folder of images, a data set's name (shapes, cifar10, …), NAME:FOLDER, or a shard."""
    destination: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DST")] = None
    """NAME.beton, or NAME.tar for WebDataset."""
    join: Path | None = None
    """Write this shard from its parts beside it (NAME.part-1-of-8.beton …), instead; they stay."""
    inspect: Path | None = None
    """Say what this shard holds and how it was made, instead."""
    verify: str | None = None
    """Read this shard (or folder) whole, instead: test every image's checksum and decode it.
    Names the broken ones; exit code 2 if there are any."""
    format: str | None = None
    """beton or webdataset, where the destination's suffix does not say it."""
    split: str = "train"
    """Split of the source: train, val, or unlabeled."""
    class_list: Path | None = None
    """Take only the classes named in this file, one a line."""
    limit: int | None = None
    """Take only so many images, the same class-balanced choice each time."""
    part: str | None = None
    """I/N: convert only the I-th (from 1) of N parts, into NAME.part-I-of-N.beton; for N machines or tasks at once.
    All need the same options, and the same files with the same dates."""
    workers: int | None = None
    """Threads; as many as there are CPUs unless given."""
    on_error: str = "stop"
    """What a broken image does: stop, or skip (and list it)."""
    overwrite: bool = False
    """Replace the destination."""


ALONE = {"join": {"overwrite"}, "inspect": set(), "verify": {"workers"}}  # and which options each takes


def main(arguments: list[str] | None = None) -> int:
    config = read_options(Config, __doc__, arguments)
    _check_alone(config)
    if config.inspect:
        Console(markup=False, emoji=False).print(describe(open_shard(config.inspect, keep_index=False)))
        return 0
    if config.verify:
        return _verify(config.verify, _threads(config.workers))
    report = join(config.join, overwrite=config.overwrite) if config.join else _convert(config)
    for broken in report.skipped:
        print(f"skipped {broken['location']}: {broken['reason']}")
    print(report)
    return 0


def _check_alone(config: Config) -> None:
    """Raises UserError where options are given that do not go together."""
    given = {option.name for option in fields(config) if getattr(config, option.name) != option.default}
    mode = next((name for name in ALONE if name in given), None)
    if mode is None:
        return
    wrong = sorted(given - {mode} - ALONE[mode])
    if wrong:
        names = {"source": "SRC", "destination": "DST"}
        flags = ", ".join(names.get(name, "--" + name.replace("_", "-")) for name in wrong)
        takes = "".join(f" and --{name}" for name in ALONE[mode])
        raise UserError(f"--{mode} takes a file{takes} only: leave {flags} out, or make it a command of its own")


def _convert(config: Config) -> Report:
    from penstock.loaders.sources import open_source  # it opens shards too, so it imports their modules

    if not config.source or not config.destination:
        raise UserError(
            "a source and a destination are needed: python loaders/convert.py SRC DST (or --join, --inspect or "
            "--verify with a FILE)"
        )
    source = open_source(config.source, config.split, class_list=config.class_list, limit=config.limit)
    names = {option.name for option in fields(Encoding)} | {"format", "part", "workers", "on_error", "overwrite"}
    return convert(source, config.destination, **{name: getattr(config, name) for name in names})


def _verify(spec: str, workers: int) -> int:
    """Say how many images are whole, leaving nothing behind; returns the exit code."""
    from penstock.loaders.sources import open_source

    path = Path(spec).expanduser()
    is_shard = path.is_file() and path.suffix in WRITERS
    source = open_shard(path, keep_index=False) if is_shard else open_source(spec)
    broken = verify(source, workers=workers)
    changed = isinstance(source, Shard) and tables_changed(source)
    print(f"{spec}: {len(source) - len(broken)} of {len(source)} images are whole")
    if changed:
        print(f"{spec}: its tables CHANGED since they were written: convert or copy it again")
    return 2 if broken or changed else 0


if __name__ == "__main__":
    run_command(main)
