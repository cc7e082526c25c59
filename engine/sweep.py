"""The published tables: each with one command, in full or cut to minutes.

    python engine/sweep.py                                              # lists the tables, with their data and cost
    python engine/sweep.py r1-subsets                                   # in full
    python engine/sweep.py r1-subsets --subset 10000 --epochs 20 --width 16 --batch 128 --only "simclr-*" "moco-*"

A table is a list of runs with stable names, each in OUT/runs/NAME. Stopped (Ctrl-C, SIGTERM) or killed, and started
again, it goes on where it was: no run is repeated, none is lost. OUT/table.md, .csv, .json and .png have the published
figures beside the measured ones, and are written anew whenever a run is finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
import shlex
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table as RichTable
from tyro.conf import DisallowNone, Positional

from penstock.augment import load_recipe
from penstock.engine.config import TrainConfig
from penstock.engine.defaults import check_choices, complete
from penstock.engine.evaluate.data import labelled, open_validation
from penstock.engine.runs import Place, Run, RunFailed, carry_out, check_same, epochs_done, is_finished, words_of
from penstock.engine.systems import TABLES
from penstock.engine.systems.plan import Cell, Cut, plan
from penstock.engine.systems.results import gather, header, rich_table, write_table
from penstock.engine.systems.table import Table
from penstock.errors import UserError, run_command
from penstock.loaders import Source, open_source
from penstock.loaders.threads import available_cpus
from penstock.machine import describe_machine, git_commit, machine_line, versions

REFUSED = 2  # the exit code of a command that was given what cannot work


@dataclass(frozen=True, kw_only=True)
class Config(Cut):
    table: Positional[str | None] = None
    """Which table; none: list them."""
    seeds: int | None = None
    """Runs of each, with seeds 0, 1, …; default: as published."""
    only: tuple[str, ...] = ()
    """Only runs with such names: "moco-*" (in quotes)."""
    dry_run: bool = False
    """Print the commands of the runs, and what is left to do."""
    jobs: int = 1
    """Runs at a time; each has its share of the CPUs, and a GPU of its own where there are several."""
    out: Path | None = None
    """Folder of the runs and the table; default: runs/TABLE."""


class Sweep:
    """The runs of a table, in one folder.

    Attributes:
        cells: entries with their runs.
        source: what they train on.
        runs: each once, in the table's order.
        failed: what runs left with an error said.
    """

    def __init__(self, config: Config, table: Table) -> None:
        self.config, self.table = config, table
        self.out = config.out or Path("runs") / table.name
        self.cells = plan(table, config, seeds=config.seeds or table.seeds, only=config.only)
        self.source = open_training(self.cells[0].runs[0].config)
        self.cells = [fitting(cell, config, len(self.source)) for cell in self.cells]
        self.runs = list({run.name: run for cell in self.cells for run in cell.runs}.values())
        self.failed: dict[str, str] = {}

    def folder(self, name: str) -> Path:
        return self.out / "runs" / name

    def check(self) -> None:
        """Raises UserError for what a run would refuse, and where other runs lie in the folder."""
        for run in self.runs:
            check_same(run, self.folder(run.name))
            check_choices(run.config)
            completed = complete(run.config, source=self.source.name, length=len(self.source), world=1)
            load_recipe(completed.recipe, size=completed.size)
        check_evaluated(self.runs[0].config)

    def write(self, command: list[str]) -> dict[str, Any]:
        """Write the table as far as it is known; returns it."""
        name = self.source.name.rpartition("-")[0] or self.source.name
        report = gather(self.table, self.cells, self.folder, data=name, images=len(self.source))
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "engine/sweep.py", *command]),
            "commit": git_commit(),
            "machine": describe_machine(),
            "versions": versions(),
        }
        write_table(report, about, self.out)
        return report


def open_training(config: TrainConfig) -> Source:
    return open_source(config.data, config.split, class_list=config.class_list, limit=config.subset)


def fitting(cell: Cell, cut: Cut, length: int) -> Cell:
    """With a queue of the default length, an eighth of the data, where these were changed and the published has more."""
    if cut.subset is None and cut.data is None:
        return cell

    def fitted(run: Run) -> Run:
        longer = run.config.queue == cell.entry.settings.get("queue") and (run.config.queue or 0) > length // 8
        return dataclasses.replace(run, config=dataclasses.replace(run.config, queue=None)) if longer else run

    return dataclasses.replace(cell, runs=tuple(map(fitted, cell.runs)))


def check_evaluated(config: TrainConfig) -> None:
    """Refuse data without labels: the runs would end without what the table is about."""
    bank = labelled(open_training(config))
    if not len(bank) or open_validation(config.data, val_data=config.val_data, class_list=config.class_list) is None:
        raise UserError(
            f"--data {config.data}: the table needs labels and a validation split, and these have none: choose other"
            " data, or name labelled images of the same classes with --val-data"
        )


class InTurn:
    """Carries out a sweep's runs on this machine, `jobs` at a time.

    Attributes:
        stop: when set, runs save and leave after their step, and no other begins.
        report: called whenever a run is finished.
    """

    def __init__(self, sweep: Sweep, console: Console, report: Callable[[], object]) -> None:
        self.sweep, self.console, self.report = sweep, console, report
        self.stop, self.places, self.lock = Event(), _places(sweep.config.jobs), Lock()
        self.progress = Progress(console=console)
        self.shown: dict[TaskID, int] = {}  # epochs, on the runs' bars

    def carry_out(self) -> bool:
        """All runs that are not finished yet. Returns False where it was stopped."""
        with self.progress, ThreadPoolExecutor(self.sweep.config.jobs) as pool:
            total = sum(run.config.epochs or 0 for run in self.sweep.runs)
            self.overall = self.progress.add_task(f"{len(self.sweep.runs)} runs, epochs", total=total)
            try:
                for future in [pool.submit(self._one, run) for run in self.sweep.runs]:
                    future.result()
            except BaseException:
                self.stop.set()
                raise
        return not self.stop.is_set()

    def _one(self, run: Run) -> None:
        folder, began = self.sweep.folder(run.name), time.perf_counter()
        if self.stop.is_set() or is_finished(folder):
            self.progress.advance(self.overall, run.config.epochs or 0)
            return
        place, bar = self.places.get(), self.progress.add_task(run.name, total=run.config.epochs)
        try:
            if carry_out(run, folder, place=place, stop=self.stop, watch=partial(self._show, bar)):
                self.console.print(f"{run.name}: finished, {(time.perf_counter() - began) / 60:.1f} min")
                with self.lock:
                    self.report()
        except RunFailed as error:
            self.sweep.failed[run.name] = str(error)
            self.console.print(f"{run.name}: failed ({folder / 'output.txt'})")
            if error.code == REFUSED:  # as the others would be
                self.stop.set()
        finally:
            self.progress.remove_task(bar)
            self.places.put(place)

    def _show(self, bar: TaskID, epochs: int) -> None:
        self.progress.advance(self.overall, epochs - self.shown.get(bar, 0))
        self.progress.update(bar, completed=epochs)
        self.shown[bar] = epochs


def _places(jobs: int) -> SimpleQueue[Place]:
    places: SimpleQueue[Place] = SimpleQueue()
    gpus = torch.cuda.device_count()
    for number in range(jobs):
        workers = max(1, available_cpus() // jobs) if jobs > 1 else None
        places.put(Place(workers=workers, gpu=number % gpus if gpus > 1 else None))
    return places


def listing() -> RichTable:
    """All tables, with their data and what they cost."""
    shown = RichTable(box=SIMPLE_HEAD, show_edge=False)
    for heading in ("table", "shows", "data", "runs", "epochs", "published cost"):
        shown.add_column(
            heading, justify="right" if heading in ("runs", "epochs") else "left", no_wrap=heading == "table"
        )
    for table in TABLES.values():
        runs = {entry.run: entry.settings for entry in table.entries}
        epochs = sorted({settings["epochs"] for settings in runs.values()})
        data = ", ".join(dict.fromkeys(str(settings["data"]) for settings in runs.values()))
        count = f"{len(runs)} × {table.seeds}" if table.seeds > 1 else str(len(runs))
        shown.add_row(table.name, table.title, data, count, "/".join(map(str, epochs)), table.cost)
    return shown


def commands(sweep: Sweep) -> str:
    """The command of every run, behind what is left of it."""
    lines = []
    for run in sweep.runs:
        folder = sweep.folder(run.name)
        left = "finished" if is_finished(folder) else f"{epochs_done(folder)} of {run.config.epochs} epochs"
        words = ["python", "engine/train.py", *words_of(run.config), "--out", str(folder)]
        lines.append(f"# {run.name}: {left}\n{shlex.join(words)}")
        if run.evaluation is not None:
            lines.append(shlex.join(["python", "engine/evaluate/run.py", *run.evaluation.words(folder)]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    config = tyro.cli(Config, args=arguments, config=(DisallowNone,), description=__doc__)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if config.table is None:
        console.print(listing())
        return 0
    if config.table not in TABLES:
        raise UserError(f"there is no table {config.table!r}; there are {', '.join(TABLES)}")
    for name in ("seeds", "jobs", "epochs", "subset"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: it takes at least 1")
    sweep = Sweep(config, TABLES[config.table])
    sweep.check()
    if config.dry_run:
        print(commands(sweep))
        return 0
    typed = sys.argv[1:] if arguments is None else arguments
    finished = InTurn(sweep, console, lambda: sweep.write(typed)).carry_out()
    report = sweep.write(typed)
    console.print(rich_table(report))
    console.print(f"{header(report)}\n{machine_line(describe_machine())}\n{sweep.out / 'table.md'}", soft_wrap=True)
    for said in sweep.failed.values():
        print(f"penstock: {said}", file=sys.stderr)
    if sweep.failed:
        print(f"penstock: {len(sweep.failed)} of {len(sweep.runs)} runs failed; started again, they are tried again",
              file=sys.stderr)  # fmt: skip
    return 0 if finished and not sweep.failed else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the runs, too
    run_command(main)
