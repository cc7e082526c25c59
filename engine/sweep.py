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

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from tyro.conf import Positional

from penstock.augment import load_recipe
from penstock.counts import counted
from penstock.engine.data import labelled_images, why_none
from penstock.engine.defaults import check_choices, complete
from penstock.engine.evaluate import run as evaluation
from penstock.engine.in_turn import InTurn
from penstock.engine.runs import Run, check_same, epochs_done, is_finished, make_folder, words_of
from penstock.engine.slurm import submit
from penstock.engine.systems import TABLES
from penstock.engine.systems.plan import Cut, fitting, plan
from penstock.engine.systems.results import gather, header, rich_table, write_table
from penstock.engine.systems.table import Table
from penstock.errors import UserError, run_command
from penstock.loaders import Source, open_source
from penstock.machine import describe_machine, machine_line, provenance
from penstock.options import read_options


@dataclass(frozen=True, kw_only=True)
class Config(Cut):
    table: Positional[str | None] = None
    """Which table; none: list them."""
    seeds: int | None = None
    """Runs of each, with seeds 0, 1, …; default: as published."""
    only: tuple[str, ...] = ()
    """Only runs with such names, without their seeds: "moco-*" (in quotes). The table then has only these, until the
    same is typed without --only."""
    dry_run: bool = False
    """Print the commands of the runs, and what is left to do."""
    jobs: int = 1
    """Runs at a time; each has its share of the CPUs, and a GPU of its own where there are several."""
    slurm: str | None = None
    """Hand the runs that are left to Slurm, a job for each, and leave: "partition=gpu gpus_per_node=1 cpus_per_task=16
    timeout_min=600", by submitit's names. Type the same again to see how far they are, and to submit what failed."""
    out: Path | None = None
    """Folder of the runs and the table; default: runs/TABLE."""


class Sweep:
    """The runs of a table, in one folder.

    Attributes:
        cells: entries with their runs.
        runs: each once, in the table's order.
    """

    def __init__(self, config: Config, table: Table) -> None:
        self.table, self.out = table, config.out or Path("runs") / table.name
        self.cells = plan(table, config, seeds=config.seeds or table.seeds, only=config.only)
        elsewhere = (config.data or "").partition(":")[0] not in ("", self.cells[0].entry.settings["data"])
        if config.subset or elsewhere:
            self.cells = fitting(self.cells, config.subset or len(self.source))
        self.runs = list({run.name: run for cell in self.cells for run in cell.runs}.values())

    @cached_property
    def source(self) -> Source:
        """What they train on."""
        config = self.cells[0].runs[0].config
        return open_source(config.data, config.split, class_list=config.class_list, limit=config.subset)

    def folder(self, name: str) -> Path:
        return self.out / "runs" / name

    def check(self, *, images: bool = True) -> None:
        """Raises UserError for what a run would refuse, and where another table or other runs lie in the folder.

        Args:
            images: whether to look at what it trains on, too, which may have to be downloaded for that.
        """
        path = self.out / "table.json"
        if path.exists() and (there := json.loads(path.read_text())["table"]) != self.table.name:
            raise UserError(f"--out {self.out}: the table {there} lies there: choose another --out")
        for run in self.runs:
            check_same(run, self.folder(run.name))
            check_choices(run.config)
            if run.evaluation is not None:
                evaluation.check(evaluation.parse(run.evaluation.words(self.folder(run.name))))
        if images:
            self._check_images()

    def _check_images(self) -> None:
        source = self.source
        for run in self.runs:
            try:
                config = complete(run.config, source=source.name, length=len(source), world=1)
                load_recipe(config.recipe, size=config.size)
            except UserError as error:
                raise UserError(f'{run.name}: {error}; what has no flag here is typed as --train="…"') from None
        if self.table.classes and len(source.classes) > self.table.classes:
            raise UserError(
                f"--data {config.data}: has {len(source.classes)} classes, and {self.table.name} is of"
                f" {self.table.classes}: name them with --class-list"
            )
        if labelled_images(config, source) is None:
            raise UserError(f"the table is of accuracies: {why_none(config, source)}")

    def write(self, command: str) -> dict[str, Any]:
        """Write the table as far as it is known; returns it."""
        name = self.source.name.removesuffix(f"-{self.cells[0].runs[0].config.split}")
        report = gather(self.table, self.cells, self.folder, data=name, images=len(self.source))
        make_folder(self.out)
        write_table(report, provenance(command), self.out)
        return report

    def commands(self) -> str:
        """The command of every run, behind what is left of it."""
        return "\n".join(self._commands(run) for run in self.runs)

    def _commands(self, run: Run) -> str:
        folder = self.folder(run.name)
        epochs = counted(run.config.epochs or 0, "epoch")
        left = "finished" if is_finished(folder) else f"{epochs_done(folder)} of {epochs}"
        words = ["python", "engine/train.py", *words_of(run.config), "--out", str(folder)]
        lines = [f"# {run.name}: {left}", shlex.join(words)]
        if run.evaluation is not None:
            lines.append(shlex.join(["python", "engine/evaluate/run.py", *run.evaluation.words(folder)]))
        return "\n".join(lines)


