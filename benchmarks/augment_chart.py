"""The bar chart of an augmentation report: a small panel for each chain and operation, each with its own scale."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from penstock.benchmarks.chart import BASELINE_COLOUR, LOADER_COLOUR, TEXT_COLOUR
from penstock.machine import machine_line

RIVAL_COLOUR, EXECUTOR_COLOUR = "#cbd2d9", "#8fb8c7"
COLUMNS = 3


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Draw `report`, as benchmarks/augment.py writes it to JSON, into `path`."""
    operations = list(dict.fromkeys(row["operation"] for row in report["rows"]))
    lines = [operations[i : i + COLUMNS] for i in range(0, len(operations), COLUMNS)]
    by_operation = {name: [row for row in report["rows"] if row["operation"] == name] for name in operations}
    heights = [0.7 + 0.24 * max(len(by_operation[name]) for name in line) for line in lines]
    figure = Figure(figsize=(15, sum(heights) + 1.1), dpi=120, layout="constrained")
    grid = figure.subplots(len(lines), COLUMNS, squeeze=False, height_ratios=heights)
    for axes in grid.flat[len(operations) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, operations, strict=False):
        _panel(axes, by_operation[name])
    for line, names in zip(grid, lines, strict=True):
        for axes in line:  # bars of one width
            axes.set_ylim(max(len(by_operation[name]) for name in names) - 0.4, -0.6)
    figure.suptitle(
        "Microseconds a view, and how many times as fast as the baseline", x=0.01, ha="left", color=TEXT_COLOUR,
        fontsize=14, fontweight="bold",
    )  # fmt: skip
    figure.supxlabel("\n".join(textwrap.wrap(_provenance(report), 190)), x=0.01, ha="left", color=TEXT_COLOUR, size=8)
    figure.savefig(path)


def _panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The bars of one operation, from top to bottom as in the report; the shorter the better."""
    longest = max(row["us_per_view"] for row in rows)
    axes.set_xlim(0, longest)
    for y, row in enumerate(rows):
        time = row["us_per_view"]
        axes.barh(y, time, 0.72, color=_colour(row), zorder=2)
        ratio = f"   {row['ratio']:.1f}×" if row["ratio"] and row["executor"] != row["baseline"] else ""
        text = _number(time) + ratio
        inside = time > 0.7 * longest
        axes.annotate(
            text, (time, y), (-5 if inside else 5, 0), textcoords="offset points", va="center",
            ha="right" if inside else "left", size=8, color=TEXT_COLOUR, weight="bold" if _ours(row) else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows], color=TEXT_COLOUR, size=8)
    title = f"{rows[0]['operation']}, {rows[0]['size']} px"
    axes.set_title(title, loc="left", size=10, weight="bold", color=TEXT_COLOUR)
    axes.set_title(f"floor {_number(rows[0]['floor_us'])}", loc="right", size=8, color=TEXT_COLOUR)
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _ours(row: dict[str, Any]) -> bool:
    return row["executor"].startswith("fused")


def _colour(row: dict[str, Any]) -> str:
    if row["executor"] == row["baseline"]:
        return BASELINE_COLOUR
    if _ours(row):
        return LOADER_COLOUR
    return RIVAL_COLOUR if "-" in row["executor"] or row["executor"] == "kornia" else EXECUTOR_COLOUR


def _name(row: dict[str, Any]) -> str:
    return row["executor"] + (f", {row['threads']} threads" if row["threads"] > 1 else "")


def _provenance(report: dict[str, Any]) -> str:
    images = report["images"]
    return (
        f"{images['count']} decoded images of {images['median_pixels'] / 1e6:.2f} megapixels (small views: 32×32), one "
        f"thread unless said. Chains end in normalised float32 tensors, random values included; operations in bytes. "
        f"Floor: reading a view's crop and writing the view at the speed of copying memory. "
        f"{machine_line(report['machine'])}; torch {report['versions']['torch']}, {report['date'][:10]}"
    )
