"""A progress bar on standard error, with the rate in images and bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

WHOLE = Column(no_wrap=True)  # of a column that says something: on a narrow terminal the bar itself gives way
RATE_AND_TIME = 42  # of the terminal's columns: "/", "12345 images/s 1234.5 MB/s", "0:00:00", gaps, and a short bar


class Bar:
    """What `bar` yields.

    Attributes:
        seconds: that the rate shown is over.
    """

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.restart()

    def restart(self) -> None:
        """Count the rate from here on."""
        self._begin, self._images, self._bytes, self.seconds = time.perf_counter(), 0, 0, 0.0

    def advance(self, size: int, *, images: int = 1) -> None:
        """An image more, or several, are done: so many bytes. Those of none were skipped, and are not in the rate."""
        self.seconds = time.perf_counter() - self._begin
        self._images += images if size else 0
        self._bytes += size
        rate = f"{self._images / self.seconds:.0f} images/s {self._bytes / self.seconds / 1e6:.1f} MB/s"
        self._progress.update(self._task, advance=images, rate=rate)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._progress.disable:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(name: str, total: int, *, disable: bool = False) -> Iterator[Bar]:
    """Show a bar until the block ends; its last rate is over all that the block took."""
    console = Console(stderr=True)
    room = max(8, console.width - 2 * len(str(total)) - RATE_AND_TIME)
    whole_name = Column(no_wrap=True, overflow="ellipsis", max_width=room)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=whole_name),
        BarColumn(),
        MofNCompleteColumn(table_column=WHOLE),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(table_column=WHOLE),
    )
    with Progress(*columns, console=console, disable=disable) as progress:
        shown = Bar(progress, progress.add_task(name, total=total, rate=""))
        yield shown
        shown.advance(0, images=0)
