"""The parent's side of one row: its result, and the process that is asked to measure it and rests meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

import psutil

import penstock
from penstock.benchmarks.measure import cpu_seconds, memory_mb

SETTLE_SECONDS = 20.0


@dataclass(kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        loader, storage: what is measured, and what its images are stored as.
        group: `baseline`, `ours`, `peer` or `ceiling`.
        workers: threads, or DataLoader workers.
        repeats: pairs a second in each round.
        cpu: CPU seconds per 1,000 pairs in each round, of the row's process and its children.
        memory: MB at the end of each round, see `memory_mb`.
        tried: pairs a second with other numbers of workers, of a row that was tuned.
        start: seconds from opening the set to the first batch, in a process that has imported all it needs and finds
            compiled code and the images' bytes in caches.
        imports, cold: seconds to import, and the start with both caches empty, where `--start` measured them.
        executor: the code that makes the views, where it is ours.
        routed: share of the views that Albumentations finished, because the executor has no code for them.
        note: where it does another thing than the baseline.
        error: why nothing was measured.
    """

    loader: str
    storage: str | None = None
    group: str = "ours"
    workers: int
    repeats: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    tried: dict[int, float] = field(default_factory=dict)
    start: float | None = None
    imports: float | None = None
    cold: float | None = None
    executor: str | None = None
    routed: float | None = None
    note: str | None = None
    error: str | None = None

    @property
    def pairs_per_s(self) -> float | None:
        return median(self.repeats) if self.repeats and not self.error else None


class Rival:
    """A row's process. Where it fails, the row's `error` says why, and it is left out from then on.

    Args:
        row: what it measures.
        task: what `benchmarks/worker.py` reads.
        environment: variables that it has beside ours.
    """

    def __init__(self, row: Row, task: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.row = row
        threads = str(task["threads"])
        root = str(Path(penstock.__file__).resolve().parents[1])
        own = {"PYTHONPATH": root, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "penstock.benchmarks.worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **own, **(environment or {})},
        )

    def imported(self) -> float | None:
        """Wait until the process has imported what it needs; the seconds that this took it."""
        answer = self._answer()
        return answer["imports"] if answer else None

    def warm(self, workers: int) -> float | None:
        """Build the loader with so many workers, and run it until it is warm; the seconds to the first batch."""
        answer = self._ask(workers=workers)
        self.row.workers = workers
        return answer["start"] if answer else None

    def measure(self, seconds: float) -> dict[str, Any] | None:
        """What the worker answers, beside it pairs a second and the memory at the end; None where it failed."""
        answer = self._ask(seconds=seconds)
        memory = memory_mb(psutil.Process(self.process.pid)) if answer else None
        self.settle()
        if not answer:
            return None
        self.row.executor, self.row.routed = answer["executor"], answer["routed"]
        return {**answer, "speed": answer["pairs"] / answer["seconds"], "memory": memory}

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
            return cpu_seconds(psutil.Process(self.process.pid))
        except psutil.NoSuchProcess:
            return 0.0

    def close(self) -> None:
        """End the process and what it started; once is enough."""
        if self.log.closed:
            return
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
        assert self.process.stdin
        if self.row.error:
            return None
        with suppress(BrokenPipeError):  # it ended before it was asked
            print(json.dumps(command), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any] | None:
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.row.error = self._last_words()
        return None

    def _last_words(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return (lines[-1] if lines else f"its process ended with code {code}").removeprefix("penstock: ")
