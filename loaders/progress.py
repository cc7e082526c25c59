"""A progress bar on standard error, with the rate in images and bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar:
    """What `bar` yields."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.restart()

    def restart(self) -> None:
        """Count the rate from here on."""
        self._begin, self._images, self._bytes = time.perf_counter(), 0, 0

    def advance(self, size: int, *, images: int = 1) -> None:
        """An image more, or several, are done: so many bytes."""
        self._images += images
        self._bytes += size
        seconds = time.perf_counter() - self._begin
        rate = f"{self._images / seconds:.0f} images/s {self._bytes / seconds / 1e6:.1f} MB/s"
        self._progress.update(self._task, advance=images, rate=rate)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._progress.disable:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(name: str, total: int, *, disable: bool = False) -> Iterator[Bar]:
    """Show a bar until the block ends."""
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=disable) as progress:
        yield Bar(progress, progress.add_task(name, total=total, rate=""))
