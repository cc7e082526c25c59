"""One measurement of the scale benchmark, in a process of its own: `benchmarks/scale.py` starts it and reads its JSON.

What any set costs, however small, is paid before the clock starts, on a set of 64 samples: imports, compiled code,
the ffcv package's code generation. So what is counted is what grows with the set.

Memory is the process's own (`private`, gone from every other use) or pages of mapped files (`mapped`: the page cache's,
one copy for all processes, dropped when memory is short), as the kernel counts them before and after.
"""

from __future__ import annotations

import gc
import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from penstock.benchmarks.answers import run_probe
from penstock.benchmarks.worker import PREFETCHED, choose_recipe, stay_within
from penstock.loaders import Loader, Order, make_loader, open_source
from penstock.loaders.order import Quasi

ORDER_STEPS = 100  # steps over which an index's cost is averaged, at most an epoch
QUASI = Quasi(block=64, window=16_384)
SAMPLED = 0.001  # seconds between looks at the memory in use


@dataclass(kw_only=True)
class Measured:
    """What the probe tells; None where it does not apply."""

    open_s: float
    """Until the set can be asked for any image, by its number."""
    private_bytes: int
    """Memory that the opened set keeps."""
    mapped_bytes: int
    """Pages of files that it has mapped and read."""
    peak_bytes: int
    """The most private memory while it was opened."""
    order_s: float
    """From an epoch's beginning until its first batch of indices is known."""
    order_us: float
    """Microseconds an index, over an epoch."""
    order_bytes: int
    """Memory that the epoch's order keeps."""
    quasi_us: float | None = None
    """Microseconds an index of the quasi-random order."""
    first_batch_s: float | None = None
    """From the opened set to the first batch of views, compiled code loaded."""
    new_pairs_per_s: float | None = None
    """Pairs of views a second, of images that are read for the first time (their checksums are tested)."""
    pairs_per_s: float | None = None
    """The same batches again."""


def memory() -> tuple[int, int]:
    """Bytes in RAM now, private and of mapped files, counted page by page."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    counted = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return counted["Anonymous"], counted["Rss"] - counted["Anonymous"]


class Watch:
    """The most private memory in use within a block, by looking at it every millisecond."""

    def __enter__(self) -> Watch:
        self.peak, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while True:
            _, resident, mapped = map(int, Path("/proc/self/statm").read_text().split()[:3])
            self.peak = max(self.peak, (resident - mapped) * resource.getpagesize())
            if self._over.wait(SAMPLED):
                return

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


# How each contender opens a set. It returns the opened set, and a function that gives the order of an epoch: how many
# indices are known when the first batch is, and what holds them.
Opened = tuple[Any, Callable[[int], tuple[int, Any]]]


def open_ours(path: str, batch: int) -> Opened:
    source = open_source(path)
    order = Order(len(source), batch, keep_tail=True)

    def first(epoch: int) -> tuple[int, Any]:
        index = order.indices(epoch, 0)
        return len(index), index

    return source, first


def open_ffcv(path: str, batch: int) -> Opened:
    from ffcv.loader import Loader, OrderOption

    loader = Loader(path, batch_size=batch, num_workers=1, order=OrderOption.RANDOM, os_cache=True, drop_last=False)

    def first(epoch: int) -> tuple[int, Any]:
        order = loader.traversal_order.sample_order(epoch)
        return len(order), order

    return loader, first


def open_torchvision(path: str, batch: int) -> Opened:
    from torch.utils.data import RandomSampler
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(path)

    def first(epoch: int) -> tuple[int, Any]:
        order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(epoch)).tolist()  # as the sampler
        return len(order), order

    return (folder, RandomSampler(folder)), first


OPENERS: dict[str, Callable[[str, int], Opened]] = {"ffcv-package": open_ffcv, "torchvision": open_torchvision}


def probe(task: dict[str, Any]) -> Measured:
    """Open the set, ask for an epoch's order, and where a loader of ours is named, hand out batches."""
    stay_within(task["threads"])
    opener = OPENERS.get(task["contender"], open_ours)
    warm = opener(task["small"], task["batch"])
    warm[1](0)
    gc.collect()
    before = memory()
    with Watch() as watch:
        began = perf_counter()
        opened, first = opener(task["path"], task["batch"])
        open_s = perf_counter() - began
    after = memory()
    began = perf_counter()
    known, held = first(1)
    order_s = perf_counter() - began
    measured = Measured(
        open_s=open_s,
        private_bytes=after[0] - before[0],
        mapped_bytes=max(0, after[1] - before[1]),  # where memory is short, others' pages were dropped meanwhile
        peak_bytes=max(watch.peak - before[0], after[0] - before[0]),
        order_s=order_s,
        order_us=1e6 * order_s / known,
        order_bytes=max(0, memory()[0] - after[0]),
    )
    del held
    if opener is open_ours:
        add_ours(measured, task, opened)
    return measured


def add_ours(measured: Measured, task: dict[str, Any], source: Any) -> None:
    """An index's cost over many steps, and a loader's first batch and rate."""
    batch = task["batch"]
    measured.order_us = index_cost(Order(len(source), batch, keep_tail=True))
    measured.quasi_us = index_cost(Order(len(source), batch, keep_tail=True, shuffle=QUASI))
    if task["loader"] is None:
        return
    options: dict[str, Any] = {"recipe": choose_recipe("moco-v2", task["size"], None), "workers": task["threads"]}
    began = perf_counter()
    with make_loader(task["loader"], source, batch=batch, **options) as loader:
        next(iter(loader.epoch(0)))
        measured.first_batch_s = perf_counter() - began
        measured.new_pairs_per_s, batches = rate(loader, task["seconds"], len(loader), walks=1)
        measured.pairs_per_s, _ = rate(loader, task["seconds"], batches)


def rate(loader: Loader, seconds: float, batches: int, walks: int | None = None) -> tuple[float, int]:
    """Pairs a second over the first batches of epoch 1, again and again for so many seconds or walks.

    Returns it, and how many batches a walk got to. Those that lie ready when a walk begins are not counted.
    """
    pairs, spent, walked, reached = 0, 0.0, 0, 0
    while spent < seconds and walked != walks:
        walk = islice(loader.epoch(1), batches)
        reached = sum(1 for _ in islice(walk, PREFETCHED))
        began = perf_counter()
        for views in walk:
            pairs, reached = pairs + len(views), reached + 1
            if spent + perf_counter() - began >= seconds:
                break
        spent, walked = spent + perf_counter() - began, walked + 1
    return pairs / spent, reached


def index_cost(order: Order) -> float:
    """Microseconds an index."""
    steps = min(order.steps(), ORDER_STEPS)
    order.indices(0, 0)
    began = perf_counter()
    indices = sum(len(order.indices(1, step)) for step in range(steps))
    return 1e6 * (perf_counter() - began) / indices


if __name__ == "__main__":
    run_probe(probe)
