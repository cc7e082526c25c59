"""What a run's log comes to, as minutes until an accuracy: figures, table, picture, others' published times beside."""

from __future__ import annotations

import textwrap
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from penstock.benchmarks.chart import CEILING_COLOUR, GRID_COLOUR, LOADER_COLOUR, TEXT_COLOUR
from penstock.engine.csv_log import Row
from penstock.machine import machine_line

COLOURS = (LOADER_COLOUR, "#e0a458", CEILING_COLOUR)
POINTS = 10.0  # of height that a label takes


class Reference(NamedTuple):
    """A published time of another machine. Its minutes are with evaluation after every epoch, or do not say."""

    what: str
    epochs: int
    knn: float
    minutes: int
    machine: str
    note: str
    source: str

    def __str__(self) -> str:
        reached = f"{self.knn:g} % after {self.epochs} epochs in {self.minutes} minutes on {self.machine}"
        return f"{self.what}: {reached}; {self.note}"


_LIGHTLY = (
    "docs/source/getting_started/benchmarks.rst in github.com/lightly-ai/lightly (the GPU: as for its Imagenette)"
)
REFERENCES = (
    Reference(
        "the MoCo authors' CIFAR-10 demo", 200, 82.6, 83, "a V100",
        "the settings of original; about 25 s an epoch, 20 of them training",
        "colab/moco_cifar10_demo.ipynb in github.com/facebookresearch/moco",
    ),
    Reference("lightly's MoCo", 200, 84.7, 112, "an A6000", "kNN after every epoch, of the best one", _LIGHTLY),
    Reference("lightly's MoCo", 800, 89.9, 418, "an A6000", "kNN after every epoch, of the best one", _LIGHTLY),
    Reference(
        "the authors of moco's table", 800, 90.12, 600, "a V100", "about 10 h a run, 90.12 in their later version",
        "Huang et al., arXiv 2111.00743, and its authors' code",
    ),
)  # fmt: skip


def minutes_of(log: list[Row]) -> list[float]:
    """Minutes of training until the end of each line's epoch."""
    return list(accumulate(row.get("train_seconds", 0.0) / 60 for row in log))


def figures(log: list[Row], target: float) -> dict[str, Any]:
    """What a run's log comes to, so far; None for what it does not tell yet.

    `reached`, `best` (the first epoch with it) and `last` are points of `curve`: epoch, minutes, minutes with
    evaluation, kNN. Of the untrained network only the curve speaks.
    """
    evaluation = accumulate(row.get("knn_seconds", 0.0) / 60 for row in log)
    both = [(training, training + more) for training, more in zip(minutes_of(log), evaluation, strict=True)]
    curve = [
        {"epoch": int(row["epoch"]), "minutes": training, "minutes_with_evaluation": all_of_it, "knn": row["knn"]}
        for row, (training, all_of_it) in zip(log, both, strict=True)
        if "knn" in row
    ]
    trained = [point for point in curve if point["epoch"]]
    timed = [row for row in log if "train_seconds" in row]
    seconds = sum(row["train_seconds"] for row in timed)
    minutes, with_evaluation = both[-1] if both else (0.0, 0.0)
    return {
        "reached": next((point for point in trained if point["knn"] >= target), None),
        "best": max(trained, key=lambda point: point["knn"], default=None),
        "last": trained[-1] if trained else None,
        "epochs": int(log[-1]["epoch"]) if log else 0,
        "minutes": minutes,
        "minutes_with_evaluation": with_evaluation,
        "seconds_per_epoch": median(row["train_seconds"] for row in timed) if timed else None,
        "images_per_s": median(row["images_per_s"] for row in timed) if timed else None,
        "wait_share": sum(row["wait_share"] * row["train_seconds"] for row in timed) / seconds if timed else None,
        "curve": curve,
    }


def machine_made(rows: list[dict[str, Any]]) -> list[str]:
    """Precision and executor of the rows that have begun, which no setting of theirs tells: both are chosen for the
    machine."""
    found = {name: dict.fromkeys(row[name] for row in rows if row.get(name)) for name in ("precision", "executor")}
    return [f"{name} {'/'.join(values)}" for name, values in found.items() if values]


def show(report: dict[str, Any], console: Console) -> None:
    console.print(f"\n{report['trained']}\n")
    console.print(_table(report))
    console.print("\n".join(_published(report)), soft_wrap=True)
    console.print(machine_line(report["machine"]))


