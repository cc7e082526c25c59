"""What a set costs as it grows: opening it, its index in memory, an epoch's order, the first batch, the rate.

    python benchmarks/scale.py --quick
    python benchmarks/scale.py --data path/to/photos --json scale.json --plot scale.png

For 10 thousand, 100 thousand, 1.28 million (ImageNet) and 100 million samples: our readers beside the ffcv package's
Loader and torchvision's ImageFolder with a `torch.randperm`. Tables, indexes and file names are as real ones, the
pixels of a few pictures are repeated (`benchmarks/scale_sets.py`). Each figure is the median of fresh processes, which
open the set from the page cache (`benchmarks/scale_probe.py` says what is counted).
The sets are written to a temporary folder and deleted once measured; 100 million samples take 5.6 GB of disk there.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

import psutil
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.progress import Progress
from rich.table import Table

import penstock
from penstock.benchmarks.results import check_places, write_results
from penstock.benchmarks.scale_chart import draw_chart
from penstock.benchmarks.scale_probe import QUASI
from penstock.benchmarks.scale_sets import bytes_on_disk, write_set
from penstock.errors import UserError, run_command
from penstock.loaders import LOADERS, Order, Source, missing, open_source
from penstock.loaders.pipeline import compile_views
from penstock.loaders.threads import available_cpus
from penstock.machine import describe_machine, git_commit, machine_line, versions

SAMPLES, QUICK_SAMPLES = (10_000, 100_000, 1_280_000, 100_000_000), (1_000, 10_000)
FEWEST, SMALL = 100, 64  # samples of a set, and of the one that each process opens before the clock starts
IMAGENET = 1_280_000
BATCHES = 16  # of an epoch, at least: smaller sets have smaller batches


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Whose cost is measured.

    Attributes:
        kind: of set that it reads: `beton`, `webdataset` or `files`.
        loader: of ours, which hands out batches; None where only the index and the order are measured.
        most: samples up to which it is measured, and `why` not above.
    """

    kind: str
    loader: str | None = None
    most: int | None = None
    why: str = ""


CONTENDERS = {
    "ffcv": Contender(kind="beton", loader="ffcv"),
    "resident": Contender(kind="beton", loader="resident", most=100_000, why="it holds all pixels: 3 KB a sample here"),
    "webdataset": Contender(kind="webdataset", loader="folder", most=IMAGENET, why="its index is text, and read whole"),
    "folder": Contender(kind="files", loader="folder", most=IMAGENET, why="so many files take minutes to make"),
    "ffcv-package": Contender(kind="beton", most=IMAGENET, why="over 50 GB of memory for 100 million"),
    "torchvision": Contender(kind="files", most=IMAGENET, why="so many files take minutes to make"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    samples: tuple[int, ...] | None = None
    """Numbers of samples; if not given, 10000 100000 1280000 100000000."""
    contenders: tuple[str, ...] = ("all",)
    """Whose cost: ffcv, resident, webdataset, folder (ours), ffcv-package, torchvision, or all."""
    data: str = "shapes"
    """Where the few pictures come from: shapes (embedded), cifar10, a folder, a shard."""
    size: int = 32
    """Side of a view in pixels."""
    batch: int = 256
    """Images in a batch."""
    workers: int | None = None
    """Threads of a loader; if not given, as many as there are CPUs."""
    seconds: float | None = None
    """Length of a measurement of the rate; if not given, 2."""
    repeats: int | None = None
    """Fresh processes for each figure, the median counts; if not given, 3."""
    quick: bool = False
    """Thousands of samples instead of millions, one process each: half a minute."""
    scratch: Path | None = None
    """Folder for the sets; if not given, the system's for temporary files."""
    json: Path | None = None
    """Write all that was measured, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the curves into this picture (.png, .svg or .pdf)."""

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.samples or (QUICK_SAMPLES if self.quick else SAMPLES))))

    @property
    def chosen(self) -> list[str]:
        return [name for name in CONTENDERS if name in self.contenders or "all" in self.contenders]

    @property
    def rate_seconds(self) -> float:
        return self.seconds or (0.2 if self.quick else 2.0)

    @property
    def processes(self) -> int:
        return self.repeats or (1 if self.quick else 3)

    @property
    def threads(self) -> int:
        return self.workers or available_cpus()


