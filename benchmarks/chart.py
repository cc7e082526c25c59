"""The picture of a throughput report: a bar for each row, fastest on top; below, small images and fewer CPUs."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from penstock.benchmarks.report import images_of
from penstock.machine import machine_line

BASELINE_COLOUR, LOADER_COLOUR, PEER_COLOUR = "#9aa5b1", "#1f6f8b", "#e0a458"
COLOURS = {"ours": LOADER_COLOUR, "baseline": BASELINE_COLOUR, "peer": PEER_COLOUR}
NAMES = {"ours": "Penstock", "baseline": "torchvision: the baseline", "peer": "other packages"}
CEILING_COLOUR, TEXT_COLOUR, GRID_COLOUR = "#d1495b", "#323f4b", "#e4e7eb"
BAR_INCHES, PANEL_INCHES = 0.4, 2.6


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Draw `report`, as benchmarks/throughput.py writes it to JSON, into `path`."""
    first, *others = report["tables"]
    panels = [*(["small"] if others else []), *(["scaling"] if report["scaling"] else [])]
    mosaic: Any = [["main"] * max(1, len(panels)), *([panels] if panels else [])]
    heights = [1.4 + BAR_INCHES * len(_bars(first)), *([PANEL_INCHES] if panels else [])]
    figure = Figure(figsize=(9, sum(heights)), dpi=150, layout="constrained")
    axes = figure.subplot_mosaic(mosaic, height_ratios=heights)
    _draw_table(axes["main"], first, big=True)
    _legend(figure, first)
    if others:
        _draw_table(axes["small"], others[0], big=False)
    if report["scaling"]:
        _draw_scaling(axes["scaling"], report["scaling"])
    figure.supxlabel(
        "\n".join(textwrap.wrap(_provenance(report), 130)), x=0.01, ha="left", fontsize=7.5, color=TEXT_COLOUR
    )
    figure.savefig(path)


def _bars(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that are drawn as bars, slowest first: from below."""
    rows = [row for row in table["rows"] if row["pairs_per_s"] and row["group"] != "ceiling"]
    return sorted(rows, key=lambda row: row["pairs_per_s"])


def _ceilings(table: dict[str, Any]) -> dict[str, float]:
    """Pairs a second of decoding alone, for each storage that the baseline or a row of ours decodes."""
    drawn = {row["storage"] for row in _bars(table) if row["group"] != "peer"}
    rows = [row for row in table["rows"] if row["loader"] == "decode-only" and row["pairs_per_s"]]
    return {row["storage"]: row["pairs_per_s"] for row in rows if row["storage"] in drawn}


def _draw_table(axes: Axes, table: dict[str, Any], *, big: bool) -> None:
    bars, ceilings = _bars(table), _ceilings(table)
    axes.set_xlim(0, 1.1 * max((*(max(row["repeats"]) for row in bars), *ceilings.values())))
    for y, row in enumerate(bars):
        ceiling = None if row["group"] == "peer" else ceilings.get(row["storage"])
        _bar(axes, y, row, ceiling, size=10 if big else 8.5)
    labels = [f"{row['loader']}  ·  {row['storage']}" for row in bars]
    axes.set_yticks(range(len(bars)), labels, color=TEXT_COLOUR, fontsize=10 if big else 8.5)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    _title(axes, f"Pairs of views a second: {table['recipe']}, {table['views']} × {table['size']} px", big=big)
    _dress(axes)
    axes.tick_params(left=False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", color=GRID_COLOUR, zorder=0)


def _bar(axes: Axes, y: int, row: dict[str, Any], ceiling: float | None, *, size: float) -> None:
    """A row's bar with its spread, its figures, and its ceiling."""
    speed, far = row["pairs_per_s"], max(row["repeats"])
    axes.barh(y, speed, 0.68, color=COLOURS[row["group"]], zorder=2)
    axes.plot([min(row["repeats"]), far], [y, y], color=TEXT_COLOUR, linewidth=1, zorder=3)
    if ceiling:
        axes.plot([ceiling] * 2, [y - 0.34, y + 0.34], color=CEILING_COLOUR, linewidth=2.5, zorder=4)
    text = f"{speed:,.0f}" + (f"   {row['ratio']:.1f}×" if row["ratio"] else "")
    room = 0.16 * axes.get_xlim()[1]  # what the figures take
    x, colour = (0.0, "white") if speed > room else (far, TEXT_COLOUR)
    if colour == TEXT_COLOUR and ceiling and far < ceiling < far + room:
        x = ceiling
    place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "zorder": 5}
    axes.annotate(text, (x, y), color=colour, weight="bold", size=size, **place)


def _legend(figure: Figure, table: dict[str, Any]) -> None:
    """Above the panels: in one, it could cover a mark."""
    groups = [group for group in COLOURS if any(row["group"] == group for row in _bars(table))]
    handles: list[Any] = [Patch(color=COLOURS[group], label=NAMES[group]) for group in groups]
    if _ceilings(table):
        label = "decoding alone with libjpeg-turbo: same bytes, same threads"
        handles.append(Line2D([], [], color=CEILING_COLOUR, linewidth=2.5, label=label))
    place: dict[str, Any] = {"loc": "outside upper left", "ncols": len(handles), "columnspacing": 1.2}
    figure.legend(handles=handles, fontsize=8, labelcolor=TEXT_COLOUR, frameon=False, **place)


def _draw_scaling(axes: Axes, steps: list[dict[str, Any]]) -> None:
    """A line for each row, labelled at its end, over the number of CPUs; both axes doubling."""
    cpus = [step["cpus"] for step in steps]
    ends = []
    for same in zip(*(step["rows"] for step in steps), strict=True):
        speeds = [row["pairs_per_s"] for row in same]
        if all(speeds):
            axes.plot(cpus, speeds, marker="o", markersize=4, color=COLOURS[same[0]["group"]])
            ends.append((speeds[-1], f"{same[0]['loader']} · {same[0]['storage']}"))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(cpus[0] * 0.93, cpus[-1] * (cpus[-1] / cpus[0]) ** 0.8)  # room for the labels
    axes.set_xticks(cpus, [f"{count} CPU{'s' * (count > 1)}" for count in cpus])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    _label_apart(axes, cpus[-1], ends)
    _title(axes, "Pairs a second by CPUs", big=False)
    _dress(axes)
    axes.grid(color=GRID_COLOUR, zorder=0)


def _label_apart(axes: Axes, x: float, ends: list[tuple[float, str]]) -> None:
    """Names at the ends of lines, pushed up where they would cover each other."""
    least = (max(ends)[0] / min(ends)[0]) ** (1 / 11) if len(ends) > 1 else 1.0
    below = 0.0
    for value, name in sorted(ends):
        below = max(value, below * least)
        axes.annotate(name, (x, below), (7, 0), textcoords="offset points", va="center", size=7.5, color=TEXT_COLOUR)


def _title(axes: Axes, text: str, *, big: bool) -> None:
    axes.set_title(text, loc="left", fontsize=13 if big else 9.5, fontweight="bold", color=TEXT_COLOUR)


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelcolor=TEXT_COLOUR, color=GRID_COLOUR)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set_axisbelow(True)


def _provenance(report: dict[str, Any]) -> str:
    """On what it was measured."""
    sets = "; ".join(map(images_of, report["tables"]))
    torch = report["versions"]["torch"]
    return f"{sets}. {machine_line(report['machine'])}; torch {torch}, {report['date'][:10]}"
