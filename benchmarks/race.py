"""Rows against each other: each in a warm process, one at a time, in rounds that go back and forth."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from penstock.augment import jit
from penstock.benchmarks.peers import PEERS
from penstock.benchmarks.plan import Table
from penstock.benchmarks.rival import Rival, Row
from penstock.benchmarks.storages import forget
from penstock.counts import counted

IMPORT_SECONDS, START_SECONDS, COLD_SECONDS = 3.0, 5.0, 90.0  # what they usually take, for the progress bar
OVERHEAD = 2.5  # a measurement takes so many times its length: batches that are passed over, prefetch that fills again


class Clock:
    """The progress bar: seconds of work done and still expected."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self.task = self.progress.add_task("", total=0.0)

    def expect(self, seconds: float) -> None:
        task = self.progress.tasks[self.task]
        self.progress.update(self.task, total=(task.total or 0.0) + seconds)

    def step(self, text: str, seconds: float) -> None:
        """Say what is about to be done, and count what it is expected to take."""
        self.progress.update(self.task, description=text, advance=seconds)


def expected(table: Table, seconds: float, repeats: int) -> float:
    """Seconds that `run` is expected to take."""
    rows = [row for row in table.rows if not row.error]
    tries = sum(is_tuned(row) for row in rows) * len(worker_counts(table.setting.threads))
    each = IMPORT_SECONDS + START_SECONDS + OVERHEAD * seconds * repeats
    return len(rows) * each + tries * (START_SECONDS + OVERHEAD * seconds / 2)


def run(table: Table, *, seconds: float, repeats: int, clock: Clock) -> None:
    """Measure all rows of a table that can run."""
    with warm_rivals(table, clock) as rivals:
        for rival in rivals:
            if is_tuned(rival.row):
                tune(rival, table.setting.threads, seconds, clock)
        table.waiting = race(rivals, seconds, repeats, clock)


@contextmanager
def warm_rivals(table: Table, clock: Clock) -> Iterator[list[Rival]]:
    """A warm process for each row; all end with the block.

    They import at the same time, as many as there are CPUs, but start their loaders one after the other: that is timed.
    """

    def spawn(row: Row) -> Rival:
        rival = Rival(row, table.task(row))
        stack.callback(rival.close)
        rival.imported()
        clock.step(f"imported {row.loader}", IMPORT_SECONDS)
        return rival

    with ExitStack() as stack:
        with ThreadPoolExecutor(table.setting.threads) as pool:
            rivals = list(pool.map(spawn, [row for row in table.rows if not row.error]))
        for i, rival in enumerate(rivals):
            clock.step(f"starting {rival.row.loader}", START_SECONDS)
            compiled = _compiled()
            rival.row.start = rival.warm(table.setting.threads)
            if _compiled() > compiled:  # not a warm start: once more, with what is compiled now
                rival.close()
                rivals[i] = spawn(rival.row)
                rival.row.start = rivals[i].warm(table.setting.threads)
            rivals[i].settle()
        yield rivals


def _compiled() -> int:
    """Functions of ours in numba's cache."""
    return sum(1 for _ in Path(jit.cache_folder()).rglob("*.nbc"))


def is_tuned(row: Row) -> bool:
    return row.group == "baseline" or (row.group == "peer" and PEERS[row.loader].tuned)


def worker_counts(cpus: int) -> list[int]:
    """Numbers of workers worth trying: up to one more than there are CPUs; on large machines by steps."""
    fewest, step = (1, 1) if cpus <= 4 else (cpus // 2, cpus // 4)
    return sorted({*range(fewest, cpus, step), cpus, cpus + 1})


def tune(rival: Rival, cpus: int, seconds: float, clock: Clock) -> None:
    """Leave a row with the number of workers at which it is fastest."""
    row = rival.row
    for count in sorted(worker_counts(cpus), key=lambda count: count != row.workers):  # first the one that it has
        clock.step(f"{row.loader} with {counted(count, 'worker')}", START_SECONDS + OVERHEAD * seconds / 2)
        if count != row.workers:
            rival.warm(count)
            rival.settle()
        answer = rival.measure(seconds / 2)  # a difference that this does not show is none that matters
        row.tried[count] = answer["speed"] if answer else 0.0
    row.tried = dict(sorted(row.tried.items()))
    best = max(row.tried, key=lambda count: row.tried[count])
    if best != row.workers:
        rival.warm(best)
        rival.settle()


def race(rivals: list[Rival], seconds: float, repeats: int, clock: Clock) -> float:
    """Measure each row once a round. Returns the most CPUs' worth of time that waiting rows used."""
    turns = [rivals if turn % 2 == 0 else rivals[::-1] for turn in range(repeats)]
    return max(measure_beside(rival, rivals, seconds, clock) for turn in turns for rival in turn)


def measure_beside(rival: Rival, rivals: list[Rival], seconds: float, clock: Clock) -> float:
    """Measure one row once; returns how many CPUs' worth of time the others used meanwhile."""
    row = rival.row
    clock.step(f"measuring {row.loader} {row.storage or ''}", OVERHEAD * seconds)
    others = [other for other in rivals if other is not rival]
    before, began = sum(other.cpu_seconds() for other in others), perf_counter()
    if answer := rival.measure(seconds):
        row.repeats.append(answer["speed"])
        row.cpu.append(1000 * answer["cpu"] / answer["pairs"])
        if answer["memory"] is not None:
            row.memory.append(answer["memory"])
    return (sum(other.cpu_seconds() for other in others) - before) / (perf_counter() - began)


def cold_start(table: Table, row: Row, clock: Clock) -> None:
    """Time a row's imports, and its first start on a machine: nothing compiled, the images not in the page cache."""
    clock.step(f"cold start of {row.loader} {row.storage}", COLD_SECONDS)
    with tempfile.TemporaryDirectory() as empty:
        rival = Rival(row, table.task(row), {"NUMBA_CACHE_DIR": empty})
        try:
            row.imports = rival.imported()
            forget(table.places[row.storage or ""])
            row.cold = rival.warm(row.workers)
        finally:
            rival.close()
