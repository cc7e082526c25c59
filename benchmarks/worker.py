"""One row of the throughput benchmark in a process of its own: warm, and idle until it is told to measure.

`benchmarks/throughput.py` starts it and speaks to it in lines of JSON; once everything is imported it says so:

                         ← {"imports": 3.1}
    → {"workers": 2}     build the loader with so many workers, run it warm     ← {"start": 0.4}
    → {"seconds": 3.0}   hand out batches for so long                           ← {"pairs": 640, "seconds": 3.07,
                                                                                   "cpu": 6.1, "executor": "fused_cpu",
                                                                                   "routed": 0.0}

`start` are the seconds from opening the set to the first batch. What libraries print goes to standard error, which the
parent keeps for when a row fails.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from importlib import import_module
from time import perf_counter, time
from typing import Any, TextIO

import psutil
import torch

from penstock.augment import Recipe, load_recipe
from penstock.benchmarks.answers import run_worker
from penstock.benchmarks.ceilings import Ceiling
from penstock.benchmarks.measure import Stopwatch
from penstock.benchmarks.peers import PEERS, make_peer, peer_class
from penstock.errors import UserError
from penstock.loaders import LOADERS, Loader, make_loader, open_source
from penstock.loaders.threads import available_cpus

CEILINGS = ("decode-only", "read-only")
PREFETCHED = 4  # at most so many of our batches lie ready while a loader waits; DataLoader keeps two for each worker
WARM_BATCHES = 2  # by then everything is compiled; what lies ready is passed over by each measurement


def build(task: dict[str, Any], workers: int) -> Any:
    """What the task names: a loader of ours, a peer, or a ceiling."""
    name, batch = task["loader"], task["batch"]
    source = open_source(task["data"], limit=task["limit"])
    recipe = choose_recipe(task["recipe"], task["size"], task["views"])
    if name in CEILINGS:
        return Ceiling(source, batch=batch, workers=workers)
    if name not in LOADERS:
        return make_peer(name, source, recipe, batch=batch, workers=workers)
    options: dict[str, Any] = {"device": "cuda" if torch.cuda.is_available() else "cpu"}
    if not LOADERS[name].own_augmentation:
        options |= {"executor": task["executor"], "fallback": task["fallback"]}
    return make_loader(name, source, recipe=recipe, batch=batch, workers=workers, **options)


def choose_recipe(name: str, size: int, views: int | None) -> Recipe:
    """The recipe with first views of `size` pixels in every epoch, and so many of them, where a number is given.

    Raises:
        UserError: unknown name, or a number for a recipe whose views are of several kinds.
    """
    recipe = replace(load_recipe(name, size=size), growth=None)
    if views is None:
        return recipe
    if len(recipe.views) > 1:
        raise UserError(f"--views {views}: the views of {name} are of {len(recipe.views)} kinds: leave --views out")
    return replace(recipe, views=(replace(recipe.views[0], count=views),))


def warm(task: dict[str, Any], workers: int) -> tuple[Stopwatch, float]:
    """The task's loader, run until it is warm; and the seconds to its first batch."""
    name, began = task["loader"], perf_counter()
    peer = PEERS.get(name)
    processes = peer.processes if peer else name == "torchvision"
    ready = 2 * workers if processes else peer.ready if peer else PREFETCHED
    watch = Stopwatch(build(task, workers), prefetched=ready, lanes=workers if processes else 1)
    watch.skip(1)
    start = perf_counter() - began
    watch.skip(watch.lanes + WARM_BATCHES - 1)
    return watch, start


def routing(loader: Any) -> dict[str, Any]:
    """Which executor a loader has, and the share of views that Albumentations has finished for it."""
    executor = loader.executor if isinstance(loader, Loader) else None
    if executor is None or not executor.rows:  # it brings its own augmentation, or only decodes
        return {"executor": None, "routed": None}
    return {"executor": executor.name, "routed": executor.routed / executor.rows}


def stay_within(threads: int) -> None:
    """Keep this process and its children to so many CPUs, where that is fewer than there are."""
    if threads < available_cpus():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def import_package(name: str) -> None:
    """Import what a row would import while it is built, so that its start does not count it."""
    info = LOADERS.get(name)
    if info and info.module:
        import_module(info.module)
    elif name in PEERS:
        peer_class(name)


def serve(task: dict[str, Any], channel: TextIO) -> int:
    """Answer the parent's lines until it closes the pipe."""

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=channel, flush=True)

    stay_within(task["threads"])
    import_package(task["loader"])
    answer(imports=time() - psutil.Process().create_time())
    watch: Stopwatch | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if "workers" in command:
            if watch:
                watch.close()
            watch, start = warm(task, command["workers"])
            answer(start=start)
        else:
            assert watch
            answer(**asdict(watch.measure(command["seconds"])), **routing(watch.loader))
    return 0


if __name__ == "__main__":
    run_worker(serve)