def listing() -> RichTable:
    """All tables; under what each shows, what it is trained on and costs."""
    shown = RichTable("table", "shows", box=SIMPLE_HEAD, show_edge=False)
    for table in TABLES.values():
        runs = {entry.run: entry.settings for entry in table.entries}
        epochs = "/".join(map(str, sorted({settings["epochs"] for settings in runs.values()})))
        data = ", ".join(dict.fromkeys(str(settings["data"]) for settings in runs.values()))
        count = counted(len(runs), "run") + (f" × {table.seeds} seeds" if table.seeds > 1 else "")
        cost = f"{data}, {count}, {epochs} epochs; cost {table.cost}"
        shown.add_row(table.name, f"{table.title}\n[dim]{cost}[/]")
    return shown


def check(config: Config) -> Table:
    """The table. Raises UserError where there is none, and for what cannot be."""
    table = TABLES.get((config.table or "").lower())
    if table is None:
        raise UserError(f"there is no table {config.table!r}; there are {', '.join(TABLES)}")
    if config.slurm is not None and config.jobs > 1:
        raise UserError(f"--jobs {config.jobs} is for this machine; with --slurm each run is a job: leave it out")
    for name in ("seeds", "jobs", "epochs", "subset", "batch"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: it takes at least 1")
    return table


def main(arguments: list[str] | None = None) -> int:
    config = read_options(Config, __doc__, arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if config.table is None:
        console.print(listing())
        return 0
    sweep = Sweep(config, check(config))
    if config.dry_run:
        sweep.check(images=config.data is not None)  # which are there, then
        print(sweep.commands())
        return 0
    sweep.check()
    command = shlex.join(["python", "engine/sweep.py", *(sys.argv[1:] if arguments is None else arguments)])
    if config.slurm is not None:
        for name, said in submit(sweep.runs, sweep.folder, config.slurm, sweep.out / "slurm").items():
            console.print(f"{name}: {said}", soft_wrap=True)
        show(sweep, sweep.write(command), console)
        return 0
    return carry_out(sweep, config.jobs, command, console)


def carry_out(sweep: Sweep, jobs: int, command: str, console: Console) -> int:
    """On this machine. Returns the exit code."""
    sweep.write(command)  # of this table, from now on
    turn = InTurn(sweep.runs, sweep.folder, jobs=jobs, console=console, finished=lambda: sweep.write(command))
    if not turn.carry_out():
        print(f"penstock: stopped; go on with: {command}", file=sys.stderr)
        return 128 + turn.interrupts.received
    show(sweep, sweep.write(command), console)
    for said in turn.failed.values():
        print(f"penstock: {said}", file=sys.stderr)
    if turn.failed:
        failed = f"{len(turn.failed)} of {counted(len(sweep.runs), 'run')} failed"
        print(f"penstock: {failed}; try them again with: {command}", file=sys.stderr)
    return 1 if turn.failed else 0


def show(sweep: Sweep, report: dict[str, Any], console: Console) -> None:
    console.print(f"\n{report['title']}\n{header(report)}\n{report['measure']}\n")
    console.print(rich_table(report))
    console.print(f"\n{machine_line(describe_machine())}")
    console.print(str(sweep.out / "table.md"), soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
