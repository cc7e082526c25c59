"""The curves of a scale report: time, memory and rate over the number of samples, each contender a line."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from penstock.machine import machine_line

TEXT_COLOUR, GRID_COLOUR = "#323f4b", "#e4e7eb"
STYLES = {  # contender: colour and line; ours solid
    "ffcv": ("#1f6f8b", "-"),
    "resident": ("#3da5a5", "-"),
    "webdataset": ("#7a5195", "-"),
    "folder": ("#e08e0b", "-"),
    "ffcv-package": ("#d1495b", "--"),
    "torchvision": ("#7b8794", "--"),
}
PANELS = (  # figure, title, unit
    ("open_s", "Time to open the set", "s"),
    ("private_bytes_per_sample", "Private memory a sample", "B"),
    ("order_s", "Time until an epoch's first indices are known", "s"),
    ("pairs_per_s", "Pairs of views a second", ""),
)


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Draw `report`, as benchmarks/scale.py writes it to JSON, into `path`."""
    figure = Figure(figsize=(10, 7.6), dpi=150, layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, (name, title, unit) in zip(panels.flat, PANELS, strict=True):
        _lines(axes, report["rows"], name)
        _dress(axes, unit)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=TEXT_COLOUR)
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    figure.legend(
        [lines[name] for name in STYLES if name in lines],
        [name for name in STYLES if name in lines],
        loc="outside upper left",
        ncols=len(STYLES),
        frameon=False,
        labelcolor=TEXT_COLOUR,
    )
    figure.supxlabel(
        "\n".join(textwrap.wrap(_provenance(report), 125)), fontsize=8, color=TEXT_COLOUR, x=0.02, ha="left"
    )
    figure.savefig(path)


def _lines(axes: Axes, rows: list[dict[str, Any]], name: str) -> None:
    for contender, (colour, line) in STYLES.items():
        points = [(row["samples"], row[name]) for row in rows if row["contender"] == contender and row.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), line, color=colour, marker="o", markersize=4, label=contender)


def _dress(axes: Axes, unit: str) -> None:
    if not axes.get_lines():  # nobody was measured at that
        axes.set_axis_off()
        return
    axes.set(xscale="log", yscale="log")
    for axis, limit, of in ((axes.xaxis, axes.set_xlim, ""), (axes.yaxis, axes.set_ylim, unit)):
        first, last = np.log10(axis.get_data_interval())
        limit(10 ** (np.floor(first) - 0.05), 10 ** (np.ceil(last) + 0.05))  # whole decades: else too few are labelled
        axis.set_major_formatter(EngFormatter(unit=of, sep=" " if of else ""))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("samples", color=TEXT_COLOUR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelcolor=TEXT_COLOUR)
    axes.grid(color=GRID_COLOUR)
    axes.set_axisbelow(True)


def _provenance(report: dict[str, Any]) -> str:
    settings = report["settings"]
    return (
        "Tables, indexes and names as real ones, pixels of a few pictures repeated; opened from the page cache. Rates: "
        f"moco-v2, 2 × {settings['size']} px, batches of up to {settings['batch']}; ffcv and resident read RAW images "
        f"of 32 px, the others JPEG files. {machine_line(report['machine'])}; torch {report['versions']['torch']}, "
        f"{report['date'][:10]}"
    )
