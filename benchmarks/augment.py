"""How long a view takes: each operation and whole chains, by each executor, against what people use today.

    python benchmarks/augment.py
    python benchmarks/augment.py --data path/to/photos --json augment.json --plot augment.png
    python benchmarks/augment.py --operations crop blur chain:moco-v2 --executors fused_cpu

Images are decoded and in memory. A chain goes on to normalised float32 views, its random values included; an operation
goes from the bytes of a view to bytes again (the crop from the image). All take turns in one process on one thread,
round after round, and the median counts; fused_cpu runs the chains in more threads too. `ratio` is the time of the
baseline over an executor's: torchvision's PIL transforms, or Albumentations where those lack an operation, on one
thread. `floor` is what moving the bytes would take: a view's crop read once, the view written once, at the speed at
which this machine copies memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import import_module, metadata
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import DisallowNone

from penstock.augment import RECIPES
from penstock.augment.executors import BACK_ENDS, choose_executor
from penstock.benchmarks.augment_chart import draw_chart
from penstock.benchmarks.augment_contenders import CHAIN, CHAINS, OPERATIONS, Case, Contender, chain_recipe, make_case
from penstock.benchmarks.augment_limits import copy_speed, first_view, importable, triton_report
from penstock.benchmarks.augment_rivals import Bytes
from penstock.benchmarks.results import check_places, write_results
from penstock.errors import UserError, run_command
from penstock.loaders import open_source
from penstock.loaders.sources.shapes import CLASSES, render
from penstock.loaders.threads import available_cpus
from penstock.machine import describe_machine, git_commit, machine_line, versions

PHOTOGRAPH = (500, 375)  # width and height of the embedded images, ImageNet's usual ones
SMALL = 32  # pixels: chains of views up to this size are fed CIFAR's images, or photographs as small as those
WIDTH = 150  # of the table in a file
EXECUTORS = ("fused_cpu", "fused_gpu", "albumentations", "dali", "reference")
RIVAL_PACKAGES = {"albumentations-compose": "albumentations", "kornia": "kornia", "dali-pipeline": "nvidia.dali"}
ON_GPU = ("kornia", "dali-pipeline")
ALSO = ("opencv-python-headless", "albucore", "triton", "kornia")  # packages whose versions matter here, too


@dataclass(frozen=True, kw_only=True)
class Config:
    operations: tuple[str, ...] = (*(CHAIN + name for name in CHAINS), *OPERATIONS)
    """What to measure: operations, and chains as chain:RECIPE."""
    executors: tuple[str, ...] = EXECUTORS
    """Executors to hold against torchvision and Albumentations; those that cannot run here are named."""
    data: str | None = None
    """Photographs: a folder, or another set that train.py takes; if not given, embedded ones of 500×375 pixels."""
    cifar: str | None = None
    """Images for the chains of small views, such as cifar10; if not given, the photographs, scaled to 32×32."""
    images: int = 32
    """Photographs; of small images, 8 times as many."""
    size: int | None = None
    """Side of the views in pixels; if not given, 224 for operations and the recipe's own for chains."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads in which fused_cpu runs the chains; all else runs in one."""
    repeats: int = 5
    """Measurements of each; the median counts."""
    seconds: float = 0.1
    """Length of one measurement, at least."""
    quick: bool = False
    """Only see that all runs: two photographs, views of 32 pixels, two passes each."""
    json: Path | None = None
    """Write all that was measured, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the bars into this picture (.png, .svg or .pdf)."""

    def hurried(self) -> Config:
        """With the settings of --quick, if it was given."""
        return replace(self, images=2, size=self.size or 32, repeats=2, seconds=0.0) if self.quick else self


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    for name in ("operations", "threads"):
        if not getattr(config, name):
            raise UserError(f"--{name}: it takes at least one value, or leave it out")
    for name in config.operations:
        if name.startswith(CHAIN):
            chain_recipe(name, config.size or 0)
        elif name not in OPERATIONS:
            raise UserError(f"--operations {name!r} is not known: choose from {', '.join(OPERATIONS)}, or chain:RECIPE")
    for name in config.executors:
        if name not in BACK_ENDS:
            raise UserError(f"--executors {name!r} is not known: choose from {', '.join(BACK_ENDS)}")
    least = {"images": 1, "size": 8, "repeats": 1, "seconds": 0, "threads": 1}
    for name, lowest in least.items():
        value = getattr(config, name)
        if value is not None and np.min(value) < lowest:
            raise UserError(f"--{name} {value}: it takes at least {lowest}")
    check_places(json=config.json, plot=config.plot)


