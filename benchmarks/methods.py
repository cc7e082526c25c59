"""Every method trained alike for a few minutes: does it learn, does it collapse, what does it cost.

    python benchmarks/methods.py --quick
    python benchmarks/methods.py                                        # on the embedded images
    python benchmarks/methods.py --data cifar10 --subset 5000 --epochs 60 --json methods.json --plot methods.png

Each method is a run of engine/train.py with the same data, network, batch and number of epochs, and its own defaults
for the rest; the report gives its kNN accuracy beside the untrained network's, and the standard deviation of its
embeddings (1: spread over the sphere, 0: collapsed; see `engine/methods/embedding.py`). So short a run with a small
network shows that a method works, not which is best.

The runs lie in --out. Stopped (Ctrl-C) and started again, it goes on where it was, and repeats none that is finished;
it refuses runs that were trained with other settings.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from penstock.benchmarks.results import check_places, write_results
from penstock.counts import counted
from penstock.engine.config import TrainConfig
from penstock.engine.csv_log import read_csv
from penstock.engine.data import labelled_images, why_none
from penstock.engine.defaults import METHODS, check_choices, complete
from penstock.engine.in_turn import InTurn
from penstock.engine.runs import Run, check_same, read_run
from penstock.errors import UserError, run_command
from penstock.loaders import open_source
from penstock.machine import machine_line, portable, provenance
from penstock.options import read_options


@dataclass(frozen=True, kw_only=True)
class Config:
    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods; default: all."""
    data: str = "shapes"
    """What to train on, as for engine/train.py."""
    subset: int | None = None
    """Cut the data to that many images."""
    epochs: int = 20
    """Passes over them."""
    arch: str = "resnet18"
    """The network."""
    width: int = 16
    """Channels of its first stage."""
    stem: str = "auto"
    """Its first layers: imagenet, half, cifar or auto."""
    batch: int = 128
    """Images in a step."""
    seed: int = 0
    """Decides weights, order and augmentation, the same for all."""
    train: str = ""
    """Further settings for every run, typed as --train="--optimizer adamw --recipe simclr"."""
    jobs: int = 1
    """Runs at a time; each has its share of the CPUs."""
    quick: bool = False
    """A look: where nothing else is said, two epochs of 500 images in batches of 64 with a network of width 8, two
    runs at a time, in runs/methods-quick."""
    out: Path = Path("runs/methods")
    """Folder of the runs."""
    json: Path | None = None
    """Write the table, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the table into this picture (.png, .svg or .pdf)."""


QUICK = Config(quick=True, subset=500, epochs=2, batch=64, width=8, jobs=2, out=Path("runs/methods-quick"))


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    for name in config.methods:
        if name not in METHODS:
            raise UserError(f"--methods {name!r} is not known: choose from {', '.join(METHODS)}")
    for name in ("epochs", "batch", "jobs"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: it takes at least 1")
    check_places(json=config.json, plot=config.plot)
    for method in config.methods:
        check_run(run_of(config, method), config.out / method)


def check_run(run: Run, folder: Path) -> None:
    """Refuse to go on with a run, or to report one, that began with other settings, and data that kNN cannot classify:
    the run would end without what the table is about."""
    check_same(run, folder)
    check_choices(run.config)
    if run.config.knn_every == 0:
        raise UserError("--train has --knn-every 0, and the table is of kNN accuracies: leave it out")
    source = open_source(run.config.data, run.config.split, class_list=run.config.class_list, limit=run.config.subset)
    completed = complete(run.config, source=source.name, length=len(source), world=1)
    if labelled_images(completed, source) is None:
        why = why_none(completed, source, option='--train="--val-data FOLDER"')
        raise UserError(f"kNN, which the table is of, needs labels: {why}")


def run_of(config: Config, method: str) -> Run:
    """What a method is trained with."""
    settings = TrainConfig(
        method=method, data=config.data, subset=config.subset, epochs=config.epochs, arch=config.arch,
        width=config.width, stem=config.stem, batch=config.batch, seed=config.seed,
        knn_every=max(1, config.epochs // 4),
    )  # fmt: skip
    words = shlex.split(config.train)
    told = read_options(TrainConfig, None, words, default=settings, prog="--train")
    return Run(name=method, config=told)


def row_of(out: Path, method: str) -> dict[str, Any]:
    """What a finished run came to: `loss`, `std`, `knn`, `knn_untrained` (per cent), `images_per_s`, `minutes`; and
    the `commits` it was trained at."""
    epochs = read_csv(out / "epochs.csv")
    last = epochs[-1]
    seconds = sum(row.get("train_seconds", 0.0) for row in epochs)
    return {
        "method": method,
        "epochs": int(last["epoch"]),
        "loss": last["loss"],
        "std": last["std"],
        "knn_untrained": epochs[0]["knn"],
        "knn": last["knn"],
        "knn_by_epoch": {int(row["epoch"]): row["knn"] for row in epochs if "knn" in row},
        "images_per_s": sum(row.get("images_per_s", 0.0) * row.get("train_seconds", 0.0) for row in epochs) / seconds,
        "minutes": seconds / 60,
        "commits": read_run(out)["commits"],
    }


def report_of(config: Config, command: list[str]) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it; no path of this machine."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("json", "plot", "out")}
    return {
        "benchmark": "methods",
        **provenance(shlex.join(["python", "benchmarks/methods.py", *command])),
        "settings": portable(settings),
        "rows": [row_of(config.out / method, method) for method in config.methods],
    }


def title(report: dict[str, Any]) -> str:
    settings = report["settings"]
    cut = f" cut to {settings['subset']:,} images" if settings["subset"] else ""
    network = f"{settings['arch']} of width {settings['width']}, {settings['stem']} stem"
    data = "--quick: " * settings["quick"] + settings["data"].partition(":")[0]
    return f"{data}{cut}, {counted(settings['epochs'], 'epoch')} of batch {settings['batch']}, {network}"


def table(report: dict[str, Any]) -> Table:
    shown = Table(title=title(report), caption=machine_line(report["machine"]), box=SIMPLE_HEAD, title_justify="left")
    shown.add_column("method", no_wrap=True)
    for heading in ("kNN %", "untrained %", "std", "loss", "images/s", "minutes"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        figures = (f"{row['knn']:.2f}", f"{row['knn_untrained']:.2f}", f"{row['std']:.2f}", f"{row['loss']:.3f}")
        shown.add_row(row["method"], *figures, f"{row['images_per_s']:,.0f}", f"{row['minutes']:.1f}")
    return shown


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """kNN accuracy over the epochs, a line for each method, the untrained network's as the first point."""
    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row in report["rows"]:
        epochs, accuracies = zip(*sorted(row["knn_by_epoch"].items()), strict=True)
        axes.plot(epochs, accuracies, marker="o", markersize=4, label=f"{row['method']} {row['knn']:.1f} %")
    axes.set(xlabel="epoch", ylabel="kNN accuracy, %")
    axes.set_title(title(report), loc="left", fontsize=10, fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7eb")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = read_options(Config, __doc__, arguments, quick=QUICK)
    check(config)
    console = Console()
    runs = [run_of(config, method) for method in config.methods]
    turn = InTurn(runs, lambda method: config.out / method, jobs=config.jobs, console=console)
    if not turn.carry_out():
        print("penstock: stopped; the same command goes on", file=sys.stderr)
        return 128 + turn.interrupts.received
    if turn.failed:
        raise UserError("\n".join(turn.failed.values()))
    report = report_of(config, arguments)
    console.print(table(report))
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return 0


if __name__ == "__main__":
    run_command(main)
