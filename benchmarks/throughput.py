"""How many pairs of views a second each loader makes here, against torchvision's pipeline in the same run.

    python benchmarks/throughput.py --quick
    python benchmarks/throughput.py --data path/to/photos --json throughput.json --plot throughput.png
    python benchmarks/throughput.py --data path/to/photos --cifar cifar10 --scaling --start     # all there is

A pair is one source image with all its views: decoded, augmented, normalised and batched. A row is a loader and the
storage that it reads: the original `files`; a `.beton` of `jpeg` (max side 400, quality 90) or `raw` pixels (short side
256); `webdataset`, a tar of the original bytes. Peers make the same list of augmentations with other packages; what
differs is said below the table.

Every row runs in its own warm process, which sleeps while the others are measured; rounds go through the rows back and
forth, and the median counts. The baseline and the peers run with the number of workers at which they are fastest here.
All rows may use the same CPUs (--workers of them) and read the same images, each one of its own, from the page cache.
Beside them stand ceilings: decode-only (libjpeg-turbo in as many threads, on the bytes that the loader reads; a loader
with a faster decoder may exceed it), read-only (for raw) and synthetic (batches that cost nothing to make).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console

from penstock.augment.executors import choose_executor, split_names
from penstock.benchmarks.chart import draw_chart
from penstock.benchmarks.peers import PEERS
from penstock.benchmarks.plan import LARGEST, OURS, Setting, Table, default_size, plan_cifar, plan_photographs
from penstock.benchmarks.race import COLD_SECONDS, Clock, cold_start, expected, run
from penstock.benchmarks.report import report_of, show
from penstock.benchmarks.results import check_places, write_results
from penstock.benchmarks.worker import choose_recipe
from penstock.errors import UserError, run_command
from penstock.loaders import open_source
from penstock.loaders.make import check_speed
from penstock.loaders.threads import available_cpus
from penstock.options import read_options

CIFAR_RECIPE, CIFAR_SIZE, CIFAR_BATCH = "moco-cifar", 32, 256


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "shapes"
    """Images: shapes (embedded), cifar10, cifar100, stl10, imagenette, a folder, or a shard."""
    loaders: tuple[str, ...] = ("all",)
    """Our loaders to hold against the baseline: all, none, or some of folder, ffcv, resident, dali."""
    peers: tuple[str, ...] = ("all",)
    """Other packages' pipelines: all, none, or some of torchvision-v2, albumentations, webdataset, spdl, dali-native,
    ffcv-package."""
    cifar: str | None = None
    """Make a second table, of these small images at 32 px (moco-cifar, batches of 256): cifar10, or cifar10:FOLDER."""
    scaling: bool = False
    """Measure our rows and the baseline on fewer CPUs, too: 1, 2, 4 and so on."""
    start: bool = False
    """Time our rows' and the baseline's first start, too: nothing compiled, images not in the page cache."""
    quick: bool = False
    """A look: where nothing else is said, one round of a fifth of a second, and no peers."""
    recipe: str = "moco-v2"
    """Augmentations: a recipe's name, or a file NAME.yaml."""
    size: int | None = None
    """Side of a (large) view in pixels; if not given, 224, or the images' own where they are smaller."""
    views: int | None = None
    """Views of each image; if not given, the recipe's."""
    executor: str = "auto"
    """The code that makes our loaders' views: reference, fused_cpu, fused_gpu, albumentations, dali, or auto."""
    fallback: str = ""
    """Operations to leave to Albumentations, separated by commas: clahe,solarize."""
    batch: int = 64
    """Images in a batch."""
    workers: int | None = None
    """CPUs that a row may use, and threads that it runs; if not given, all that this process may use."""
    seconds: float = 2.0
    """Length of one measurement, at least."""
    repeats: int = 5
    """Measurements of each row; the median counts."""
    json: Path | None = None
    """Write all that was measured, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the bars into this picture (.png, .svg or .pdf)."""

    @property
    def threads(self) -> int:
        return self.workers or available_cpus()