# What they run on.


def photographs(config: Config) -> list[Bytes]:
    """Decoded images, uint8 [H, W, 3]."""
    return [_photograph(k) for k in range(config.images)] if config.data is None else _read(config.data, config.images)


def _photograph(number: int) -> Bytes:
    """One of the data set `shapes`, as large as photographs are, with a sensor's grain."""
    drawn = render(number % len(CLASSES), 0, split="train", number=number)
    large = Image.fromarray(drawn).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(number).normal(0, 4, (*PHOTOGRAPH[::-1], 3))
    return (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)


def small_images(config: Config, photos: list[Bytes]) -> list[Bytes]:
    """Decoded images of 32×32 pixels, or what the set `--cifar` holds."""
    wanted = 8 * config.images
    if config.cifar is not None:
        return _read(config.cifar, wanted)
    scaled = [np.array(Image.fromarray(photo).resize((SMALL, SMALL), Image.Resampling.BOX)) for photo in photos]
    return [scaled[k % len(scaled)] for k in range(wanted)]


def _read(spec: str, most: int) -> list[Bytes]:
    source = open_source(spec)
    source = open_source(spec, limit=min(most, len(source)))
    return [source.decode(i) for i in range(len(source))]


# The race.


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch and OpenCV from starting threads of their own."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2 = import_module("cv2") if find_spec("cv2") else None
    cv2_threads = cv2.getNumThreads() if cv2 else 0
    try:
        if cv2:
            cv2.setNumThreads(1)
        yield
    finally:
        torch.set_num_threads(torch_threads)
        if cv2:
            cv2.setNumThreads(cv2_threads)


