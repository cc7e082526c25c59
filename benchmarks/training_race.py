"""Training steps against each other: all warm in one process, one at a time, in rounds that go back and forth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import monotonic, perf_counter, sleep

import psutil
import torch

from penstock.benchmarks.measure import cpu_seconds
from penstock.benchmarks.race import Clock
from penstock.benchmarks.training_steps import Step
from penstock.engine.meters import WaitClock
from penstock.loaders import Loader, Views

WARM_STEPS = 2  # before the clock starts: by then caches are warm, and the pipe is as training keeps it
SETTLE_SECONDS = 5.0
WARMING, OVERHEAD = 2.0, 1.8  # a start and a measurement take so many times its length, for the progress bar


@dataclass(kw_only=True)
class Row:
    """A step and what feeds it.

    Attributes:
        step: `penstock`, `official`, or what was last added to the usual step.
        feeder: a loader's name, or `synthetic`: the same batch of noise again and again.
        workers: threads of the loader, or DataLoader's processes; None where nothing is loaded.
        repeats: pairs a second in each round.
        waiting: share of each round in which the device had no batch to work on (`engine/meters.WaitClock`).
        first_step: seconds of the step's very first time, with all that is compiled, chosen or allocated in it; None
            where an earlier row has taken it.
        memory: GB on the GPU that its steps take at most, beside what lies there between two; None on a CPU.
        tried: pairs a second with other numbers of workers, where that was chosen.
        error: why nothing was measured.
    """

    step: str
    feeder: str
    workers: int | None = None
    repeats: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    first_step: float | None = None
    memory: float | None = None
    tried: dict[int, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def pairs_per_s(self) -> float | None:
        return median(self.repeats) if self.repeats and not self.error else None


class SameBatch:
    """A batch that is there already, again and again: an epoch without end that costs nothing."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __iter__(self) -> Iterator[Views]:
        return itertools.repeat(self.views)

    def close(self) -> None: ...


class Feed:
    """Batches for as long as they are wanted, epoch after epoch.

    Args:
        batches: what gives an epoch's batches for each `for` loop.
        ready: so many may lie ready while nobody asks.
        lanes: they come in bursts of so many, one from each DataLoader worker.
    """

    def __init__(self, batches: Loader | SameBatch, *, ready: int = 0, lanes: int = 1) -> None:
        self.batches, self.ready, self.lanes = batches, ready, lanes
        self.epoch: Iterator[Views] = iter(())

    def next(self) -> Views | None:
        """The epoch's next batch; None at its end, after which another one begins."""
        views = next(self.epoch, None)
        if views is None:
            self.epoch = iter(self.batches)
        return views

    def surely(self) -> Views:
        """The next batch, of whichever epoch."""
        views = self.next()
        views = self.next() if views is None else views
        assert views is not None, "an epoch without batches"
        return views

    def drain(self) -> None:
        """Pass over what was made while other rows were measured."""
        for _ in range(self.ready):
            self.surely()

    def close(self) -> None:
        self.epoch = iter(())  # an unfinished epoch may hold threads and processes
        self.batches.close()


@dataclass(kw_only=True)
class Contender:
    """A row with what it runs. Several may share a step, and a feed; one that fails is left out from then on."""

    row: Row
    step: Step
    feed: Feed
    device: torch.device

    @property
    def name(self) -> str:
        return f"{self.row.step}, {self.row.feeder}"

    def warm(self) -> None:
        """Take the first steps."""
        views, is_first = self.feed.surely(), self.step.steps == 0
        begin = perf_counter()
        self.step(views)
        self._catch_up()
        self.row.first_step = perf_counter() - begin if is_first else None
        on_gpu = self.device.type == "cuda"
        before = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(WARM_STEPS):
            self.step(self.feed.surely())
        if on_gpu:
            self.row.memory = (torch.cuda.max_memory_allocated(self.device) - before) / 1e9

    def measure(self, seconds: float) -> None:
        """Train for at least so long, and note it in the row."""
        pairs, spent, waited = 0, 0.0, 0.0
        while spent < seconds:
            more = self._stretch(seconds - spent)
            pairs, spent, waited = pairs + more[0], spent + more[1], waited + more[2]
        self.row.repeats.append(pairs / spent)
        self.row.waiting.append(waited / spent)

    def _stretch(self, seconds: float) -> tuple[int, float, float]:
        """Train for so long, or to the epoch's end: pairs, seconds, and seconds waited."""
        self.feed.drain()
        for _ in range(WARM_STEPS):
            self.step(self.feed.surely())
        self._catch_up()
        pairs, count, clock = 0, 0, WaitClock(self.device)
        while perf_counter() - clock.began < seconds or count % self.feed.lanes:
            clock.ask()
            views = self.feed.next()
            clock.got()
            if views is None:
                break
            self.step(views)
            pairs, count = pairs + len(views), count + 1
        self._catch_up()
        return pairs, *clock.read()

    def _catch_up(self) -> None:
        """Have the device finish what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def attempt(self, act: Callable[[], object]) -> None:
        """Do one of the above when all else rests, unless this has failed before."""
        if self.row.error:
            return
        settle()
        try:
            act()
        except Exception as error:  # networks, loaders and compilers raise whatever they like; the others go on
            self.row.error = first_line(error)


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def settle() -> None:
    """Wait until pipes are full and all threads and processes of ours sleep, so that they take nothing from a row."""
    deadline, before = monotonic() + SETTLE_SECONDS, -1.0
    while (used := cpu_seconds(psutil.Process())) != before and monotonic() < deadline:  # counted in steps of 10 ms
        before = used
        sleep(0.1)


def race(contenders: Sequence[Contender], *, seconds: float, rounds: int, clock: Clock) -> None:
    """Warm all of them, then measure each once a round."""
    for contender in contenders:
        clock.step(f"warming {contender.name}", WARMING * seconds)
        contender.attempt(contender.warm)
    for turn in range(rounds):
        for contender in contenders if turn % 2 == 0 else contenders[::-1]:
            clock.step(f"measuring {contender.name}", OVERHEAD * seconds)
            contender.attempt(partial(contender.measure, seconds))


def expected(contenders: int, *, seconds: float, rounds: int) -> float:
    """Seconds that `race` is expected to take."""
    return contenders * seconds * (WARMING + OVERHEAD * rounds)
