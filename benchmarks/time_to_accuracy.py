"""Minutes of training until a published kNN accuracy on CIFAR-10 is reached.

    python benchmarks/time_to_accuracy.py --quick                                               # on embedded images
    python benchmarks/time_to_accuracy.py --json time.json --plot time.png                      # on a GPU, in full
    python benchmarks/time_to_accuracy.py --rows original --minutes 20                          # as far as that goes
    python benchmarks/time_to_accuracy.py --subset 2000 --epochs 4 --width 8 --stem half --batch 128      # on a CPU

Each row is a run of a published table, with the settings of that table (engine/systems), and its target the figure that
stands there: `original` and `albumentations-7` are of r0 (200 epochs), `moco` is abcde of r1-subsets (800 epochs). What
is chosen here makes it faster: --loader, --compile, and how often kNN is evaluated. Precision and executor are the
fastest that the machine has, unless --train says otherwise: bf16 and fused_gpu on a recent GPU. The report names all of
it, and has published times of others beside it (`time_to_accuracy_report.py`).

Minutes are those of OUT/runs/NAME/epochs.csv: of training, the wait for data and the time to compile included, without
start, checkpoints and evaluation; minutes with evaluation stand beside them. A target is found at the first evaluation
that reaches it, so up to --knn-every epochs late.

Rows are trained one after the other, each alone on the machine. Stopped (Ctrl-C, SIGTERM, --minutes) or killed, and
started again with the same command or more minutes, each goes on from its checkpoint, and its minutes with it. --json
and --plot are written whenever a row is over, with all rows as far as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from threading import Event
from typing import Any

import torch
from rich.console import Console
from tyro.conf import Suppress

from penstock.benchmarks.results import check_places, write_results
from penstock.benchmarks.time_to_accuracy_report import REFERENCES, draw_chart, figures, machine_made, minutes_of, show
from penstock.counts import counted
from penstock.engine.csv_log import read_csv
from penstock.engine.defaults import CHOICES
from penstock.engine.runs import REFUSED, Place, Run, RunFailed, carry_out, epochs_done, is_finished, read_run
from penstock.engine.signals import Interrupts
from penstock.engine.sweep import Config as SweepConfig
from penstock.engine.sweep import Sweep
from penstock.engine.systems import TABLES
from penstock.engine.systems.plan import Cell, Cut, differences
from penstock.engine.systems.results import gather, header
from penstock.engine.systems.table import Entry, Table
from penstock.errors import UserError, run_command
from penstock.loaders.make import check_name
from penstock.machine import portable, provenance
from penstock.options import read_options

ROWS = {  # by their names here: a published table, and the run in it
    "original": ("r0", "cifar10-moco-cifar"),
    "albumentations-7": ("r0", "cifar10-albumentations-7"),
    "moco": ("r1-subsets", "moco-abcde"),
}


@dataclass(frozen=True, kw_only=True)
class Config(Cut):
    class_list: Suppress[Path | None] = None  # of image folders
    evaluate: Suppress[str] = ""  # no row is evaluated by more than training logs
    rows: tuple[str, ...] = tuple(ROWS)
    """Which rows: original, albumentations-7, moco; default: all. --epochs cuts each as if all were trained."""
    loader: str = "resident"
    """Who feeds the training; resident: all images in memory, the GPU's where the views are made there."""
    compile: str = "auto"
    """torch.compile for the networks: off, default, reduce-overhead (CUDA graphs), max-autotune, or auto: default on a
    GPU, off on a CPU, where compiling takes long."""
    knn_every: int = 10
    """Epochs between two kNN evaluations; the last epoch has one in any case."""
    minutes: float | None = None
    """Stop a row when it has trained for so long, at the end of an epoch or some steps later; more minutes go on."""
    quick: bool = False
    """A look: where nothing else is said, 1000 embedded images, two epochs (moco: eight) in batches of 64, kNN after
    each, a network of width 8, nothing compiled, in runs/time-to-accuracy-quick."""
    out: Path = Path("runs/time-to-accuracy")
    """Folder of the runs."""
    json: Path | None = None
    """Write the report, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw kNN over the minutes into this picture (.png, .svg or .pdf)."""