def available(names: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The executors that can run here; and why the others cannot."""
    able, absent = [], {}
    for name in names:
        try:
            if name == "fused_gpu" and not torch.cuda.is_available():
                raise UserError("there is no GPU")
            choose_executor(name, RECIPES["moco-v2"])
            able.append(name)
        except (UserError, ImportError) as error:
            absent[name] = str(error)
    for name, package in RIVAL_PACKAGES.items():
        if name in ON_GPU and not torch.cuda.is_available():
            absent[name] = "there is no GPU"
        elif not importable(package):
            absent[name] = f"{package} is not installed"
    return able, absent


def race(case: Case, config: Config, progress: Progress) -> None:
    """Measure each contender once a round, back and forth."""
    task = progress.add_task(case.operation, total=len(case.contenders) * (config.repeats + 1))
    for contender in case.contenders:
        if not contender.error:
            contender.warm()
        progress.advance(task)
    running = [contender for contender in case.contenders if not contender.error]
    for turn in range(config.repeats):
        for contender in running if turn % 2 == 0 else running[::-1]:
            contender.measure(config.seconds)
            progress.advance(task)
    for contender in case.contenders:
        contender.rest()
    progress.remove_task(task)


# The report.


def results(cases: list[Case], speeds: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of the JSON; `speeds` holds `copy_speed` by device and threads, as `cpu-1`."""
    return [_result(case, each, speeds) for case in cases for each in case.contenders if each.times]


def _result(case: Case, contender: Contender, speeds: dict[str, float]) -> dict[str, Any]:
    time, baseline = median(contender.times), case.baseline
    ran = (each for each in case.contenders if each.times)
    alone = next((each for each in ran if each.executor == contender.executor and each.threads == 1), None)
    floor = contender.bytes / speeds[f"{contender.device}-{contender.threads}"] * 1e6
    return {
        "executor": contender.executor,
        "operation": case.operation,
        "size": case.size,
        "threads": contender.threads,
        "us_per_view": time,
        "views_per_s": 1e6 / time,
        "ratio": median(baseline.times) / time if baseline else None,
        "baseline": baseline.executor if baseline else None,
        "scaling": median(alone.times) / time if alone and contender.threads > 1 else None,
        "bytes_per_view": contender.bytes,
        "floor_us": floor,
        "over_floor": time / floor,
        "device": contender.device,
        "repeats_us": contender.times,
    }


def table(report: dict[str, Any]) -> Table:
    """One line for each operation, one column for each executor: microseconds a view, and the ratio."""
    columns = list(dict.fromkeys((row["executor"], row["threads"]) for row in report["rows"]))
    shown = Table(
        title=f"microseconds a view, and times as fast as the baseline\n{machine_line(report['machine'])}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown.add_column("operation", no_wrap=True)
    shown.add_column("px", justify="right", no_wrap=True)
    shown.add_column("floor", justify="right", no_wrap=True)
    for executor, threads in columns:
        shown.add_column(
            executor.replace("-", "\n") + f"\n{threads} threads" * (threads > 1), justify="right", overflow="fold"
        )
    for operation in dict.fromkeys(row["operation"] for row in report["rows"]):
        cells = {(r["executor"], r["threads"]): r for r in report["rows"] if r["operation"] == operation}
        first = next(iter(cells.values()))
        about = operation, str(first["size"]), _number(first["floor_us"])
        shown.add_row(*about, *(_cell(cells.get(column)) for column in columns))
    return shown


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    ratio = "" if row["ratio"] is None or row["executor"] == row["baseline"] else f" {row['ratio']:.1f}×"
    return _number(row["us_per_view"]) + ratio


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def report_of(
    config: Config, command: list[str], cases: list[Case], absent: dict[str, str], photos: list[Bytes]
) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it."""
    used = {(each.device, each.threads) for case in cases for each in case.contenders}
    speeds = {f"{on}-{many}": copy_speed(on, many, 4 if config.quick else 256) for on, many in sorted(used)}
    errors = [
        {"executor": each.executor, "operation": case.operation, "error": each.error}
        for case in cases
        for each in case.contenders
        if each.error
    ]
    return {
        "benchmark": "augment",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/augment.py", *command]),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": versions() | {name: metadata.version(name) for name in ALSO if _installed(name)},
        "settings": {key: value for key, value in asdict(config).items() if key not in ("json", "plot")},
        "images": {"count": len(photos), "median_pixels": int(np.median([photo[..., 0].size for photo in photos]))},
        "copy_bytes_per_s": speeds,
        "absent": absent,
        "errors": errors,
        "compile": first_view(),
        "triton": triton_report(config.quick),
        "rows": results(cases, speeds),
    }


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table, and what a reader must know beside it."""
    console.print(table(report))
    for row in report["rows"]:
        if row["scaling"]:
            where = f"{row['executor']} on {row['threads']} threads, {row['operation']}"
            console.print(f"{where}: {row['scaling']:.2f} × one thread")
    copying = ", ".join(f"{on} {speed / 1e9:.1f} GB/s" for on, speed in report["copy_bytes_per_s"].items())
    console.print(f"copying memory (device-threads), bytes read and written: {copying}")
    console.print(_compile_line(report["compile"]))
    for architecture, kernels in (report["triton"] or {}).items():
        console.print(f"fused_gpu on {architecture}: {_kernel_line(kernels)}")
    for name, reason in report["absent"].items():
        console.print(f"without {name}: {reason}")
    for failed in report["errors"]:
        console.print(f"{failed['executor']}, {failed['operation']}: {failed['error']}")


def _compile_line(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"a new process fails: {found['error']}"
    first, imports = found["first_view_s"], found["imports_s"]
    return f"a new process has its first view {first:.2f} s after its imports, which take {imports:.1f} s"


def _kernel_line(kernels: dict[str, Any]) -> str:
    if "error" in kernels:
        return str(kernels["error"])
    most = {need: max(kernel[need] for kernel in kernels.values()) for need in ("registers", "spills", "shared")}
    return (
        f"{len(kernels)} kernels take up to {most['registers']} registers, {most['spills']} bytes of spills and "
        f"{most['shared']:,} bytes of shared memory"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison. Returns 1 where a contender failed; one that cannot run here is no failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.cli(Config, description=__doc__, args=arguments, config=(DisallowNone,)).hurried()
    check(config)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    able, absent = available(config.executors)
    threads = sorted({1, *(many for many in config.threads if many <= available_cpus())})
    if left_out := sorted(set(config.threads) - set(threads)):
        listed = ", ".join(map(str, left_out))
        console.print(f"not in {listed} threads: this process may use {available_cpus()} CPUs")
    photos = photographs(config)
    small = small_images(config, photos)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeRemainingColumn())
    with one_thread(), Progress(*columns, console=console, transient=True) as progress:
        cases = []
        for name in progress.track(config.operations, description="all"):
            size = config.size or (0 if name.startswith(CHAIN) else 224)
            tiny = name.startswith(CHAIN) and chain_recipe(name, 0).size <= SMALL
            cases.append(make_case(name, small if tiny else photos, able, threads, size))
            race(cases[-1], config, progress)
        progress.add_task("what the kernels take", total=None)
        report = report_of(config, arguments, cases, absent, photos)
    show(report, console)
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return int(bool(report["errors"]))


if __name__ == "__main__":
    run_command(main)
