"""A list of runs, carried out on this machine: some at a time, each in a process of its own, shown and stopped as one.

`runs.py` says what a run is. Asked to stop (Ctrl-C, SIGTERM), all save after their step; by a second Ctrl-C this
process leaves at once, and those that save are waited for by whoever starts the list again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from penstock.counts import counted
from penstock.engine.runs import PAUSE, REFUSED, Place, Run, RunFailed, carry_out, epochs_done, is_finished
from penstock.engine.signals import Interrupts
from penstock.loaders.threads import available_cpus


class InTurn:
    """Carries out runs, `jobs` at a time: bars on a terminal, lines elsewhere.

    Args:
        runs: each once; those that are finished are left as they are.
        folder: a run's, from its name.
        console: where progress is shown.
        finished: called whenever a run is finished, once at a time.

    Attributes:
        failed: what runs left with an error said, by their names.
        stop: when set, runs save and leave after their step, and no other begins.
        interrupts: has the signal that set it, if one did.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        folder: Callable[[str], Path],
        *,
        jobs: int,
        console: Console,
        finished: Callable[[], object] = lambda: None,
    ) -> None:
        self.runs, self.folder, self.jobs, self.console, self.finished = runs, folder, jobs, console, finished
        self.failed: dict[str, str] = {}
        self.interrupts = Interrupts()
        self.stop, self.places, self.lock = Event(), _places(jobs), Lock()
        # The time left is reckoned from all epochs so far: of rich's last 30 s, few runs have two
        self.progress = Progress(console=console, disable=not console.is_terminal, speed_estimate_period=math.inf)

    def carry_out(self) -> bool:
        """All runs that are not finished yet. Returns False where it was stopped before the last of them was over.

        Raises:
            RunFailed: a run was refused, as the others would be; they are stopped. Other failures are in `failed`.
        """
        left = [run for run in self.runs if not is_finished(self.folder(run.name))]
        if not left:
            return True
        if len(left) < len(self.runs):
            self.console.print(f"{len(self.runs) - len(left)} of {len(self.runs)} runs are finished")
        self._add_bar(left)
        with self.interrupts, self.progress, ThreadPoolExecutor(self.jobs) as pool:
            pending = {pool.submit(self._one, run) for run in left}
            try:
                while pending:
                    over, pending = wait(pending, PAUSE, FIRST_COMPLETED)
                    for future in over:
                        future.result()
                    if self.interrupts.received:
                        self.stop.set()
            except BaseException:
                self.stop.set()
                raise
        return all(run.name in self.failed or is_finished(self.folder(run.name)) for run in left)

    def _add_bar(self, left: Sequence[Run]) -> None:
        """Of all epochs."""
        total = sum(run.config.epochs or 0 for run in self.runs)
        self.done = {run.name: epochs_done(self.folder(run.name)) for run in left}
        before = total - sum((run.config.epochs or 0) - self.done[run.name] for run in left)
        runs = counted(len(self.runs), "run")
        self.overall = self.progress.add_task(f"{runs}, epochs", total=total, completed=before)

    def _one(self, run: Run) -> None:
        """Carry out a run, when there is a place for it."""
        if self.stop.is_set():
            return
        place, began = self.places.get(), time.perf_counter()
        bar = self.progress.add_task(run.name, total=run.config.epochs, completed=self.done[run.name])
        if not self.console.is_terminal:
            self._say(run, f"from epoch {self.done[run.name]} of {run.config.epochs}")
        try:
            show, waits = partial(self._show, run, bar), partial(self._say, run, "waiting for those who are at it")
            if carry_out(run, self.folder(run.name), place=place, stop=self.stop, watch=show, waits=waits):
                self._say(run, f"finished, {(time.perf_counter() - began) / 60:.1f} min")
                with self.lock:
                    self.finished()
        except RunFailed as error:
            if error.code == REFUSED:
                raise
            self.failed[run.name] = str(error)
            self._say(run, "failed")
        finally:
            self.progress.remove_task(bar)
            self.places.put(place)

    def _show(self, run: Run, bar: TaskID, epochs: int) -> None:
        self.progress.update(self.overall, advance=epochs - self.done[run.name])
        self.progress.update(bar, completed=epochs)
        self.done[run.name] = epochs

    def _say(self, run: Run, text: str) -> None:
        self.console.print(f"{run.name}: {text}", soft_wrap=True)


def _places(jobs: int) -> SimpleQueue[Place]:
    """Each with its share of the CPUs, and a GPU of its own where there are several."""
    places: SimpleQueue[Place] = SimpleQueue()
    gpus = torch.cuda.device_count()
    for number in range(jobs):
        workers = max(1, available_cpus() // jobs) if jobs > 1 else None
        places.put(Place(workers=workers, gpu=number % gpus if gpus > 1 else None))
    return places