QUICK = Config(quick=True, seconds=0.2, repeats=1, peers=("none",))


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    chosen("--loaders", config.loaders, OURS)
    chosen("--peers", config.peers, PEERS)
    recipe = choose_recipe(config.recipe, config.size or LARGEST, config.views)
    check_speed(config.executor, "cuda" if torch.cuda.is_available() else "cpu")
    choose_executor(config.executor, recipe, fallback=split_names(config.fallback))
    for name, least in (("views", 1), ("batch", 1), ("workers", 1), ("repeats", 1), ("seconds", 0.1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: it takes at least {least}")
    check_places(json=config.json, plot=config.plot)


def chosen(option: str, names: Collection[str], known: Collection[str]) -> list[str]:
    """The names that all, none or a choice stand for, in the order of `known`. Raises UserError."""
    for name in names:
        if name not in {"all", "none", *known}:
            raise UserError(f"{option} {name!r} is not known: choose from all, none, {', '.join(known)}")
    return [name for name in known if "all" in names or name in names]


def plan(config: Config) -> list[Table]:
    """The tables, with their rows and their shards made."""
    source = open_source(config.data)
    small_source = open_source(config.cifar) if config.cifar else None  # before the first shard is made
    setting = Setting(
        recipe=config.recipe,
        size=config.size or default_size(source),
        views=config.views,
        batch=config.batch,
        executor=config.executor,
        fallback=split_names(config.fallback),
        threads=config.threads,
    )
    loaders, others = chosen("--loaders", config.loaders, OURS), chosen("--peers", config.peers, PEERS)
    tables = [plan_photographs(config.data, setting, loaders=loaders, others=others, name=source.name)]
    if config.cifar and small_source:
        small = replace(setting, recipe=CIFAR_RECIPE, size=CIFAR_SIZE, views=None, batch=CIFAR_BATCH)
        tables.append(plan_cifar(config.cifar, small, loaders=loaders, name=small_source.name))
    return tables


def measure(config: Config, tables: list[Table], clock: Clock) -> list[Table]:
    """Run what was planned; returns the first table's own rows on more and more CPUs, where that is asked for."""
    first, own = tables[0], tables[0].own_rows()
    fewer = [first.within(cpus) for cpus in powers_of_two(config.threads)] if config.scaling else []
    starters = own if config.start else []
    clock.expect(sum(expected(table, config.seconds, config.repeats) for table in (*tables, *fewer)))
    clock.expect(COLD_SECONDS * len(starters))
    for table in (*tables, *fewer):
        run(table, seconds=config.seconds, repeats=config.repeats, clock=clock)
    for row in starters:
        cold_start(first, row, clock)
    return [*fewer, replace(first, rows=own)] if fewer else []


def powers_of_two(cpus: int) -> list[int]:
    """Those below the number of CPUs."""
    return [1 << power for power in range(cpus.bit_length()) if 1 << power < cpus]


def settings_of(config: Config, tables: list[Table]) -> dict[str, Any]:
    """What was asked for, as the JSON holds it: data sets by name."""
    return {
        "data": [table.name for table in tables],
        "loaders": list(config.loaders),
        "peers": list(config.peers),
        "workers": config.threads,
        "seconds": config.seconds,
        "repeats": config.repeats,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison. Returns 1 where a row failed; one whose package is not installed is no failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = read_options(Config, __doc__, arguments, quick=QUICK)
    check(config)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    tables = plan(config)
    runnable = [row for table in tables for row in table.rows if not row.error]
    clock = Clock(console)
    with clock.progress:
        scaling = measure(config, tables, clock)
    report = report_of(arguments, settings_of(config, tables), tables, scaling)
    show(report, console)
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return int(any(row.error for row in runnable))


if __name__ == "__main__":
    run_command(main)
