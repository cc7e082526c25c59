"""What benchmarks/augment.py times: a contender's passes over decoded images that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, repeat
from statistics import mean
from time import perf_counter
from typing import Any

import numpy as np
import torch

from penstock.augment import Pixels, Recipe, Rows, draw
from penstock.augment.executors import Executor
from penstock.benchmarks.augment_rivals import Bytes

BASELINES = ("torchvision-pil", "albumentations-compose")  # the first that has the operation
HOST_PASSES = 8  # over which the host's time is averaged, at most


def nothing() -> None:
    pass


@dataclass(kw_only=True)
class Contender:
    """One executor or rival on one operation.

    Attributes:
        run: makes `views` views.
        bytes: for each, the source's that its crop takes in, read once, and its own, written once.
        writes: the type of a view's values.
        settle: waits until they are made, where that is later than `run` returns.
        batch: images that go through at once, on a GPU; None: one by one, on a CPU.
        own_threads: it prepares its work in threads of its own, so that when `run` returns tells nothing.
        times: microseconds a view, in each round.
        host_times: milliseconds until `run` returned, of passes with nothing before them under way, in each round.
        error: why nothing was measured.
    """

    executor: str
    run: Callable[[], Any]
    views: int
    bytes: float = 0.0
    writes: torch.dtype = torch.float32
    threads: int = 1
    device: str = "cpu"
    settle: Callable[[], Any] = nothing
    batch: int | None = None
    own_threads: bool = False
    times: list[float] = field(default_factory=list)
    host_times: list[float] = field(default_factory=list)
    error: str | None = None

    def warm(self) -> None:
        """A pass that does not count: compilation, first allocations."""
        with self._failing():
            self.run()
            self.settle()

    def measure(self, seconds: float) -> None:
        """Whole passes for at least so long."""
        with self._failing():
            began, passes = perf_counter(), 0
            while not passes or perf_counter() - began < seconds:
                self.run()
                passes += 1
            self.settle()
            self.times.append((perf_counter() - began) / (passes * self.views) * 1e6)
            if self.batch and not self.own_threads:
                self.host_times.append(mean(self._host_time() for _ in range(min(passes, HOST_PASSES))))

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Where the block fails, `error` says why, nothing measured counts, and the others go on."""
        try:
            yield
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            self.times.clear()

    def _host_time(self) -> float:
        """Milliseconds until `run` returns. Behind other passes it might wait for them: that is the device's time."""
        began = perf_counter()
        self.run()
        taken = perf_counter() - began
        self.settle()
        return 1e3 * taken

    def rest(self) -> None:
        """Give its images and views back: it will not run again."""
        self.run = self.settle = nothing


@dataclass(kw_only=True)
class Case:
    """An operation or a chain, and who runs in it.

    Attributes:
        size: of the first view, pixels.
    """

    operation: str
    size: int
    contenders: list[Contender]

    @property
    def baseline(self) -> Contender | None:
        ran = {each.executor: each for each in self.contenders if not each.error}
        return next((ran[name] for name in BASELINES if name in ran), None)


@dataclass(frozen=True)
class Share:
    """Some images in one buffer, and a tensor for each group of their views, [V, N, 3, S, S], filled in each pass.

    No pass takes new memory: rivals' views are small enough to be given back and taken again, and the batch that they
    would be copied into is not counted either.
    """

    pixels: Pixels
    out: list[torch.Tensor]

    @staticmethod
    def of(images: list[Bytes], recipe: Recipe, device: str, dtype: torch.dtype = torch.float32) -> Share:
        """On a GPU the images lie there, too, unless rows have to be finished on the CPU."""
        pixels = Pixels.from_images(images)
        if device != "cpu" and not recipe.foreign:
            pixels = replace(pixels, data=torch.from_numpy(pixels.data).to(device))  # type: ignore[arg-type]
        shapes = ((v.stop - v.start, len(images), size, size, 3) for size, v in recipe.groups)
        return Share(pixels, [torch.empty(s, dtype=dtype, device=device).permute(0, 1, 4, 2, 3) for s in shapes])


def passes_of(executor: Executor, recipe: Recipe, shares: list[Share]) -> Callable[[], Any]:
    """Each call draws the rows of the next epoch and runs them, in as many threads as there are shares."""
    epochs = count()

    def augment(share: Share, epoch: int) -> None:
        rows = rows_of(recipe, share.pixels, epoch)
        for (_, views), out in zip(recipe.groups, share.out, strict=True):
            executor(share.pixels, rows.views(views), recipe, out)

    if len(shares) == 1:
        return lambda: augment(shares[0], next(epochs))
    pool = ThreadPoolExecutor(len(shares))
    return lambda: list(pool.map(augment, shares, repeat(next(epochs))))


def rows_of(recipe: Recipe, pixels: Pixels, epoch: int) -> Rows:
    index = np.arange(len(pixels))
    return draw(recipe, seed=0, epoch=epoch, index=index, height=pixels.height, width=pixels.width)
