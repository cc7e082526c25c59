"""One row of the throughput benchmark in a process of its own: warm, and idle until it is told to measure.

`benchmarks/throughput.py` starts it and speaks to it in lines of JSON:

    → {"workers": 2}     build the loader with so many workers, run it warm     ← {}
    → {"seconds": 3.0}   hand out batches for so long                           ← {"pairs": 640, "seconds": 3.07,
                                                                                   "executor": "fused_cpu",
                                                                                   "routed": 0.0}

What libraries print goes to standard error, which the parent keeps for when a row fails.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment import Recipe, load_recipe
from penstock.errors import UserError, run_command
from penstock.loaders import LOADERS, Loader, Options, Order, make_loader, open_source
from penstock.loaders.make import prepare
from penstock.loaders.pipeline import Decode, PipelineLoader
from penstock.loaders.threads import available_cpus

DECODE_ONLY = "decode-only"
PREFETCHED = 4  # at most so many batches lie ready while a loader waits; DataLoader keeps two for each worker
WARM_BATCHES = 2  # by then everything is compiled; what lies ready is passed over by each measurement


class DecodeOnly(PipelineLoader):
    """Decoding with libjpeg-turbo in our loader's threads, and nothing else: what no loader of these bytes exceeds."""

    def _make(
        self, epoch: int, index: NDArray[np.int64], decode: Decode, part: slice, groups: list[torch.Tensor]
    ) -> None:
        decode(part)


class Stopwatch:
    """Times a loader from batch to batch, within epochs.

    What lies ready when the clock starts was made while other rows were measured, and an epoch of a real set is
    longer than these: so `prefetched` batches are passed over first, at the start and after each epoch's end.

    Args:
        lanes: batches come in bursts of so many (one from each DataLoader worker); only whole bursts are counted.
    """

    def __init__(self, loader: Loader, *, prefetched: int, lanes: int) -> None:
        self.loader, self.prefetched, self.lanes = loader, prefetched, lanes
        self.batches = iter(loader)

    def skip(self, batches: int) -> None:
        while batches > 0:
            if next(self.batches, None) is None:
                self.batches = iter(self.loader)
            else:
                batches -= 1

    def measure(self, seconds: float) -> tuple[int, float]:
        """Pairs handed out, and the seconds they took: at least those asked for."""
        pairs, spent = 0, 0.0
        while spent < seconds:
            more_pairs, more_seconds = self._stretch(seconds - spent)
            pairs, spent = pairs + more_pairs, spent + more_seconds
        return pairs, spent

    def _stretch(self, seconds: float) -> tuple[int, float]:
        self.skip(self.prefetched)
        pairs, start = 0, _now()
        for count, views in enumerate(self.batches, 1):
            pairs += len(views)
            if count % self.lanes == 0 and perf_counter() - start >= seconds:
                break
        else:
            self.batches = iter(self.loader)
        return pairs, _now() - start


def _now() -> float:
    if torch.cuda.is_available():  # a batch counts once it has arrived
        torch.cuda.synchronize()
    return perf_counter()


def build(task: dict[str, Any], workers: int) -> Loader:
    """The loader that the task names."""
    source = open_source(task["data"], limit=task["limit"])
    recipe = choose_recipe(task["recipe"], task["size"], task["views"])
    if task["loader"] == DECODE_ONLY:
        shard = prepare(source, task["reader"])
        return DecodeOnly(shard, Options(recipe=recipe, order=Order(len(shard), task["batch"]), workers=workers))
    options: dict[str, Any] = {"device": "cuda" if torch.cuda.is_available() else "cpu"}
    if not LOADERS[task["loader"]].own_augmentation:
        options |= {"executor": task["executor"], "fallback": task["fallback"]}
    return make_loader(task["loader"], source, recipe=recipe, batch=task["batch"], workers=workers, **options)


def choose_recipe(name: str, size: int, views: int | None) -> Recipe:
    """The recipe with first views of `size` pixels, and so many of them, where a number is given.

    Raises:
        UserError: unknown name, or a number for a recipe whose views are of several kinds.
    """
    recipe = load_recipe(name, size=size)
    if views is None:
        return recipe
    if len(recipe.views) > 1:
        raise UserError(f"--views {views}: the views of {name} are of {len(recipe.views)} kinds: leave --views out")
    return replace(recipe, views=(replace(recipe.views[0], count=views),))


def warm(task: dict[str, Any], workers: int) -> Stopwatch:
    """The task's loader, run until it is warm."""
    processes = task["loader"] == "torchvision"
    watch = Stopwatch(
        build(task, workers), prefetched=2 * workers if processes else PREFETCHED, lanes=workers if processes else 1
    )
    watch.skip(watch.lanes + WARM_BATCHES)
    return watch


def routing(loader: Loader) -> dict[str, Any]:
    """Which executor a loader has, and the share of views that Albumentations has finished for it."""
    executor = loader.executor
    if executor is None or not executor.rows:  # it brings its own augmentation, or only decodes
        return {"executor": None, "routed": None}
    return {"executor": executor.name, "routed": executor.routed / executor.rows}


def stay_within(threads: int) -> None:
    """Keep this process and its children to so many CPUs, where that is fewer than there are."""
    if threads < available_cpus():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def serve(task: dict[str, Any], channel: TextIO) -> int:
    """Answer the parent's lines until it closes the pipe."""
    stay_within(task["threads"])
    watch: Stopwatch | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if "workers" in command:
            if watch:
                watch.loader.close()
            watch, answer = warm(task, command["workers"]), {}
        else:
            assert watch
            pairs, seconds = watch.measure(command["seconds"])
            answer = {"pairs": pairs, "seconds": seconds, **routing(watch.loader)}
        print(json.dumps(answer), file=channel, flush=True)
    return 0


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not be taken for an answer
    main: Callable[[], int] = partial(serve, json.loads(sys.argv[1]), answers)
    run_command(main)