@dataclass(kw_only=True)
class Row:
    """A contender at a number of samples: what each process measured (see `scale_probe.Measured`), or why none did."""

    contender: str
    samples: int
    repeats: list[dict[str, float | None]] = field(default_factory=list)
    error: str | None = None

    def figures(self) -> dict[str, float | None]:
        """The median of each figure."""
        found: dict[str, float | None] = {}
        for name in self.repeats[0] if self.repeats else ():
            values = [repeat[name] for repeat in self.repeats]
            found[name] = median(value for value in values if value is not None) if None not in values else None
        return found


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    for name in config.contenders:
        if name != "all" and name not in CONTENDERS:
            raise UserError(f"--contenders {name!r} is not known: choose from all, {', '.join(CONTENDERS)}")
    least = {"batch": 1, "workers": 1, "repeats": 1, "seconds": 0.1, "size": 8}
    for name, value in ((name, getattr(config, name)) for name in least):
        if value is not None and value < least[name]:
            raise UserError(f"--{name} {value}: it takes at least {least[name]}")
    if config.numbers[0] < FEWEST:
        raise UserError(f"--samples {config.numbers[0]}: it takes at least {FEWEST}")
    check_places(json=config.json, plot=config.plot)
    check_room(config)


def check_room(config: Config) -> None:
    """Raises UserError where the largest set would not fit in the folder for the sets."""
    folder = config.scratch or Path(tempfile.gettempdir())
    if not folder.is_dir():
        raise UserError(f"--scratch {folder}: there is no such folder; create it, or name another")
    needed = max((bytes_on_disk(CONTENDERS[row.contender].kind, row.samples) for row in plan(config)), default=0)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(
            f"{folder}: {decimal(free)} are free, the largest set takes {decimal(needed)}: name another folder with "
            "--scratch, or fewer --samples"
        )


def plan(config: Config) -> list[Row]:
    """The table's rows: sets from small to large, contenders that read the same set one after the other."""
    kinds = dict.fromkeys(CONTENDERS[name].kind for name in config.chosen)
    return [
        Row(contender=name, samples=samples)
        for samples in config.numbers
        for kind in kinds
        for name in config.chosen
        if CONTENDERS[name].kind == kind and samples <= (CONTENDERS[name].most or samples)
    ]


@contextmanager
def written(kind: str, samples: int, source: Source, config: Config) -> Iterator[Path]:
    """A set for as long as it is measured."""
    with tempfile.TemporaryDirectory(prefix="penstock-scale-", dir=config.scratch) as folder:
        yield write_set(kind, Path(folder), samples, source)


def measure(rows: list[Row], source: Source, config: Config, progress: Progress) -> None:
    """Fill the rows. One that fails keeps the reason, and the others go on."""
    task = progress.add_task("", total=len(rows) * (1 + config.processes))
    for kind, samples in dict.fromkeys((CONTENDERS[row.contender].kind, row.samples) for row in rows):
        progress.update(task, description=f"writing {samples:,} samples as {kind}")
        with written(kind, SMALL, source, config) as small, written(kind, samples, source, config) as path:
            for row in rows:
                if (CONTENDERS[row.contender].kind, row.samples) == (kind, samples):
                    progress.update(task, description=f"{row.contender}, {samples:,} samples", advance=1)
                    for _ in range(config.processes):
                        probe(row, path, small, config)
                        progress.advance(task)
            progress.update(task, description=f"deleting {samples:,} samples")


