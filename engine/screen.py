"""What a run shows of itself while it trains."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from penstock.engine.csv_log import Row
from penstock.loaders.progress import WHOLE

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal to draw on
SPEED_SECONDS = 600.0  # that the time left is reckoned from: steps can be slow, and an evaluation come between
FOUND = {"knn": "kNN", "logistic": "logistic regression"}  # what a network is evaluated by while it trains


class Screen:
    """A progress bar on a terminal; elsewhere a plain line now and then, and one at the end of each epoch.

    `of` names what is trained, where a command trains more than one thing.
    """

    def __init__(self, *, epochs: int, steps: int, done: int, of: str = "") -> None:
        self.total, self.last, self.of = epochs, time.monotonic(), f"{of}, " if of else ""
        self.console = Console()
        self.room = max(8, self.console.width - 2 * len(str(steps)) - 19)  # beside count, time left and a short bar
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if self.console.is_terminal:
            columns = (
                BarColumn(bar_width=None),
                MofNCompleteColumn(table_column=WHOLE),
                TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=self.room)),
                TimeRemainingColumn(table_column=WHOLE),
            )
            self.bar = Progress(*columns, console=self.console, expand=True, speed_estimate_period=SPEED_SECONDS)
            self.task = self.bar.add_task("", total=steps, completed=done)
            self.bar.start()

    def show(self, row: Row) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=int(row["step"]), description=describe(row, room=self.room))
        elif time.monotonic() - self.last > PLAIN_SECONDS:
            self._print(f"  step {row['step']:.0f}: {describe(row)}")

    def epoch_over(self, row: Row) -> None:
        when = f"epoch {row['epoch']:.0f}/{self.total}" if row["epoch"] else "before the first epoch"
        self._print(f"{self.of}{when}: {describe(row)}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
        self.last = time.monotonic()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def describe(row: Row, *, room: float = math.inf) -> str:
    """`loss 6.12  accuracy 0.31  1,240 images/s  waiting 3 %  kNN 41.2 %`, as far as the row knows.

    Metrics beside the loss are left out where there is no room for so many characters.
    """
    known = ("epoch", "step", "lr", "knn", "logistic", "logistic_train", "images_per_s", "wait_share", "routed",
             "skipped", "train_seconds", "knn_seconds", "logistic_seconds")  # fmt: skip
    metrics = [f"{name} {value:.3f}" for name, value in row.items() if name not in known]
    parts = []
    if "images_per_s" in row:
        parts += [f"{row['images_per_s']:,.0f} images/s", f"waiting {100 * row['wait_share']:.0f} %"]
    if row.get("routed"):
        parts.append(f"routed {100 * row['routed']:.0f} %")
    if row.get("skipped"):
        parts.append(f"broken images skipped {row['skipped']:.0f}")
    parts += [f"{title} {row[name]:.2f} %" for name, title in FOUND.items() if name in row]
    while len(metrics) > 1 and len("  ".join(metrics + parts)) > room:
        metrics.pop()
    return "  ".join(metrics + parts)
