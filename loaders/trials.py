"""Loaders tried on a part of a set: what each would reach on the whole of it, and how long it would prepare it first.

A few hundred images, spread over the set, are loaded again and again, by all loaders in turns: whatever else the
machine does meanwhile slows all of them down. So images come from memory; where the disk is what limits, shards gain
more than is measured here. Loaders that read shards get one of these images, which tells how long the set would take.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.errors import BrokenImage
from penstock.loaders.contract import Loader
from penstock.loaders.convert import convert
from penstock.loaders.formats import open_shard
from penstock.loaders.make import make_loader, shard_path
from penstock.loaders.order import Order
from penstock.loaders.sources.base import Source, Subset

ROUNDS = 3  # in each of which every loader has its turn: what disturbs the machine for a moment hits one of three
SLOWEST = 3.0  # times the seconds that were meant: large batches or a slow executor are then left at fewer rounds
IMAGES = 256  # that are tried, or as many as a batch holds
SIZED = 32  # of the set's images tell how large they are
PIXELS = 5_000_000  # of a tried batch for each worker, images and views together: a short piece of work
STARTING = 2  # batches before the clock starts: by then all threads are at work


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was found out about one loader.

    Attributes:
        pairs_per_s: images a second, all views made of each; 0 where it failed.
        preparation_s: what the whole set would need before its first batch; 0 for loaders that read it as it is.
        failure: why it cannot be used; None where it can.
    """

    pairs_per_s: float = 0.0
    preparation_s: float = 0.0
    failure: str | None = None

    def __post_init__(self) -> None:
        if self.pairs_per_s < 0 or self.preparation_s < 0 or (self.pairs_per_s > 0) == isinstance(self.failure, str):
            raise ValueError(f"not a trial: {self}")  # a file of them was changed


def image_pixels(source: Source, *, on_error: str) -> float:
    """Of an image, on average, as some that are spread over the set tell. Raises BrokenImage."""
    found = []
    for index in spread(len(source), SIZED):
        try:
            heights, widths = source.sizes(index[None])
            found.append(int(heights[0] * widths[0]))
        except BrokenImage:
            if on_error != "skip":
                raise
    return float(np.mean(found)) if found else 1.0


def spread(length: int, count: int) -> NDArray[np.int64]:
    """At most `count` positions in a set, at equal distances."""
    return np.unique(np.linspace(0, length - 1, min(length, count)).astype(np.int64))


def measure(
    names: Sequence[str], source: Source, *, batch: int, seconds: float, options: Mapping[str, Any]
) -> dict[str, Trial]:
    """Try loaders on a part of the set, in turns. One that fails, for whatever reason, is left out of the rest.

    Args:
        batch: images of a tried batch; see `tried_batch`.
        seconds: for which each loader's batches are counted.
        options: what `make_loader` takes besides.

    Raises:
        Exception: what `folder` raised, where none is left.
    """
    sample = _Sample(source, spread(len(source), max(IMAGES, batch)))
    rates: dict[str, list[float]] = {name: [] for name in names}
    preparation: dict[str, float] = {}
    loaders: dict[str, Loader] = {}
    errors: dict[str, Exception] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder, ExitStack() as stack:
        for name in names:
            with _noting(errors, name):
                loader, each = _build(name, sample, min(batch, len(sample)), options, Path(folder))
                loaders[name], preparation[name] = stack.enter_context(loader), each * len(source)
                rate(loader, 0.0)  # whatever is loaded or compiled at the first batches
        latest = perf_counter() + SLOWEST * seconds * len(loaders)
        for round in range(ROUNDS):
            for name in [name for name in loaders if name not in errors]:
                if not round or perf_counter() < latest:
                    with _noting(errors, name):
                        rates[name].append(rate(loaders[name], seconds / ROUNDS))
    if len(errors) == len(names):
        raise errors["folder"]
    return {
        name: Trial(failure=_line(errors[name]))
        if name in errors
        else Trial(pairs_per_s=median(rates[name]), preparation_s=preparation[name])
        for name in names
    }


@contextmanager
def _noting(errors: dict[str, Exception], name: str) -> Iterator[None]:
    """Keep what a loader raises, and go on: packages that decode raise whatever they like, and others may do better."""
    try:
        yield
    except Exception as error:
        errors[name] = error


def _build(name: str, sample: Subset, batch: int, options: Mapping[str, Any], folder: Path) -> tuple[Loader, float]:
    """The loader on the sample, and how many seconds it took to prepare each image."""
    begin = perf_counter()
    source = _as_shard(name, sample, options, folder)
    loader = make_loader(name, source, batch=batch, **options)
    prepared = perf_counter() - begin if name == "resident" or source is not sample else 0.0
    loader.order = _Unending(len(source), batch)
    return loader, prepared / len(sample)


def _as_shard(name: str, sample: Subset, options: Mapping[str, Any], folder: Path) -> Source:
    """The sample as the loader reads it: itself, or a shard of it like that which `prepare` would make of the set."""
    shard = shard_path(sample, name, cache=folder)
    if shard is None:
        return sample
    shard.parent.mkdir(exist_ok=True)
    convert(sample, shard, workers=options["workers"], on_error=options["on_error"], progress=False)
    return open_shard(shard)


class _Sample(Subset):
    """Some images of a set, for files that are soon thrown away: that of a million would take ten seconds to name."""

    def fingerprint(self) -> str:
        return "sample"


class _Unending(Order):
    """One epoch after the other as if they were one, so that no pipe runs dry at the end of a small sample."""

    def steps(self, consumed: int = 0) -> int:
        return sys.maxsize

    def indices(self, epoch: int, step: int, consumed: int = 0) -> NDArray[np.int64]:
        passed, step = divmod(step, super().steps())
        return super().indices(epoch + passed, step)


def rate(loader: Loader, seconds: float) -> float:
    """Images a second that the loader hands out, in whole batches, once all of its threads are at work.

    What it has begun when the time is over is dropped: it then rests while others are measured.
    """
    batches = loader.epoch(0)
    for _ in range(STARTING):
        next(batches)
    start, images = _now(loader), 0
    for views in batches:
        images += len(views)
        if (spent := _now(loader) - start) >= seconds:
            break
    return images / spent


def _now(loader: Loader) -> float:
    if loader.options.device.type == "cuda":  # a batch counts once it has arrived
        torch.cuda.synchronize(loader.options.device)
    return perf_counter()


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def tried_batch(batch: int, pixels: float, options: Mapping[str, Any]) -> int:
    """Images of a tried batch: as many as are asked for, or fewer where such a batch would take too long."""
    work = pixels + sum(view.count * view.size**2 for view in options["recipe"].views)
    return min(batch, options["workers"] * max(1, round(PIXELS / work)))
