"""From a loader's name to a loader: a shard made where it needs one, then its class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from penstock.augment.recipe import Recipe
from penstock.errors import MissingExtra, UserError
from penstock.files import cache_folder
from penstock.loaders.contract import Loader, Options
from penstock.loaders.lock import locked
from penstock.loaders.order import Order, choose_shuffle
from penstock.loaders.pipeline import PipelineLoader
from penstock.loaders.sources.base import Mended, Source
from penstock.loaders.threads import available_cpus

LOG = logging.getLogger(__name__)
NAME = 50  # letters of a source's name in a shard's: a file's name takes 255 bytes, and a letter up to four
DTYPES = torch.float32, torch.float16, torch.bfloat16  # that views can be of


@dataclass(frozen=True, kw_only=True)
class LoaderInfo:
    """What a loader is, what it reads and what it needs.

    Attributes:
        about: one line.
        reads: shard format it wants (`beton`, `webdataset`), or None where it takes any source as it is.
        own_augmentation: whether it makes the views itself, and so takes no executor.
        module, extra: the optional package it imports, and the extra that installs it; None where it needs none.
    """

    about: str
    reads: str | None = None
    own_augmentation: bool = False
    module: str | None = None
    extra: str | None = None


LOADERS: dict[str, LoaderInfo] = {
    "torchvision": LoaderInfo(
        about="the baseline: PIL, torchvision's transforms, DataLoader workers", own_augmentation=True
    ),
    "folder": LoaderInfo(about="the files as they are, decoded in threads, once for all views"),
    "ffcv": LoaderInfo(about="our reader of .beton shards, one decode for all views", reads="beton"),
    "resident": LoaderInfo(about="every image decoded once, then held in RAM (or GPU memory)"),
    "auto": LoaderInfo(about="tries the others for seconds and takes the fastest of those that give the same views"),
    "dali": LoaderInfo(
        about="DALI decodes (nvJPEG on a GPU), our executor makes the views",
        reads="webdataset",
        module="nvidia.dali",
        extra=f"dali-cuda{(torch.version.cuda or '13').split('.')[0]}",  # the build that goes with this torch
    ),
    "ffcv-package": LoaderInfo(
        about="the ffcv package's own loader and operations, for comparison",
        reads="beton",
        own_augmentation=True,
        module="ffcv",
        extra="ffcv",
    ),
    "synthetic": LoaderInfo(about="noise that costs nothing to make: the ceiling", own_augmentation=True),
}


def missing(name: str) -> str | None:
    """None where the loader can run here, else one line that names the extra to install."""
    info = LOADERS[name]
    if info.module is None:
        return None
    try:
        found = find_spec(info.module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is absent
        found = False
    return None if found else str(MissingExtra(f"{name}'s package {info.module}", info.extra or ""))


def _loader_class(name: str) -> type[Loader]:
    """Import a loader's class only when it is asked for: some bring packages that take seconds to import."""
    match name:
        case "torchvision":
            from penstock.loaders.torchvision_baseline import TorchvisionLoader

            return TorchvisionLoader
        case "resident":
            from penstock.loaders.resident import ResidentLoader

            return ResidentLoader
        case "dali":
            from penstock.loaders.dali import DALILoader

            return DALILoader
        case "ffcv-package":
            from penstock.loaders.ffcv_package import FFCVPackageLoader

            return FFCVPackageLoader
        case "synthetic":
            from penstock.loaders.synthetic import SyntheticLoader

            return SyntheticLoader
        case _:
            return PipelineLoader


def check_name(name: str) -> None:
    """Raises UserError for a name that is no loader's, MissingExtra for one whose package is not installed."""
    if name not in LOADERS:
        raise UserError(f"--loader {name!r} is not known: choose one of {', '.join(LOADERS)}")
    if line := missing(name):
        raise UserError(line)


def check_executor(name: str, executor: str, fallback: Sequence[str]) -> None:
    """Raises UserError where an executor, or what it leaves to Albumentations, is chosen for a loader that has none."""
    for option, given in (("--executor", executor != "auto"), ("--fallback", any(fallback))):
        if given and LOADERS[name].own_augmentation:
            raise UserError(f"{option}: the {name} loader brings its own augmentation; leave {option} out")


def check_speed(executor: str, device: torch.device | str) -> None:
    """Raises UserError for the executor that would not get anywhere. Commands ask; the library runs it all the same."""
    if executor == "fused_gpu" and torch.device(device).type != "cuda":
        raise UserError(
            "--executor fused_gpu needs a GPU: without one it runs in Triton's interpreter, minutes a batch:"
            " use --executor fused_cpu"
        )


