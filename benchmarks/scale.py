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
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from rich.console import Console
from rich.filesize import decimal
from rich.progress import Progress

import penstock
from penstock.benchmarks.results import check_places, write_results
from penstock.benchmarks.scale_chart import draw_chart
from penstock.benchmarks.scale_lineup import CONTENDERS, Row
from penstock.benchmarks.scale_probe import QUASI
from penstock.benchmarks.scale_report import report_of, show
from penstock.benchmarks.scale_sets import bytes_on_disk, write_set
from penstock.errors import UserError, run_command
from penstock.loaders import LOADERS, Order, Source, missing, open_source
from penstock.loaders.pipeline import compile_views
from penstock.loaders.threads import available_cpus
from penstock.options import read_options

FEWEST, SMALL = 100, 64  # samples of a set, and of the one that each process opens before the clock starts
BATCHES = 16  # of an epoch, at least: smaller sets have smaller batches


@dataclass(frozen=True, kw_only=True)
class Config:
    samples: tuple[int, ...] = (10_000, 100_000, 1_280_000, 100_000_000)
    """Numbers of samples."""
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
    seconds: float = 2.0
    """Length of a measurement of the rate."""
    repeats: int = 3
    """Fresh processes for each figure, the median counts."""
    quick: bool = False
    """A look, half a minute: where nothing else is said, thousands of samples instead of millions, one process each."""
    scratch: Path | None = None
    """Folder for the sets; if not given, the system's for temporary files."""
    json: Path | None = None
    """Write all that was measured, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the curves into this picture (.png, .svg or .pdf)."""

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.samples)))

    @property
    def chosen(self) -> list[str]:
        return [name for name in CONTENDERS if name in self.contenders or "all" in self.contenders]

    @property
    def threads(self) -> int:
        return self.workers or available_cpus()

    def settings(self) -> dict[str, Any]:
        """What decides the figures."""
        given = {key: value for key, value in asdict(self).items() if key not in ("json", "plot", "scratch")}
        return given | {"samples": self.numbers, "contenders": self.chosen, "workers": self.threads}


QUICK = Config(quick=True, samples=(1_000, 10_000), seconds=0.2, repeats=1)


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
    task = progress.add_task("", total=len(rows) * (1 + config.repeats))
    for kind, samples in dict.fromkeys((CONTENDERS[row.contender].kind, row.samples) for row in rows):
        progress.update(task, description=f"writing {samples:,} samples as {kind}")
        with written(kind, SMALL, source, config) as small, written(kind, samples, source, config) as path:
            for row in rows:
                if (CONTENDERS[row.contender].kind, row.samples) == (kind, samples):
                    progress.update(task, description=f"{row.contender}, {samples:,} samples", advance=1)
                    for _ in range(config.repeats):
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
        "threads": config.threads, "seconds": config.seconds,
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


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark. Returns 1 where a row failed; one whose package is not installed is no failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = read_options(Config, __doc__, arguments, quick=QUICK)
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
    report = report_of(config.settings(), arguments, rows, available)
    show(report, console)
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return int(any(row.error for row in runnable))


if __name__ == "__main__":
    run_command(main)