QUICK = Config(
    quick=True, data="shapes", subset=1000, epochs=2, batch=64, width=8, stem="half", compile="off", knn_every=1,
    out=Path("runs/time-to-accuracy-quick"),
)  # fmt: skip


def check(config: Config) -> None:
    """Refuse what cannot be before any data are opened."""
    for name in config.rows:
        if name not in ROWS:
            raise UserError(f"--rows {name!r} is not known: choose from {', '.join(ROWS)}")
    for name in ("epochs", "subset", "batch", "width", "knn_every"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: it takes at least 1")
    if config.minutes is not None and not config.minutes > 0:
        raise UserError(f"--minutes {config.minutes:g}: a row needs more than 0; leave it out to train to the end")
    modes = ("auto", *CHOICES["compile"])
    if config.compile not in modes:
        raise UserError(f"--compile {config.compile!r} is not known: choose one of {', '.join(modes)}")
    check_name(config.loader)
    check_places(json=config.json, plot=config.plot)


def published(name: str) -> tuple[Table, Entry]:
    """The table that a row is of, and its entry there."""
    table, run = TABLES[ROWS[name][0]], ROWS[name][1]
    return table, next(entry for entry in table.entries if entry.run == run)


def table_of(config: Config) -> Table:
    """All rows as a table of their own, so that --epochs cuts them in one ratio, with what is chosen for speed."""
    mode = config.compile
    if mode == "auto":
        mode = "default" if torch.cuda.is_available() else "off"
    chosen = {"loader": config.loader, "compile": mode, "knn_every": config.knn_every}
    entries = {name: published(name)[1] for name in ROWS}
    return Table(
        name="time-to-accuracy",
        title="Minutes of training until a published kNN accuracy is reached",
        measure="kNN accuracy, %, as each row's table has it",
        source="each row's table",
        headings=("row",),
        entries=tuple(
            replace(entry, row=(name,), settings={**entry.settings, **chosen}) for name, entry in entries.items()
        ),
    )


def plan(config: Config) -> Sweep:
    """The runs of the rows that were asked for."""
    cut = {field.name: getattr(config, field.name) for field in fields(Cut)}
    only = tuple(ROWS[name][1] for name in config.rows)
    sweep = Sweep(SweepConfig(**cut, seeds=1, only=only, out=config.out), table_of(config))
    for run in sweep.runs:
        if run.config.knn_every == 0:
            raise UserError("--train has --knn-every 0, and rows are timed by their kNN accuracy: leave it out")
    return sweep


class Watch:
    """Looks at a run while it trains: says what kNN finds, and stops it when its minutes are over, or on a signal.

    One that is trained to its end needs no more minutes to be finished.
    """

    def __init__(
        self, name: str, run: Run, folder: Path, interrupts: Interrupts, minutes: float | None, console: Console
    ) -> None:
        self.name, self.log, self.interrupts, self.console = name, folder / "epochs.csv", interrupts, console
        self.epochs, self.minutes, self.stop = run.config.epochs or 0, minutes, Event()
        self.said = epochs_done(folder)

    def look(self) -> None:
        log = read_csv(self.log)
        spent = minutes_of(log)
        for row, minutes in zip(log, spent, strict=True):
            if row["epoch"] > self.said and "knn" in row:
                self.say(f"epoch {row['epoch']:.0f}, {minutes:.2f} min, kNN {row['knn']:.2f} %")
                self.said = int(row["epoch"])
        left = not log or log[-1]["epoch"] < self.epochs
        if self.interrupts.received or (self.minutes is not None and left and spent and spent[-1] >= self.minutes):
            self.stop.set()

    def say(self, text: str) -> None:
        self.console.print(f"{self.name}: {text}", soft_wrap=True)


def train(sweep: Sweep, config: Config, console: Console, over: Callable[[], object]) -> tuple[dict[str, str], int]:
    """All rows, each until it is finished, its minutes are over, or a signal comes.

    Args:
        over: called when one has come so far.

    Returns: what those that failed said, by the names of their runs, and the signal that came, 0 for none.

    Raises:
        RunFailed: a run was refused, as the others would be.
    """
    failed: dict[str, str] = {}
    with Interrupts() as interrupts:
        for cell in sweep.cells:
            [run], [name] = cell.runs, cell.entry.row
            watch = Watch(name, run, sweep.folder(run.name), interrupts, config.minutes, console)
            try:
                _train_one(run, sweep.folder(run.name), watch)
            except RunFailed as error:
                if error.code == REFUSED:
                    raise
                failed[run.name] = str(error)
                watch.say("failed")
            over()
            if interrupts.received:
                break
    return failed, interrupts.received


def _train_one(run: Run, folder: Path, watch: Watch) -> None:
    if is_finished(folder):
        return
    watch.look()  # its minutes may be over already
    if not watch.stop.is_set():
        watch.say(f"from epoch {epochs_done(folder)} of {run.config.epochs}")
        waits = "waiting for those who are at it"
        carry_out(
            run, folder, place=Place(), stop=watch.stop, watch=lambda _: watch.look(), waits=lambda: watch.say(waits)
        )
    done = f"{epochs_done(folder)} of {counted(run.config.epochs or 0, 'epoch')}"
    if is_finished(folder):
        watch.say("finished")
    elif watch.interrupts.received:
        watch.say(f"stopped after {done}")
    else:
        watch.say(f"its {watch.minutes:g} minutes are over, after {done}; more --minutes go on")


def report_row(cell: Cell, folder: Path, images: int) -> dict[str, Any]:
    """A row of the report: what was to be reached, what was, and with which settings."""
    [name], [run] = cell.entry.row, cell.runs
    table, entry = published(name)
    assert entry.published is not None
    return {
        "row": name, "table": table.name, "run": run.name, "target": entry.published,
        "target_is": f"{table.measure} ({table.source}, {entry.settings['epochs']} epochs)",
        **figures(read_csv(folder / "epochs.csv"), entry.published),
        "epochs_planned": run.config.epochs, "finished": is_finished(folder),
        "changed": differences([replace(cell, entry=entry)], images),
        "commits": read_run(folder)["commits"] if (folder / "run.json").exists() else [],
        **_about(folder),
    }  # fmt: skip


def _about(folder: Path) -> dict[str, Any]:
    """What engine/train.py noted of a run: network, recipe, executor, machine, `settings` to the last one."""
    path = folder / "config.json"
    if not path.exists():
        return {}
    about = json.loads(path.read_text())
    settings = {name: value for name, value in about.pop("config").items() if name not in ("out", "resume")}
    return {**{name: value for name, value in about.items() if name != "resume"}, "settings": portable(settings)}


def report_of(sweep: Sweep, command: list[str]) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it; no path of this machine."""
    name = sweep.source.name.removesuffix("-train")
    cells = [replace(cell, entry=published(cell.entry.row[0])[1]) for cell in sweep.cells]
    quick = "--quick: " * ("--quick" in command)
    trained = header(gather(sweep.table, cells, sweep.folder, data=name, images=len(sweep.source)))
    rows = [report_row(cell, sweep.folder(cell.runs[0].name), len(sweep.source)) for cell in sweep.cells]
    return {
        "benchmark": "time_to_accuracy",
        **provenance(shlex.join(["python", "benchmarks/time_to_accuracy.py", *command])),
        "trained": quick + "; ".join([trained, *machine_made(rows)]),
        "rows": rows,
        "references": [reference._asdict() for reference in REFERENCES],
    }


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = read_options(Config, __doc__, arguments, quick=QUICK)
    check(config)
    sweep = plan(config)
    sweep.check()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

    def write() -> dict[str, Any]:
        report = report_of(sweep, arguments)
        write_results(report, draw_chart, json_file=config.json, plot=config.plot)
        return report

    failed, signal = train(sweep, config, console, write)
    show(write(), console)
    for said in failed.values():
        print(f"penstock: {said}", file=sys.stderr)
    if signal:
        print("penstock: stopped; the same command goes on", file=sys.stderr)
    return 128 + signal if signal else 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
