"""The throughput benchmark's race: its clock; how rows start, are tuned, take turns. Speeds are nobody's test."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console

from penstock.augment import jit
from penstock.benchmarks import race
from penstock.benchmarks.measure import Stopwatch, cpu_seconds, memory_mb
from penstock.benchmarks.photographs import Photographs
from penstock.benchmarks.plan import Setting, Table
from penstock.benchmarks.rival import Rival, Row
from penstock.benchmarks.storages import Place


@dataclass
class Prefetching:
    """A loader whose first batches of each epoch lie ready, and whose others take 10 ms each."""

    ready: int = 3
    steps: int = 20
    epochs: int = 0

    def __iter__(self) -> Iterator[range]:
        self.epochs += 1
        for step in range(self.steps):
            if step >= self.ready:
                time.sleep(0.01)
            yield range(8)

    def close(self) -> None:
        self.steps = 0


def test_what_lay_ready_does_not_count() -> None:
    found = Stopwatch(Prefetching(), prefetched=3, lanes=1).measure(0.1)
    assert found.seconds >= 0.1
    assert found.pairs / found.seconds < 8 / 0.01  # had the three counted, they alone would add 24 pairs to these 80


def test_the_clock_stands_still_between_epochs() -> None:
    loader = Prefetching(steps=8)
    found = Stopwatch(loader, prefetched=3, lanes=1).measure(0.2)
    assert loader.epochs >= 2
    assert found.pairs / found.seconds < 8 / 0.01


def test_bursts_are_counted_whole() -> None:
    found = Stopwatch(Prefetching(steps=1000), prefetched=3, lanes=4).measure(0.05)
    assert found.pairs % (4 * 8) == 0


def test_cpu_time_is_that_of_the_process_not_of_the_clock() -> None:
    before = cpu_seconds(psutil.Process())
    time.sleep(0.2)
    slept = cpu_seconds(psutil.Process()) - before
    while cpu_seconds(psutil.Process()) - before < slept + 0.2:
        pass
    assert slept < 0.15


def test_memory_counts_what_is_held_and_no_pages_of_files(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(bytes(80_000_000))
    before = memory_mb(psutil.Process())
    assert before is not None
    with open(tmp_path / "shard", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert np.frombuffer(mapped, np.uint8).max() == 0
        with_file = memory_mb(psutil.Process())
    held = mmap.mmap(-1, 80_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # malloc may have some ready
    np.frombuffer(held, np.uint8)[:] = 1
    with_array = memory_mb(psutil.Process())
    assert with_file is not None and with_array is not None
    assert with_file - before < 40
    assert with_array - before > 70
    assert held[0] == 1


@pytest.mark.parametrize(("cpus", "counts"), [(1, [1, 2]), (2, [1, 2, 3]), (16, [8, 12, 16, 17])])
def test_worker_counts_end_above_the_cpus(cpus: int, counts: list[int]) -> None:
    assert race.worker_counts(cpus) == counts


class FakeRival:
    """A rival that is fastest with three workers, and whose first start compiles."""

    made: list[FakeRival]

    def __init__(self, row: Row, task: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.row, self.environment, self.warmed = row, environment or {}, list[int]()
        self.made.append(self)

    def imported(self) -> float:
        return 1.5

    def warm(self, workers: int) -> float:
        self.row.workers = workers
        self.warmed.append(workers)
        cache = Path(self.environment.get("NUMBA_CACHE_DIR", jit.cache_folder()))
        (cache / "function.nbc").touch()
        return 60.0 if len(self.made) == 1 else 0.5

    def measure(self, seconds: float) -> dict[str, Any]:
        return {"speed": {1: 10.0, 2: 20.0, 3: 30.0}[self.row.workers], "cpu": 4.0, "pairs": 2000, "memory": 7.0}

    def settle(self) -> None: ...

    def cpu_seconds(self) -> float:
        return 0.0

    def close(self) -> None: ...


@pytest.fixture
def two_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table of the baseline and one row of ours, whose processes are no processes."""
    (tmp_path / "compiled").mkdir()
    monkeypatch.setattr(jit, "cache_folder", lambda: str(tmp_path / "compiled"))
    monkeypatch.setattr(race, "Rival", FakeRival)
    monkeypatch.setattr(FakeRival, "made", [], raising=False)
    setting = Setting(recipe="moco-v2", size=32, views=None, batch=2, executor="auto", fallback=(), threads=2)
    rows = [
        Row(loader="torchvision", storage="files", group="baseline", workers=2),
        Row(loader="folder", storage="files", workers=2),
    ]
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.jpg").write_bytes(b"no rival reads it")
    files = Photographs(data=str(photos), limit=None, count=1, distinct=1)
    places = {"files": Place(data=str(photos), about="", bytes=1)}
    return Table(name="photos", setting=setting, files=files, places=places, rows=rows)


def test_a_start_that_compiled_does_not_count(two_cpus: Table) -> None:
    race.run(two_cpus, seconds=0.1, repeats=3, clock=race.Clock(Console()))
    assert [rival.row.loader for rival in FakeRival.made] == ["torchvision", "folder", "torchvision"]
    assert [row.start for row in two_cpus.rows] == [0.5, 0.5]


def test_the_baseline_is_tuned_and_ours_take_the_cpus(two_cpus: Table) -> None:
    race.run(two_cpus, seconds=0.1, repeats=3, clock=race.Clock(Console()))
    baseline, ours = two_cpus.rows
    assert (baseline.workers, baseline.tried) == (3, {1: 10.0, 2: 20.0, 3: 30.0})
    assert (ours.workers, ours.tried) == (2, {})
    assert baseline.repeats == 3 * [30.0] and baseline.cpu == 3 * [2.0] and baseline.memory == 3 * [7.0]


def test_a_cold_start_finds_nothing_compiled(two_cpus: Table) -> None:
    row = two_cpus.rows[1]
    race.cold_start(two_cpus, row, race.Clock(Console()))
    (rival,) = FakeRival.made
    assert rival.environment["NUMBA_CACHE_DIR"] != jit.cache_folder()
    assert (row.imports, row.cold, row.start) == (1.5, 60.0, None)


def test_a_row_that_fails_says_why(tmp_path: Path) -> None:
    task = {"loader": "folder", "data": str(tmp_path / "nowhere"), "limit": None, "threads": 1, "batch": 1}
    rival = Rival(Row(loader="folder", workers=1), {**task, "recipe": "moco-v2", "size": 32, "views": None})
    try:
        assert rival.imported()
        rival.warm(1)
        assert rival.row.error
        assert "nowhere" in rival.row.error
        assert rival.measure(0.1) is None
        assert rival.row.pairs_per_s is None
    finally:
        rival.close()