def probe(row: Row, path: Path, small: Path, config: Config) -> None:
    """Have one process measure one row."""
    if row.error:
        return
    contender = CONTENDERS[row.contender]
    asked = {
        "contender": row.contender, "loader": contender.loader, "path": str(path), "small": str(small),
        "batch": max(1, min(config.batch, row.samples // BATCHES)), "size": config.size,
        "threads": config.threads, "seconds": config.rate_seconds,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-m", "penstock.benchmarks.scale_probe", json.dumps(asked)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(penstock.__file__).resolve().parents[1])},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        row.error = (lines[-1] if lines else f"its process ended with code {done.returncode}").removeprefix(
            "penstock: "
        )
    else:
        row.repeats.append(json.loads(done.stdout))


def compile_all() -> None:
    """Compile what the processes load, so that none of them has to."""
    compile_views(speaks=True)
    for shuffle in (True, QUASI):
        Order(SMALL, 1, shuffle=shuffle).indices(0, 0)


def results(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as the JSON holds them: medians, memory also for each sample."""
    found = []
    for row in rows:
        figures = row.figures()
        each = {
            name.replace("bytes", "bytes_per_sample"): value / row.samples
            for name, value in figures.items()
            if name.endswith("bytes") and value is not None
        }
        found.append({**asdict(row), **figures, **each})
    return found


def report_of(config: Config, command: list[str], rows: list[Row], available: int) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("json", "plot", "scratch")}
    chosen = {
        "samples": config.numbers, "contenders": config.chosen, "workers": config.threads,
        "seconds": config.rate_seconds, "repeats": config.processes,
    }  # fmt: skip
    return {
        "benchmark": "scale",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/scale.py", *command]),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": versions(),
        "settings": {**settings, **chosen},
        "memory_available": available,
        "rows": results(rows),
    }


INDEX = {  # heading: (figure, its format)
    "open s": ("open_s", "{:,.3f}"),
    "private": ("private_bytes_per_sample", "{:,.1f}"),
    "mapped": ("mapped_bytes_per_sample", "{:,.1f}"),
    "peak": ("peak_bytes_per_sample", "{:,.1f}"),
    "order s": ("order_s", "{:,.4f}"),
    "full": ("order_us", "{:,.2f}"),
    "quasi": ("quasi_us", "{:,.2f}"),
}
BATCHES_OF = {
    "first batch s": ("first_batch_s", "{:,.2f}"),
    "pairs/s, new images": ("new_pairs_per_s", "{:,.0f}"),
    "pairs/s, again": ("pairs_per_s", "{:,.0f}"),
}


def short(number: int) -> str:
    """1280000 as 1.28M."""
    unit, letter = (10**6, "M") if number >= 10**6 else (1000, "k") if number >= 1000 else (1, "")
    return f"{number / unit:g}{letter}"


def table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, str]], title: str, caption: str) -> Table:
    shown = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown.add_column("samples", justify="right", no_wrap=True)
    shown.add_column("contender", no_wrap=True)
    for heading in columns:
        shown.add_column(heading, justify="right", no_wrap=True)
    last = None
    for row in rows:
        samples, last = short(row["samples"]) if row["samples"] != last else "", row["samples"]
        cells = [format.format(row[name]) if row.get(name) is not None else "" for name, format in columns.values()]
        shown.add_row(samples, row["contender"], *cells)
    return shown


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table, and what is not in it."""
    rows, machine = report["rows"], machine_line(report["machine"])
    caption = (
        "private, mapped, peak: bytes of memory a sample, opened and while opening;\norder: until the first batch's"
    )
    caption += " indices are known; full, quasi: µs/index"
    console.print(table(rows, INDEX, f"Index and order by the number of samples\n{machine}", caption))
    settings = report["settings"]
    title = f"Batches: moco-v2, 2 views of {settings['size']} px, batches of up to {settings['batch']}"
    rated = [row for row in rows if row.get("first_batch_s") is not None]
    console.print(table(rated, BATCHES_OF, title, "new images: read, and their checksums tested, for the first time"))
    largest = max((bytes_on_disk(CONTENDERS[row["contender"]].kind, row["samples"]) for row in rows), default=0)
    if largest > report["memory_available"]:
        free = decimal(report["memory_available"])
        console.print(
            f"{free} of memory were free, the largest tables take {decimal(largest)}: read from the disk again"
        )
    for row in rows:
        if row["error"]:
            console.print(f"{row['contender']}, {row['samples']:,}: {row['error']}", markup=False)
    for name in report["settings"]["contenders"]:
        contender = CONTENDERS[name]
        if contender.most and max(report["settings"]["samples"]) > contender.most:
            console.print(f"{name}: left out above {contender.most:,} samples: {contender.why}")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark. Returns 1 where a row failed; one whose package is not installed is no failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.cli(Config, description=__doc__, args=arguments)
    check(config)
    console = Console(highlight=False)
    source = open_source(config.data)
    rows = plan(config)
    for row in rows:
        row.error = missing(row.contender) if row.contender in LOADERS else None
    runnable = [row for row in rows if not row.error]
    available = psutil.virtual_memory().available
    compile_all()
    with Progress(console=console, transient=True) as progress:
        measure(runnable, source, config, progress)
    report = report_of(config, arguments, rows, available)
    show(report, console)
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return int(any(row.error for row in runnable))


if __name__ == "__main__":
    run_command(main)
