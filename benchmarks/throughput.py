"""How many pairs of views a second each loader makes here, against torchvision's pipeline in the same run.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --data path/to/photos --size 224 --json throughput.json --plot throughput.png

A pair is one source image with all its views: decoded, augmented, normalised and batched. Every row runs in its own
warm process, which sleeps while the others are measured; rounds go through the rows back and forth, and the median
counts. The baseline runs with the number of DataLoader workers at which it is fastest here. All rows may use the same
CPUs (--workers of them) and read the same images, each a file of its own, from the page cache. Two ceilings are
measured beside them: decode-only (libjpeg-turbo in as many threads, on the bytes that the loader reads) and synthetic
(batches that cost nothing to make).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from penstock.augment import Recipe
from penstock.augment.executors import choose_executor, split_names
from penstock.benchmarks.chart import draw_chart
from penstock.benchmarks.photographs import Photographs, photographs
from penstock.benchmarks.results import check_places, write_results
from penstock.benchmarks.rival import Rival, Row
from penstock.benchmarks.worker import choose_recipe
from penstock.errors import UserError, run_command
from penstock.loaders import LOADERS, missing, open_source
from penstock.loaders.make import check_speed, prepare
from penstock.loaders.threads import available_cpus
from penstock.machine import describe_machine, git_commit, machine_line, versions

BASELINE, DECODE_ONLY, SYNTHETIC = "torchvision", "decode-only", "synthetic"
START_SECONDS = 8.0  # a row's start, for the progress bar: imports, compilation, first batches
RESTLESS = 0.1  # share of one CPU that waiting rows may use before the report warns of it


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "shapes"
    """Images: shapes (embedded), cifar10, cifar100, stl10, imagenette, a folder, or a shard."""
    loaders: tuple[str, ...] = ("all",)
    """Loaders to hold against the baseline and the ceilings; all takes every one."""
    recipe: str = "moco-v2"
    """Augmentations: a recipe's name, or a file NAME.yaml."""
    size: int = 96
    """Side of a (large) view in pixels."""
    views: int | None = None
    """Views of each image; default: the recipe's."""
    executor: str = "auto"
    """The code that makes our loaders' views: reference, fused_cpu, fused_gpu, albumentations, dali, or auto."""
    fallback: str = ""
    """Operations to leave to Albumentations, separated by commas: clahe,solarize."""
    batch: int = 64
    """Images in a batch."""
    workers: int | None = None
    """CPUs that a row may use, and threads that it runs; if not given, all that this process may use."""
    seconds: float = 1.0
    """Length of one measurement, at least."""
    repeats: int = 3
    """Measurements of each row; the median counts."""
    json: Path | None = None
    """Write all that was measured, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the bars into this picture (.png, .svg or .pdf)."""

    @property
    def threads(self) -> int:
        return self.workers or available_cpus()

    @property
    def chosen_recipe(self) -> Recipe:
        return choose_recipe(self.recipe, self.size, self.views)


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    check_speed(config.executor, "cuda" if torch.cuda.is_available() else "cpu")
    choose_executor(config.executor, config.chosen_recipe, fallback=split_names(config.fallback))
    for name in config.loaders:
        if name != "all" and name not in LOADERS:
            raise UserError(f"--loaders {name!r} is not known: choose from all, {', '.join(LOADERS)}")
    for name, least in (("views", 1), ("batch", 1), ("workers", 1), ("repeats", 1), ("seconds", 0.1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: it takes at least {least}")
    check_places(json=config.json, plot=config.plot)


def plan(config: Config, files: Photographs) -> tuple[list[Row], dict[str, str]]:
    """The table's rows, shards made: the loaders, decoding alone for each storage they read, noise.

    Also returns, for each storage, a loader that reads it.
    """
    wanted = {BASELINE, *(LOADERS if "all" in config.loaders else config.loaders)} - {SYNTHETIC}
    source = open_source(files.data, limit=files.limit)
    rows: list[Row] = []
    readers: dict[str, str] = {}
    for name in (name for name in LOADERS if name in wanted):
        row = Row(loader=name, workers=config.threads, error=missing(name))
        if not row.error:
            row.storage = prepare(source, name, workers=config.threads).storage
            readers.setdefault(row.storage, name)
        rows.append(row)
    ceilings = [Row(loader=DECODE_ONLY, storage=storage, workers=config.threads) for storage in readers]
    return [*rows, *ceilings, Row(loader=SYNTHETIC, workers=config.threads)], readers


class Clock:
    """The progress bar: seconds of work done and still expected."""

    def __init__(self, console: Console, total: float) -> None:
        columns = (TextColumn("{task.description:<34}"), BarColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self.task = self.progress.add_task("", total=total)

    def step(self, text: str, seconds: float) -> None:
        """Say what is about to be done, and count what it is expected to take."""
        self.progress.update(self.task, description=text, advance=seconds)


@contextmanager
def warm_rivals(
    rows: list[Row], readers: dict[str, str], config: Config, files: Photographs, clock: Clock
) -> Iterator[list[Rival]]:
    """A warm process for each row, started as many at once as there are CPUs; ended with the block."""
    settings = {key: getattr(config, key) for key in ("recipe", "size", "views", "executor", "batch", "threads")}
    settings["fallback"] = split_names(config.fallback)

    def start(row: Row) -> Rival:
        reader = readers[row.storage] if row.loader == DECODE_ONLY and row.storage else row.loader
        task = {"loader": row.loader, "reader": reader, "data": files.data, "limit": files.limit, **settings}
        rival = Rival(row, task)
        stack.callback(rival.close)
        rival.warm(config.threads)
        clock.step(f"warmed {row.loader}", START_SECONDS)
        return rival

    with ExitStack() as stack:
        with ThreadPoolExecutor(config.threads) as pool:
            rivals = list(pool.map(start, rows))
        yield rivals


def worker_counts(cpus: int) -> list[int]:
    """Numbers of DataLoader workers worth trying: up to one more than there are CPUs; on large machines by steps."""
    fewest, step = (1, 1) if cpus <= 4 else (cpus // 2, cpus // 4)
    return sorted({*range(fewest, cpus, step), cpus, cpus + 1})


def tune(baseline: Rival, config: Config, clock: Clock) -> None:
    """Leave the baseline with the number of workers at which it is fastest."""
    for count in worker_counts(config.threads):
        clock.step(f"{BASELINE} with {count} workers", 3 * config.seconds)
        baseline.warm(count)
        baseline.settle()
        baseline.row.tried[count] = baseline.measure(config.seconds)
    best = max(baseline.row.tried, key=lambda count: baseline.row.tried[count])
    if best != baseline.row.workers:
        baseline.warm(best)


def race(rivals: list[Rival], config: Config, clock: Clock) -> float:
    """Measure each row once a round. Returns the most CPUs' worth of time that waiting rows used."""
    tune(rivals[0], config, clock)
    for rival in rivals:
        rival.settle()
    turns = [rivals if turn % 2 == 0 else rivals[::-1] for turn in range(config.repeats)]
    return max(measure_beside(rival, rivals, config.seconds, clock) for turn in turns for rival in turn)


def measure_beside(rival: Rival, rivals: list[Rival], seconds: float, clock: Clock) -> float:
    """Measure one row once; returns how many CPUs' worth of time the others used meanwhile."""
    clock.step(f"measuring {rival.row.loader}", 2 * seconds)
    others = [other for other in rivals if other is not rival]
    before, began = sum(other.cpu_seconds() for other in others), perf_counter()
    rival.row.repeats.append(rival.measure(seconds))
    return (sum(other.cpu_seconds() for other in others) - before) / (perf_counter() - began)


def results(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as the JSON holds them: with the ratio to the baseline and the share of the decoding ceiling."""
    baseline = rows[0].pairs_per_s
    ceilings = {row.storage: row.pairs_per_s for row in rows if row.loader == DECODE_ONLY}
    found = []
    for row in rows:
        speed, ceiling = row.pairs_per_s, ceilings.get(row.storage)
        ratio = speed / baseline if speed and baseline else None
        share = speed / ceiling if speed and ceiling else None
        found.append({**asdict(row), "pairs_per_s": speed, "ratio": ratio, "ceiling_share": share})
    return found


def table(report: dict[str, Any]) -> Table:
    settings = report["settings"]
    shown = Table(
        title=f"{settings['recipe']}, {settings['views']} views of {settings['size']} px, batches of "
        f"{settings['batch']}: {report['images']:,} files of {settings['data']}\n{machine_line(report['machine'])}",
        caption="spread: slowest to fastest round; ceiling: share of decode-only, same bytes",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown.add_column("loader", no_wrap=True)
    shown.add_column("storage", no_wrap=True)
    for name in ("workers", "pairs/s", "spread", "ratio", "ceiling"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in report["rows"]:
        shown.add_row(row["loader"], row["storage"] or "", *_numbers(row))
    return shown


def _numbers(row: dict[str, Any]) -> list[str]:
    if row["pairs_per_s"] is None:
        return ["", "-", "", "", ""]
    spread = f"{min(row['repeats']):,.0f}-{max(row['repeats']):,.0f}"
    ratio = f"{row['ratio']:.2f}×" if row["ratio"] else ""
    share = f"{row['ceiling_share']:.0%}" if row["ceiling_share"] else ""
    return [str(row["workers"]), f"{row['pairs_per_s']:,.0f}", spread, ratio, share]


def report_of(
    config: Config, command: list[str], files: Photographs, rows: list[Row], waiting: float
) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("json", "plot")}
    return {
        "benchmark": "throughput",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/throughput.py", *command]),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": versions(),
        "settings": {**settings, "views": config.chosen_recipe.count, "workers": config.threads},
        "images": files.count,
        "distinct_images": files.distinct,
        "waiting_cpus": waiting,
        "rows": results(rows),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table, and what a reader must know beside it."""
    console.print(table(report))
    for row in report["rows"]:
        if row["routed"]:
            console.print(f"{row['loader']}: {row['executor']}, {row['routed']:.0%} of the views by Albumentations")
        if row["error"]:
            console.print(f"{row['loader']}: {row['error']}", markup=False)
    if report["waiting_cpus"] > RESTLESS:
        console.print(f"rows that should rest used {report['waiting_cpus']:.1f} CPUs: all figures are too low")


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison. Returns 1 where a row failed; one whose package is not installed is no failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.cli(Config, description=__doc__, args=arguments)
    check(config)
    console = Console(highlight=False)
    files = photographs(config.data, batch=config.batch)
    rows, readers = plan(config, files)
    runnable = [row for row in rows if not row.error]
    work = len(runnable) * (START_SECONDS + 2 * config.seconds * config.repeats)
    clock = Clock(console, work + 3 * config.seconds * len(worker_counts(config.threads)))
    with clock.progress, warm_rivals(runnable, readers, config, files, clock) as rivals:
        waiting = race(rivals, config, clock)
    report = report_of(config, arguments, files, rows, waiting)
    show(report, console)
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return int(any(row.error for row in runnable))


if __name__ == "__main__":
    run_command(main)
