"""Which rows the training benchmark has, and what each of them runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from penstock.augment import Recipe
from penstock.benchmarks.race import Clock, worker_counts
from penstock.benchmarks.training_profile import profile_step
from penstock.benchmarks.training_race import Contender, Feed, Row, SameBatch, expected, first_line, race
from penstock.benchmarks.training_steps import (
    WITH_OFFICIAL,
    Setting,
    Step,
    more_and_more,
    official_step,
    part_step,
    penstock_step,
)
from penstock.benchmarks.worker import PREFETCHED
from penstock.counts import counted
from penstock.engine.data import build_loader, threads
from penstock.engine.distributed import Team
from penstock.engine.precision import Precision
from penstock.loaders import Source, Views, missing
from penstock.loaders.threads import available_cpus

OFFICIAL, PENSTOCK = "official", "penstock"
TORCHVISION, SYNTHETIC = "torchvision", "synthetic"
TRYING = 2.5  # trying a number of workers takes so many times a measurement's length, for the progress bar


class Lineup:
    """The contenders, and the tables that their rows stand in.

    Args:
        official: whether the usual step takes part, where there is one.
        seconds: length of a measurement.
        stack: closes the loaders.

    Attributes:
        rows: the first table's: steps and what feeds them.
        parts: the second one's: steps alone, by the name of what each has more than the one before.
    """

    def __init__(self, setting: Setting, *, official: bool, seconds: float, clock: Clock, stack: ExitStack) -> None:
        self.setting, self.seconds, self.clock, self.stack = setting, seconds, clock, stack
        self.contenders: list[Contender] = []
        self.rows: list[Row] = []
        self.parts: list[tuple[str, Row]] = []
        self.penstock = penstock_step(setting)
        self.official = official_step(setting) if official and setting.config.method in WITH_OFFICIAL else None
        self.noise = next(iter(build_loader(replace(setting.config, loader=SYNTHETIC), *self._data)))

    def enter_fed(self, loaders: list[str]) -> None:
        """The steps with what feeds them: the baseline first, of each what costs nothing last."""
        torchvision, tried = self._fastest_torchvision()
        workers = torchvision.lanes
        if self.official:
            row = Row(step=OFFICIAL, feeder=TORCHVISION, workers=workers, tried=tried)
            self.rows += [self._enter(row, self.official, torchvision), self._alone(OFFICIAL, self.official)]
        row = Row(step=PENSTOCK, feeder=TORCHVISION, workers=workers, tried=tried)
        self.rows.append(self._enter(row, self.penstock, torchvision))
        self.rows += [self._fed_by(name) for name in loaders]
        self.rows.append(self._alone(PENSTOCK, self.penstock))

    def enter_parts(self, modes: list[str]) -> None:
        """From the usual step to Penstock's, part by part, then Penstock's with torch.compile. After `enter_fed`."""
        alone = {row.step: row for row in self.rows if row.feeder == SYNTHETIC}
        if self.official:
            self.parts.append(("the usual: NCHW, float32", alone[OFFICIAL]))
            for name, parts in more_and_more(self.setting).items():
                self.parts.append((f"+ {name}", self._alone(name, part_step(self.setting, parts))))
        self.parts.append(("Penstock's", alone[PENSTOCK]))
        for mode in modes:
            step = penstock_step(self.setting, compile=mode)
            self.parts.append((f"Penstock's, compiled ({mode})", self._alone(f"compile {mode}", step)))

    def race(self, rounds: int) -> None:
        """Measure all rows."""
        self.clock.expect(expected(len(self.contenders), seconds=self.seconds, rounds=rounds))
        race(self.contenders, seconds=self.seconds, rounds=rounds, clock=self.clock)

    def profile(self, steps: int) -> dict[str, Any]:
        """Where the time of Penstock's step goes, on one batch."""
        return profile_step(self.penstock, self._noise_for(self.penstock), self.setting.team.device, steps)

    @property
    def failed(self) -> bool:
        """Whether a row could not be measured, though all that it needs is installed."""
        rows = [*self.rows, *(row for _, row in self.parts)]
        return any(row.error and row.error != missing(row.feeder) for row in rows)

    def _fed_by(self, name: str) -> Row:
        """Penstock's step with a loader of ours."""
        workers = threads(self.setting.config, self.setting.team)
        row = Row(step=PENSTOCK, feeder=name, workers=workers, error=missing(name))
        if row.error:
            return row
        try:
            return self._enter(row, self.penstock, self._feed(name, workers))
        except Exception as error:  # a set too large for `resident`, images that a package refuses
            row.error = first_line(error)
            return row

    def _enter(self, row: Row, step: Step, feed: Feed) -> Row:
        self.contenders.append(Contender(row=row, step=step, feed=feed, device=self.setting.team.device))
        return row

    def _alone(self, name: str, step: Step) -> Row:
        """A step on one batch of noise, in the layout that it wants."""
        return self._enter(Row(step=name, feeder=SYNTHETIC), step, Feed(SameBatch(self._noise_for(step))))

    def _noise_for(self, step: Step) -> Views:
        groups = [group.contiguous(memory_format=step.layout) for group in self.noise.groups]
        return Views(groups=groups, index=self.noise.index, label=self.noise.label)

    def _feed(self, name: str, workers: int) -> Feed:
        """What a loader gives. An epoch is at least four times as long as what lies ready of it."""
        processes = name == TORCHVISION
        loader = build_loader(replace(self.setting.config, loader=name, workers=workers), *self._data)
        ready = min(2 * workers if processes else PREFETCHED, len(loader) // 4)
        feed = Feed(loader, ready=ready, lanes=workers if processes else 1)
        self.stack.callback(feed.close)
        return feed

    def _fastest_torchvision(self) -> tuple[Feed, dict[int, float]]:
        """The baseline with the number of workers that feeds Penstock's step best; and what others gave."""
        if self.setting.config.workers:
            return self._feed(TORCHVISION, self.setting.config.workers), {}
        counts, tried = worker_counts(available_cpus()), {}
        self.clock.expect(len(counts) * TRYING * self.seconds)
        for count in counts:
            self.clock.step(f"torchvision with {counted(count, 'worker')}", TRYING * self.seconds)
            tried[count] = self._try(count)
        return self._feed(TORCHVISION, max(tried, key=lambda count: tried[count])), tried

    def _try(self, workers: int) -> float:
        """Pairs a second with so many workers, or 0."""
        row, feed = Row(step=PENSTOCK, feeder=TORCHVISION, workers=workers), self._feed(TORCHVISION, workers)
        contender = Contender(row=row, step=self.penstock, feed=feed, device=self.setting.team.device)
        contender.attempt(contender.warm)
        contender.attempt(partial(contender.measure, self.seconds))
        feed.close()
        return row.pairs_per_s or 0.0

    @property
    def _data(self) -> tuple[Source, Recipe, Team, Precision]:
        return self.setting.source, self.setting.recipe, self.setting.team, self.setting.precision
