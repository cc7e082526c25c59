"""What a row is measured by: pairs against the clock, and the CPU time and memory of its processes."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import psutil
import torch


class Batches(Protocol):
    """What a row iterates: one epoch of batches for each `for` loop; a batch's length is its images."""

    def __iter__(self) -> Iterator[Sized]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Pairs that were handed out, the seconds that they took, and the CPU seconds of the process and its children."""

    pairs: int
    seconds: float
    cpu: float


class Stopwatch:
    """Times a loader from batch to batch, within epochs.

    What lies ready when the clock starts was made while other rows were measured, and an epoch of a real set is
    longer than these: so `prefetched` batches are passed over first, at the start and after each epoch's end.

    Args:
        lanes: batches come in bursts of so many (one from each DataLoader worker); only whole bursts are counted.
    """

    def __init__(self, loader: Batches, *, prefetched: int, lanes: int) -> None:
        self.loader, self.prefetched, self.lanes = loader, prefetched, lanes
        self.batches = iter(loader)

    def skip(self, batches: int) -> None:
        while batches > 0:
            if next(self.batches, None) is None:
                self.batches = iter(self.loader)
            else:
                batches -= 1

    def close(self) -> None:
        self.batches = iter(())  # an unfinished epoch may hold threads and processes
        self.loader.close()

    def measure(self, seconds: float) -> Measured:
        """Hand out batches for at least so long."""
        pairs, spent, cpu = 0, 0.0, 0.0
        while spent < seconds:
            more = self._stretch(seconds - spent)
            pairs, spent, cpu = pairs + more.pairs, spent + more.seconds, cpu + more.cpu
        return Measured(pairs=pairs, seconds=spent, cpu=cpu)

    def _stretch(self, seconds: float) -> Measured:
        self.skip(self.prefetched)
        pairs, before, start = 0, cpu_seconds(psutil.Process()), _now()
        for count, batch in enumerate(self.batches, 1):
            pairs += len(batch)
            if count % self.lanes == 0 and perf_counter() - start >= seconds:
                break
        else:
            self.batches = iter(self.loader)
        spent = _now() - start
        return Measured(pairs=pairs, seconds=spent, cpu=cpu_seconds(psutil.Process()) - before)


def _now() -> float:
    if torch.cuda.is_available():  # a batch counts once it has arrived
        torch.cuda.synchronize()
    return perf_counter()


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time that a process and its children have used; counted in steps of 10 ms."""
    total = 0.0
    for each in _family(process):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def memory_mb(process: psutil.Process) -> float | None:
    """MB that a process and its children hold beside pages of files; what they share counts once (PSS).

    Pages of files are left out because a row that maps its shard would be charged for the page cache, which a row
    that reads the same bytes is not. None where the kernel does not tell.
    """
    try:
        return sum(map(_private_kb, _family(process))) / 1e3
    except (OSError, KeyError):
        return None


def _private_kb(process: psutil.Process) -> int:
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    kept = dict(line.split(":", 1) for line in lines if line.startswith("Pss"))
    return sum(int(kept[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