def shard_path(
    source: Source,
    name: str,
    *,
    on_error: str = "stop",
    cache: Path | None = None,
    fingerprint: str | None = None,
) -> Path | None:
    """Where the loader's shard of the source is, or would be; None where the loader reads the source as it is.

    Args:
        fingerprint: the source's, from callers that have it: of a million files it takes ten seconds.
    """
    format = LOADERS[name].reads
    shard_storages = {"beton": ("jpeg", "raw", "mixed"), "webdataset": ("webdataset",)}
    if format is None or source.storage in shard_storages[format]:
        return None
    suffix = {"beton": ".beton", "webdataset": ".tar"}[format]
    whole = "" if on_error == "stop" else "-readable"
    digest = fingerprint or source.fingerprint()
    named = source.name.replace("/", "-")[:NAME]
    return (cache or cache_folder()) / "shards" / f"{named}-{digest[:16]}{whole}{suffix}"


def prepare(
    source: Source, name: str, *, workers: int | None = None, cache: Path | None = None, on_error: str = "stop"
) -> Source:
    """The source in the form that the loader reads: itself, or a shard in the cache folder, converted once.

    Broken images that are to be skipped are not in the shard; its sidecar lists them, and indices stay the source's.
    """
    shard = shard_path(source, name, on_error=on_error, cache=cache)
    if shard is None:
        return source
    from penstock.loaders.convert import convert
    from penstock.loaders.sources import open_source

    if not shard.exists():
        with locked(shard):
            if not shard.exists():  # else another process was first
                convert(source, shard, check="decode", workers=workers or available_cpus(), on_error=on_error)
    opened = open_source(str(shard))
    return _under_the_sources_indices(opened) if on_error == "skip" else opened


def _under_the_sources_indices(shard: Source) -> Source:
    sidecar = getattr(shard, "sidecar", None)
    left_out = sidecar.provenance.skipped if sidecar else []
    for broken in left_out:
        LOG.warning("skipped %s: %s", broken["location"], broken["reason"])
    return Mended(shard, {broken["sample"]: broken["reason"] for broken in left_out}) if left_out else shard


def make_loader(
    name: str,
    source: Source,
    *,
    recipe: Recipe,
    batch: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    order: str = "auto",
    keep_tail: bool = False,
    executor: str = "auto",
    fallback: Sequence[str] = (),
    on_error: str = "stop",
    budget: int | None = None,
    cache: Path | None = None,
) -> Loader:
    """A loader of the source's views, behind the contract of `loaders/contract.py`.

    Args:
        name: one of `LOADERS`.
        source: see `open_source`. One that the loader does not read is converted once, into the cache folder.
        recipe: which views are made of each image.
        batch: images (not views) per step on this rank.
        seed: of the order and of every drawn value.
        rank, world: this process's place among those that share an epoch.
        workers: threads (processes for `torchvision`) that decode and augment; None takes all CPUs there are.
        device, dtype: where views end up, and their type.
        order: `full` permutes all samples, `quasi` reads a shard in long runs, `stored` keeps the source's order;
            `auto` takes `quasi` for a shard larger than memory, else `full` (`loaders/order.py`).
        keep_tail: give an epoch's last, smaller batch too.
        executor, fallback: the code that moves the pixels, and the operations that it leaves to Albumentations
            (`augment/executors.py`); only for loaders that do not bring their own augmentation.
        on_error: `stop`, or `skip`: an image that cannot be read gives way to the next one of the set, and is counted
            in the loader's `skipped`.
        budget: bytes of memory that `resident` may fill, on a GPU of its memory; None takes half of what is free.
        cache: where shards are kept; None takes `$PENSTOCK_CACHE` or `~/.cache/penstock`.

    Raises:
        UserError: unknown name, package not installed, batch larger than the set, an executor that cannot do this.
        BrokenImage: while iterating, or while converting.
    """
    check_name(name)
    check_executor(name, executor, fallback)
    workers = available_cpus() if workers is None else workers
    if workers < 1 or dtype not in DTYPES:
        floats = ", ".join(map(str, DTYPES))
        raise UserError(f"workers={workers}, dtype={dtype}: it takes one thread at least, and views of {floats}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: torch finds no GPU here; use device=cpu")
    if name == "auto" and order.startswith("quasi"):
        raise UserError("--loader auto with --order quasi: name a loader that reads a shard, such as --loader ffcv")
    if name == "auto":
        from penstock.loaders.auto import choose_loader

        choice = choose_loader(
            source,
            recipe=recipe,
            batch=batch,
            workers=workers,
            device=device,
            dtype=dtype,
            executor=executor,
            fallback=fallback,
            on_error=on_error,
            budget=budget,
            cache=cache,
            speaks=rank == 0,
        )
        name = choice.name
    source = prepare(source, name, workers=workers, cache=cache, on_error=on_error)
    stored_bytes = None if name == "resident" else source.stored_bytes
    shuffle = choose_shuffle(order, samples=len(source), stored_bytes=stored_bytes)
    options = Options(
        recipe=recipe,
        order=Order(len(source), batch, seed=seed, rank=rank, world=world, shuffle=shuffle, keep_tail=keep_tail),
        workers=workers,
        device=torch.device(device),
        dtype=dtype,
        executor=executor,
        fallback=tuple(fallback),
        on_error=on_error,
        budget=budget,
    )
    return _loader_class(name)(source, options)
