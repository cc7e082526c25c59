"""Carries out a search's runs: one at a time, shown, and stopped with the search or by a judge."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event

from rich.progress import Progress

from penstock.engine.runs import PAUSE, Place, Run, carry_out, is_at_work
from penstock.engine.search.study import Judge
from penstock.engine.signals import Interrupts


class Runner:
    """Trains runs in folders of their own.

    Attributes:
        epochs: of each run.
        place: where they are carried out.
        interrupts: after one, the run in hand saves and leaves.
        progress: has a bar for the run in hand.
    """

    def __init__(self, epochs: int, place: Place, interrupts: Interrupts, progress: Progress) -> None:
        self.epochs, self.place, self.interrupts, self.progress = epochs, place, interrupts, progress

    def say(self, text: str) -> None:
        self.progress.console.print(text, soft_wrap=True)

    def is_free(self, run: Run, folder: Path) -> bool:
        """Wait for a training that outlived the search that began it, which nobody can stop, nor judge, any more.

        Returns False where the search was stopped meanwhile.
        """
        if is_at_work(folder):
            self.say(f"{run.name}: an earlier search's process is still at it: waiting for it")
        while is_at_work(folder) and not self.interrupts.received:
            time.sleep(PAUSE)
        return not self.interrupts.received

    def train(self, run: Run, folder: Path, judge: Judge | None = None) -> bool:
        """Returns whether it was trained to its end.

        Raises:
            RunFailed: its process left with an error.
        """
        stop, shown = Event(), self.progress.add_task(run.name, total=self.epochs)

        def watch(epochs: int) -> None:
            self.progress.update(shown, completed=epochs)
            if judge is not None:
                judge.look()
            if self.interrupts.received or (judge is not None and judge.lags):
                stop.set()

        try:
            return carry_out(run, folder, place=self.place, stop=stop, watch=watch)
        finally:
            self.progress.remove_task(shown)
