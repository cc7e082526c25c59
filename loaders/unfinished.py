"""A shard in the making. A kill leaves it so that the same command goes on from there.

    .NAME.beton.partial    the shard so far, each image where it will stay; renamed when whole
    .NAME.beton.journal    a JSON line of what is being converted, then one for each image done

A file that only grows and a journal, rather than finished parts to be joined at the end: nothing is written twice,
no room is needed for a second copy, only the images in flight are lost, and a run that was interrupted gives the same
bytes as one that was not. An entry of the journal is believed only while the bytes at its place have its checksum, so
it does not matter what a crash left of the two files.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from penstock.errors import NotWritten, UserError
from penstock.loaders.in_order import in_order
from penstock.loaders.shard import Entry, Place, ShardWriter, checksum
from penstock.loaders.sidecar import partial_path

CHECKED_AT_ONCE = 64  # images a task


@dataclass(frozen=True)
class Skipped:
    """A broken image left out: its position in the source, and what `BrokenImage` says of it."""

    number: int
    location: str
    reason: str


Outcome = Entry | Skipped  # of one image


@dataclass(frozen=True)
class _Line:
    """A line of the journal: an image, where its bytes should lie (None for a skipped one), where the line ends."""

    outcome: Outcome
    place: Place | None
    end: int


@contextmanager
def unfinished(shard: Path, *, overwrite: bool = False) -> Iterator[Unfinished]:
    """A shard to `begin`, or to go on with; what is done is left for the next try unless it is published.

    Raises:
        UserError: it is there (and `overwrite` is not set), another process is at it, or it cannot be written.
    """
    try:
        shard.parent.mkdir(parents=True, exist_ok=True)
        work = Unfinished(shard)
        try:
            if shard.exists() and not overwrite:  # asked under the lock: another process may have written it just now
                raise UserError(f"{shard} exists already: --overwrite replaces it, another name keeps both")
            yield work
        finally:
            work.close()
    except OSError as error:  # the source's own are BrokenImage by now
        raise NotWritten(shard, error, "name another place, or put that right and run it again") from error


class Unfinished:
    """The two files of a shard in the making, locked.

    Attributes:
        data: the shard so far, opened for reading and writing.
        done: images stored in it.
        other: whether what was found there was of another identity, and so was dropped.
    """

    def __init__(self, shard: Path) -> None:
        self.shard, self.done, self.other = shard, 0, False
        self._data_path, self._journal_path = (shard.with_name(f".{shard.name}.{x}") for x in ("partial", "journal"))
        self._journal = _locked(self._journal_path, shard)
        self.data: BinaryIO = open(os.open(self._data_path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # noqa: SIM115
        self._keep = self._journal_path.stat().st_size > 0  # until it is known to be of no use

    def begin(self, identity: dict[str, Any]) -> None:
        """Keep what an earlier run left if it was of this identity, else start over."""
        first, wanted = self._journal.readline(), json.dumps(identity).encode() + b"\n"
        self.other = bool(first) and first != wanted
        self._keep = first == wanted
        if first != wanted:
            self._journal.truncate(0)
            self._journal.seek(0)
            self._journal.write(wanted)

    def resume(self, writer: ShardWriter, numbers: range, workers: int) -> Iterator[Outcome]:
        """Place the images that an earlier run left whole, the first of `numbers`, and cut off what follows them."""
        end = self._journal.tell()
        plan = type(writer)(self.data, writer.capacity)  # runs ahead of the check
        for lines in in_order(self._whole, _batches(self._lines(plan, numbers), CHECKED_AT_ONCE), workers):
            for line in lines:
                if isinstance(line.outcome, Entry):
                    writer.place(line.outcome)
                    self.done += 1
                end = line.end
                yield line.outcome
            if len(lines) < CHECKED_AT_ONCE:
                break
        self._journal.truncate(end)
        self._journal.seek(end)
        self.data.truncate(writer.position)
        self._keep = self.done > 0

    def _lines(self, plan: ShardWriter, numbers: range) -> Iterator[_Line]:
        """What the journal says, up to a line that is torn or not the next image's."""
        with open(self._journal_path, "rb") as journal:
            end = len(journal.readline())
            for text, number in zip(journal, numbers, strict=False):
                end += len(text)
                try:
                    read = json.loads(text)
                    outcome = Entry(**read) if "kind" in read else Skipped(**read)
                    place = plan.place(outcome) if isinstance(outcome, Entry) else None
                except (ValueError, TypeError, KeyError, OverflowError):
                    return
                if outcome.number != number or not text.endswith(b"\n"):
                    return
                yield _Line(outcome, place, end)

    def _whole(self, lines: list[_Line]) -> list[_Line]:
        """The lines up to the first whose image is not what lies at its place."""
        for count, line in enumerate(lines):
            if isinstance(line.outcome, Entry) and not self._lies_there(line.outcome, line.place):
                return lines[:count]
        return lines

    def _lies_there(self, entry: Entry, place: Place | None) -> bool:
        assert place is not None
        start, before, after = place
        data = os.pread(self.data.fileno(), len(before) + entry.length + len(after), start)
        image = data[len(before) : len(before) + entry.length]
        return data == before + image + after and checksum(image, entry.label) == entry.checksum

    def note(self, outcome: Outcome) -> None:
        """Enter an image in the journal."""
        if isinstance(outcome, Entry):
            self.done += 1
            self._keep = True
        self._journal.write(json.dumps(vars(outcome)).encode() + b"\n")

    def publish(self, beside: dict[Path, bytes]) -> None:
        """The shard, then the files beside it, appear under their names, whole and on the disk.

        What lies beside an old shard goes first, so that neither shard is ever seen with the other's files. A kill in
        between leaves the new ones under their partial names, by which `read_sidecar` knows what happened.
        """
        partial = {path: partial_path(path) for path in beside}
        try:
            for path, temporary in partial.items():
                _write(temporary, beside[path])
            self.data.flush()
            os.fsync(self.data.fileno())
        except BaseException:
            for temporary in partial.values():
                temporary.unlink(missing_ok=True)
            raise
        for path in partial:
            path.unlink(missing_ok=True)
        _sync(self.shard.parent)
        self._data_path.replace(self.shard)
        self._keep = False
        _sync(self.shard.parent)
        for path, temporary in partial.items():
            temporary.replace(path)
        _sync(self.shard.parent)

    def close(self) -> None:
        """Let go of both files, and remove them where there is nothing to go on with."""
        with self._journal:  # the lock, so it is closed last
            try:
                self.data.close()
            finally:
                if not self._keep:
                    self._data_path.unlink(missing_ok=True)
                    self._journal_path.unlink(missing_ok=True)


def _locked(journal: Path, shard: Path) -> FileIO:
    """Open a journal, unbuffered: of an image noted nothing is lost. Raises UserError while another process has it."""
    file = open(os.open(journal, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(file.fileno()).st_nlink:
            raise BlockingIOError("who had it finished, and removed it, a moment ago")
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{shard}: another process is writing it: wait for that one, or name another place") from error
    except OSError:
        pass  # a file system without locks
    return file


def _write(path: Path, content: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, so that a crash of the machine keeps their order too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that cannot do this with a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _batches(items: Iterator[_Line], size: int) -> Iterator[list[_Line]]:
    while batch := list(islice(items, size)):
        yield batch
