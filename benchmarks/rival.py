"""The parent's side of one row: its result, and the process that is asked to measure it and rests meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

import psutil

import penstock

SETTLE_SECONDS = 20.0


@dataclass(kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        loader, storage: what is measured, and what its images are stored as.
        workers: threads, or DataLoader workers for the baseline.
        repeats: pairs a second in each round.
        tried: the baseline's pairs a second with other numbers of workers.
        executor: the code that makes the views, where it is ours.
        routed: share of the views that Albumentations finished, because the executor has no code for them.
        error: why nothing was measured.
    """

    loader: str
    storage: str | None = None
    workers: int
    repeats: list[float] = field(default_factory=list)
    tried: dict[int, float] = field(default_factory=dict)
    executor: str | None = None
    routed: float | None = None
    error: str | None = None

    @property
    def pairs_per_s(self) -> float | None:
        return median(self.repeats) if self.repeats and not self.error else None


class Rival:
    """A row's process. Where it fails, the row's `error` says why, and it is left out from then on.

    Args:
        row: what it measures.
        task: what `benchmarks/worker.py` reads.
    """

    def __init__(self, row: Row, task: dict[str, Any]) -> None:
        self.row = row
        threads = str(task["threads"])
        root = str(Path(penstock.__file__).resolve().parents[1])
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "penstock.benchmarks.worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
        )

    def warm(self, workers: int) -> None:
        """Build the loader with so many workers, and run it until it is warm."""
        self._ask(workers=workers)
        self.row.workers = workers

    def measure(self, seconds: float) -> float:
        """Pairs a second over at least so long; 0 where the process failed."""
        answer = self._ask(seconds=seconds)
        self.settle()
        if not answer:
            return 0.0
        self.row.executor, self.row.routed = answer["executor"], answer["routed"]
        return answer["pairs"] / answer["seconds"]

    def settle(self) -> None:
        """Wait until its prefetch is full and its threads sleep, so that it takes nothing from the next row."""
        deadline = monotonic() + SETTLE_SECONDS
        used = self.cpu_seconds()
        while monotonic() < deadline:
            sleep(0.1)
            before, used = used, self.cpu_seconds()
            if used == before:  # counted in steps of 10 ms
                return

    def cpu_seconds(self) -> float:
        """CPU time that the process and its children have used."""
        try:
            process = psutil.Process(self.process.pid)
            times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        except psutil.NoSuchProcess:
            return 0.0
        return sum(each.user + each.system for each in times)

    def close(self) -> None:
        """End the process and what it started."""
        family = []
        if self.process.poll() is None:
            process = psutil.Process(self.process.pid)
            family = [*process.children(recursive=True), process]
        for each in family:
            each.terminate()
        for each in psutil.wait_procs(family, timeout=5)[1]:
            each.kill()
        self.process.communicate()
        self.log.close()

    def _ask(self, **command: Any) -> dict[str, Any] | None:
        assert self.process.stdin and self.process.stdout
        if self.row.error:
            return None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            if line := self.process.stdout.readline():
                return json.loads(line)
        except BrokenPipeError:
            pass  # it ended before it was asked
        self.row.error = self._last_words()
        return None

    def _last_words(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return (lines[-1] if lines else f"its process ended with code {code}").removeprefix("penstock: ")
