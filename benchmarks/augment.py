"""How long a view takes: each operation and whole chains, by each executor, against what people use today.

    python benchmarks/augment.py
    python benchmarks/augment.py --data path/to/photos --json augment.json --plot augment.png
    python benchmarks/augment.py --operations crop blur chain:moco-v2 --executors fused_cpu
    python benchmarks/augment.py --operations chain:moco-v2 chain:byol chain:moco-cifar --executors fused_gpu \\
        --seconds 1 --json gpu.json --plot gpu.png      # on a machine with a GPU: the chains there, in minutes

Images are decoded and in memory. A chain goes on to normalised float32 views, its random values included; an operation
goes from the bytes of a view to bytes again (the crop from the image). All take turns in one process on one thread,
round after round, and the median counts; fused_cpu runs the chains in more threads too. `ratio` is the time of the
baseline over an executor's: torchvision's PIL transforms, or Albumentations where those lack an operation, on one
thread. `floor` is what moving the bytes would take: a view's crop read once, the view written once, at the speed at
which this machine copies memory.

On a GPU a batch is the unit (`augment_gpu.py` says who runs there): milliseconds for all its views, and how many times
its floor and fused_gpu's time they are. Beside them stand those that the host takes to launch a batch, which are no
part of them: it does so while the GPU still makes others. Operations end in normalised views there.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from penstock.augment import RECIPES
from penstock.augment.executors import BACK_ENDS, choose_executor
from penstock.benchmarks.augment_chart import draw_chart
from penstock.benchmarks.augment_contenders import CHAIN, CHAINS, OPERATIONS, chain_recipe, make_case
from penstock.benchmarks.augment_gpu import RIVALS_ON_GPU, Gpu
from penstock.benchmarks.augment_limits import importable
from penstock.benchmarks.augment_passes import Case
from penstock.benchmarks.augment_report import report_of, show
from penstock.benchmarks.augment_rivals import Bytes
from penstock.benchmarks.results import check_places, write_results
from penstock.errors import UserError, run_command
from penstock.loaders import open_source
from penstock.loaders.sources.shapes import CLASSES, render
from penstock.loaders.threads import available_cpus
from penstock.options import read_options

PHOTOGRAPH = (500, 375)  # width and height of the embedded images, ImageNet's usual ones
SMALL = 32  # pixels: chains of views up to this size are fed CIFAR's images, or photographs as small as those
WIDTH = 150  # of the table in a file
EXECUTORS = ("fused_cpu", "fused_gpu", "albumentations", "dali", "reference")
PACKAGES = {  # what executors and rivals need
    "albumentations": "albumentations",
    "albumentations-compose": "albumentations",
    "kornia": "kornia",
    "dali-pipeline": "nvidia.dali",
}
BATCH, SMALL_BATCH = 256, 1024  # images of a batch on a GPU, as MoCo v2 takes and as small ones allow


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
    gpu_images: int | None = None
    """Images of a batch on a GPU, the ones above over and over; if not given, 256, and 1024 of small ones."""
    size: int | None = None
    """Side of the views in pixels; if not given, 224 for operations and the recipe's own for chains."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads in which fused_cpu runs the chains; all else runs in one."""
    repeats: int = 5
    """Measurements of each; the median counts."""
    seconds: float = 0.1
    """Length of one measurement, at least; on a GPU, 1 leaves less to chance."""
    quick: bool = False
    """Only see that all runs: where nothing else is said, two photographs, views of 32 pixels, two passes each."""
    json: Path | None = None
    """Write all that was measured, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the bars into this picture (.png, .svg or .pdf)."""


QUICK = Config(quick=True, images=2, gpu_images=4, size=32, repeats=2, seconds=0.0)


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
    least = {"images": 1, "gpu_images": 1, "size": 8, "repeats": 1, "seconds": 0, "threads": 1}
    for name, lowest in least.items():
        value = getattr(config, name)
        if value is not None and np.min(value) < lowest:
            raise UserError(f"--{name.replace('_', '-')} {value}: it takes at least {lowest}")
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


def gpu_device() -> str | None:
    """Where the rows on a GPU run, if there is one."""
    return "cuda" if torch.cuda.is_available() else None


def available(names: tuple[str, ...], device: str | None) -> tuple[list[str], dict[str, str]]:
    """The executors that can run here; and why the others, and rivals, cannot."""
    absent = {name: f"{package} is not installed" for name, package in PACKAGES.items() if not importable(package)}
    if not device:
        absent |= dict.fromkeys(("fused_gpu", *RIVALS_ON_GPU), "there is no GPU")
    for name in names:
        try:
            choose_executor(name, RECIPES["moco-v2"])
        except (UserError, ImportError) as error:
            absent.setdefault(name, str(error))
    asked = {name: why for name, why in absent.items() if name in names or name not in BACK_ENDS}
    return [name for name in names if name not in absent], asked


def race(case: Case, config: Config, progress: Progress) -> None:
    """Measure each contender once a round, back and forth."""
    task = progress.add_task(case.operation, total=len(case.contenders) * (config.repeats + 1))
    for contender in case.contenders:
        if not contender.error:
            contender.warm()
        progress.advance(task)
    for turn in range(config.repeats):
        for contender in case.contenders if turn % 2 == 0 else case.contenders[::-1]:
            if not contender.error:
                contender.measure(config.seconds)
            progress.advance(task)
    for contender in case.contenders:
        contender.rest()
    progress.remove_task(task)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison. Returns 1 where a contender failed; one that cannot run here is no failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = read_options(Config, __doc__, arguments, quick=QUICK)
    check(config)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    device = gpu_device()
    able, absent = available(config.executors, device)
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
            gpu = Gpu(device, config.gpu_images or (SMALL_BATCH if tiny else BATCH)) if device else None
            cases.append(make_case(name, small if tiny else photos, able, threads, size, gpu))
            race(cases[-1], config, progress)
        progress.add_task("what the kernels take", total=None)
        settings = {key: value for key, value in asdict(config).items() if key not in ("json", "plot")}
        report = report_of(settings, arguments, cases, absent, photos)
    show(report, console)
    if config.quick:
        console.print("--quick only shows that all runs: its times and ratios say nothing")
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return int(bool(report["errors"]))


if __name__ == "__main__":
    run_command(main)
