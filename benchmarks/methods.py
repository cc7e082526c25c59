"""Every method trained alike for a few minutes: does it learn, does it collapse, what does it cost.

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

import json
import os
import shlex
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from threading import Event
from typing import Any

import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from tyro.conf import DisallowNone

from penstock.benchmarks.results import check_places, write_results
from penstock.engine.config import TrainConfig, flag
from penstock.engine.csv_log import read_csv
from penstock.engine.defaults import METHODS
from penstock.engine.evaluate.data import labelled, open_validation
from penstock.errors import UserError, run_command
from penstock.files import write_whole
from penstock.loaders import open_source
from penstock.loaders.threads import available_cpus
from penstock.machine import describe_machine, git_commit, machine_line, versions

TRAIN = Path(__file__).resolve().parents[1] / "engine/train.py"
LAST_LINES = 12  # of what a failed run said
SAME = ("data", "subset", "epochs", "arch", "width", "stem", "batch", "seed", "train")  # what a run's figures depend on


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
    out: Path = Path("runs/methods")
    """Folder of the runs."""
    json: Path | None = None
    """Write the table, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the table into this picture (.png, .svg or .pdf)."""


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    for name in config.methods:
        if name not in METHODS:
            raise UserError(f"--methods {name!r} is not known: choose from {', '.join(METHODS)}")
    for name in ("epochs", "batch", "jobs"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: it takes at least 1")
    check_places(json=config.json, plot=config.plot)
    for name in config.methods:
        check_same(config, name)
    check_evaluated(config)


def check_same(config: Config, method: str) -> None:
    """Refuse to go on with a run, or to report one, that began with other settings."""
    out = config.out / method
    if not (out / "epochs.csv").exists():
        return
    if not (out / "arguments.json").exists():
        raise UserError(f"{out}: a run lies there that this benchmark did not start: choose another --out")
    for name, was in read_start(out)["settings"].items():
        if was != getattr(config, name):
            asked = f"{flag(name)} {was!r}, not {getattr(config, name)!r}"
            raise UserError(f"{out}: this run was trained with {asked}: choose another --out")


def check_evaluated(config: Config) -> None:
    """Refuse data that kNN cannot classify: the runs would end without what the table is about."""
    words = arguments(config, config.methods[0])
    run = tyro.cli(TrainConfig, args=words, config=(DisallowNone,), prog="engine/train.py")
    if run.knn_every == 0:
        raise UserError("--train has --knn-every 0, and the table is of kNN accuracies: leave it out")
    bank = labelled(open_source(run.data, class_list=run.class_list))
    if not len(bank) or open_validation(run.data, val_data=run.val_data, class_list=run.class_list) is None:
        raise UserError(
            f"--data {run.data}: kNN needs labels and a validation split, and these have none: choose other data, or"
            ' name labelled images of the same classes, as in --train="--val-data FOLDER"'
        )


def arguments(config: Config, method: str) -> list[str]:
    """What is typed behind engine/train.py to begin a method's run."""
    words = ["--method", method, "--data", config.data, "--epochs", str(config.epochs), "--arch", config.arch,
             "--width", str(config.width), "--stem", config.stem, "--batch", str(config.batch),
             "--seed", str(config.seed), "--knn-every", str(max(1, config.epochs // 4)),
             "--out", str(config.out / method)]  # fmt: skip
    if config.subset is not None:
        words += ["--subset", str(config.subset)]
    return [*words, *shlex.split(config.train)]


def run(config: Config, method: str, progress: Progress, task: TaskID, stop: Event) -> None:
    """Train one method, unless that was done before. Raises UserError with the end of what a failed run said."""
    out = config.out / method
    progress.update(task, completed=epochs_done(out))
    if epochs_done(out) >= config.epochs or stop.is_set():
        return
    threads = str(max(1, available_cpus() // config.jobs))
    out.mkdir(parents=True, exist_ok=True)
    write_start(config, out)
    last = out / "last.pt"  # goes on with all that it began with
    words = ["--resume", str(last)] if last.exists() else arguments(config, method)
    with (out / "output.txt").open("a") as output:
        process = subprocess.Popen(  # in a session of its own: a Ctrl-C reaches it only through us, so only once
            [sys.executable, str(TRAIN), *words], start_new_session=True,
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": threads},
        )  # fmt: skip
    while process.poll() is None:
        progress.update(task, completed=epochs_done(out))
        if stop.wait(0.5):
            process.terminate()  # once: it saves after its step; asked twice, it would leave without
            process.wait()
    progress.update(task, completed=epochs_done(out))
    if process.returncode and not stop.is_set():
        stop.set()
        said = "\n".join((out / "output.txt").read_text().strip().splitlines()[-LAST_LINES:])
        raise UserError(f"{method} ended with code {process.returncode} ({out / 'output.txt'}):\n{said}")


def write_start(config: Config, out: Path) -> None:
    """Write OUT/arguments.json: the settings, and the commits that the run was begun and gone on with."""
    settings, commit = {name: getattr(config, name) for name in SAME}, git_commit()
    commits = read_start(out)["commits"] if (out / "epochs.csv").exists() else []
    commits += [commit] if commit not in commits[-1:] else []
    text = json.dumps({"settings": settings, "commits": commits}, indent=2) + "\n"
    write_whole(out / "arguments.json", lambda path: path.write_text(text))


def read_start(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "arguments.json").read_text())
    return found


def epochs_done(out: Path) -> int:
    return max((int(row["epoch"]) for row in read_csv(out / "epochs.csv")), default=0)


def train_all(config: Config, console: Console) -> None:
    """All runs, `jobs` at a time; Ctrl-C ends them after their step, saved."""
    stop = Event()
    with Progress(console=console) as progress, ThreadPoolExecutor(config.jobs) as pool:
        tasks = {method: progress.add_task(method, total=config.epochs) for method in config.methods}
        try:
            runs = [pool.submit(run, config, method, progress, task, stop) for method, task in tasks.items()]
            for done in runs:
                done.result()
        except BaseException:
            stop.set()
            raise


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
        "commits": read_start(out)["commits"],
    }


def report_of(config: Config, command: list[str]) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("json", "plot", "out")}
    return {
        "benchmark": "methods",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/methods.py", *command]),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": versions(),
        "settings": settings,
        "rows": [row_of(config.out / method, method) for method in config.methods],
    }


def title(report: dict[str, Any]) -> str:
    settings = report["settings"]
    cut = f" cut to {settings['subset']:,} images" if settings["subset"] else ""
    network = f"{settings['arch']} of width {settings['width']}, {settings['stem']} stem"
    data = settings["data"].partition(":")[0]
    return f"{data}{cut}, {settings['epochs']} epochs of batch {settings['batch']}, {network}"


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
    config = tyro.cli(Config, args=arguments, description=__doc__)
    check(config)
    console = Console()
    train_all(config, console)
    report = report_of(config, sys.argv[1:] if arguments is None else arguments)
    console.print(table(report))
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the runs, too
    run_command(main)