def _table(report: dict[str, Any]) -> Table:
    shown = Table(box=SIMPLE_HEAD, show_edge=False)
    shown.add_column("row", no_wrap=True)
    headings = ("target %", "best %", "last %", "reached, min", "epochs", "min", "with kNN", "s/epoch", "images/s",
                "waiting")  # fmt: skip
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        shown.add_row(
            row["row"], f"{row['target']:.2f}",
            *(f"{row[name]['knn']:.2f}" if row[name] else "" for name in ("best", "last")),
            _reached(row) or "no", f"{row['epochs']}/{row['epochs_planned']}",
            _minutes(row["minutes"]), _minutes(row["minutes_with_evaluation"]),
            _number(row["seconds_per_epoch"], ".2f"), _number(row["images_per_s"], ",.0f"),
            _number(row["wait_share"], ".1%"),
        )  # fmt: skip
    return shown


def _reached(row: dict[str, Any]) -> str:
    point = row["reached"]
    return f"{_minutes(point['minutes'])} (epoch {point['epoch']})" if point else ""


def _minutes(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _published(report: dict[str, Any]) -> list[str]:
    """The references as lines of text."""
    return [
        "Published, of other machines, evaluation included:",
        *(f"  {Reference(**known)}" for known in report["references"]),
    ]


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """kNN over the minutes of training, a line for each row, from the untrained network; targets are dashed lines.

    A ring is where a row first reached its target.
    """
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, colour in zip(report["rows"], COLOURS, strict=False):
        _draw_row(axes, row, colour)
    axes.set(xlabel="minutes of training, without evaluation", ylabel="kNN accuracy, %")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelcolor=TEXT_COLOUR, color=GRID_COLOUR)
    axes.grid(color=GRID_COLOUR)
    axes.set_axisbelow(True)
    title = "Minutes of training until a published kNN accuracy is reached"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=TEXT_COLOUR)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), frameon=False, fontsize=9, labelcolor=TEXT_COLOUR)
    versions = f"{machine_line(report['machine'])}; torch {report['versions']['torch']}, {report['date'][:10]}"
    below = [textwrap.fill(line, 150) for line in (f"{report['trained']}. {versions}", *_published(report))]
    figure.supxlabel("\n".join(below), x=0.01, ha="left", fontsize=7.5, color=TEXT_COLOUR)
    _label_targets(figure, axes, {row["target"]: colour for row, colour in zip(report["rows"], COLOURS, strict=False)})
    figure.savefig(path)


def _draw_row(axes: Axes, row: dict[str, Any], colour: str) -> None:
    minutes, knn = [[point[name] for point in row["curve"]] for name in ("minutes", "knn")]
    axes.plot(minutes, knn, color=colour, linewidth=1.8, label=_legend(row))
    axes.axhline(row["target"], color=colour, linewidth=0.9, linestyle=(0, (5, 4)))
    if reached := row["reached"]:
        axes.plot(reached["minutes"], reached["knn"], "o", color=colour, markerfacecolor="white", markersize=8)


def _legend(row: dict[str, Any]) -> str:
    done = f"{row['epochs']} of {row['epochs_planned']} epochs in {_minutes(row['minutes'])} min"
    if reached := row["reached"]:
        when = f"{_minutes(reached['minutes'])} min, {reached['epoch']} epochs"
        return f"{row['row']}: {row['target']:.2f} % after {when}; {done}"
    best = f", best {row['best']['knn']:.2f} %" if row["best"] else ""
    return f"{row['row']}: {row['target']:.2f} % not reached; {done}{best}"


def _label_targets(figure: Figure, axes: Axes, targets: dict[float, str]) -> None:
    """Right of the axes, each at its line, or as far above the one below it as a label takes."""
    figure.draw_without_rendering()  # the layout decides how high the axes are
    low, high = axes.get_ylim()
    least = (high - low) * POINTS / (axes.get_window_extent().height / figure.dpi * 72)
    place = low
    for target, colour in sorted(targets.items()):
        place = max(target, place + least)
        at: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        text = f"published {target:.2f}"
        axes.annotate(text, (1, place), xycoords=axes.get_yaxis_transform(), color=colour, size=8, **at)
