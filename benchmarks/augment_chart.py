"""The bar chart of an augmentation report: a small panel for each chain and operation, each with its own scale.

On a CPU microseconds a view; below, where there was a GPU, milliseconds a batch on it.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from penstock.benchmarks.augment_gpu import CAVEATS
from penstock.benchmarks.augment_report import number, sides
from penstock.benchmarks.chart import BASELINE_COLOUR, LOADER_COLOUR, TEXT_COLOUR
from penstock.machine import machine_line

RIVAL_COLOUR, EXECUTOR_COLOUR = "#cbd2d9", "#8fb8c7"
COLUMNS = 3
HEADING = 0.5  # inches

Panel = list[dict[str, Any]]  # the rows of one operation


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Draw `report`, as benchmarks/augment.py writes it to JSON, into `path`."""
    parts = {
        "Microseconds a view, and how many times as fast as the baseline": _panels(report, on_gpu=False),
        "On the GPU: milliseconds a batch, and how many times the floor": _panels(report, on_gpu=True),
    }
    parts = {title: panels for title, panels in parts.items() if panels}
    heights = [HEADING + sum(_heights(panels)) for panels in parts.values()]
    figure = Figure(figsize=(15, sum(heights) + 0.6), dpi=120, layout="constrained")
    subfigures = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)
    for part, (title, panels) in zip(subfigures.flat, parts.items(), strict=True):
        _draw_part(part, title, panels)
    figure.supxlabel("\n".join(textwrap.wrap(_provenance(report), 190)), x=0.01, ha="left", color=TEXT_COLOUR, size=8)
    figure.savefig(path)


def _panels(report: dict[str, Any], *, on_gpu: bool) -> list[Panel]:
    rows = [row for row in report["rows"] if bool(row["batch"]) == on_gpu]
    return [[row for row in rows if row["operation"] == name] for name in dict.fromkeys(r["operation"] for r in rows)]


def _lines(panels: list[Panel]) -> list[list[Panel]]:
    return [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]


def _heights(panels: list[Panel]) -> list[float]:
    """Of each line of panels, inches."""
    return [0.7 + 0.24 * max(map(len, line)) for line in _lines(panels)]


def _draw_part(part: SubFigure, title: str, panels: list[Panel]) -> None:
    """Panels of one kind under their title."""
    lines = _lines(panels)
    grid = part.subplots(len(lines), COLUMNS, squeeze=False, height_ratios=_heights(panels))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
    for row, line in zip(grid, lines, strict=True):
        for axes in row:  # bars of one width
            axes.set_ylim(max(map(len, line)) - 0.4, -0.6)
    part.suptitle(title, x=0.01, ha="left", color=TEXT_COLOUR, fontsize=14, fontweight="bold")


def _draw_panel(axes: Axes, rows: Panel) -> None:
    """The bars of one operation, from top to bottom as in the report; the shorter the better."""
    longest = max(map(_time, rows))
    axes.set_xlim(0, longest)
    for y, row in enumerate(rows):
        time = _time(row)
        axes.barh(y, time, 0.72, color=_colour(row), zorder=2)
        inside = time > 0.7 * longest
        axes.annotate(
            _text(row), (time, y), (-5 if inside else 5, 0), textcoords="offset points", va="center",
            ha="right" if inside else "left", size=8, color="white" if inside and _ours(row) else TEXT_COLOUR,
            weight="bold" if _ours(row) else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows], color=TEXT_COLOUR, size=8)
    axes.set_title(_title(rows[0]), loc="left", size=10, weight="bold", color=TEXT_COLOUR)
    if not rows[0]["batch"]:
        axes.set_title(f"floor {number(rows[0]['floor_us'])}", loc="right", size=8, color=TEXT_COLOUR)
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _time(row: dict[str, Any]) -> float:
    return float(row["ms_per_batch"] if row["batch"] else row["us_per_view"])


def _title(row: dict[str, Any]) -> str:
    batch = f", {row['batch']:,} × {row['views_per_batch'] // row['batch']}" if row["batch"] else ""
    return f"{row['operation']}, {sides(row)} px{batch}"


def _text(row: dict[str, Any]) -> str:
    """A bar's figures."""
    if row["batch"]:
        time = row["ms_per_batch"]
        return f"{time:,.0f}   {row['over_floor']:,.0f}×" if time >= 100 else f"{time:.3g}   {row['over_floor']:,.1f}×"
    ratio = f"   {row['ratio']:.1f}×" if row["ratio"] and row["executor"] != row["baseline"] else ""
    return number(row["us_per_view"]) + ratio


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
    on_gpu = any(row["batch"] for row in report["rows"])
    caveats = "".join(f"{name}: {caveat}. " for name, caveat in CAVEATS.items()) if on_gpu else ""
    return (
        f"{images['count']} decoded images of {images['median_pixels'] / 1e6:.2f} megapixels (small views: 32×32), one "
        f"thread unless said. Chains end in normalised float32 tensors, random values included; operations in bytes, "
        f"on a GPU in such tensors. Floor: reading a view's crop and writing the view at the speed of copying memory. "
        f"{caveats}{machine_line(report['machine'])}; torch {report['versions']['torch']}, {report['date'][:10]}"
    )
