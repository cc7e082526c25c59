"""The picture of a training report: the fed steps and how long each waits; below, the step part by part."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from penstock.benchmarks.chart import BASELINE_COLOUR, CEILING_COLOUR, GRID_COLOUR, LOADER_COLOUR, TEXT_COLOUR
from penstock.benchmarks.training_report import title
from penstock.errors import UserError
from penstock.machine import machine_line

COLOURS = {"penstock": LOADER_COLOUR, "official": BASELINE_COLOUR}
NAMES = {"penstock": "Penstock's step", "official": "the usual step"}
WAITING_COLOUR, PART_COLOUR = "#e0a458", "#3da5a5"
BAR_INCHES = 0.36


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Draw `report`, as benchmarks/training.py writes it to JSON, into `path`."""
    fed, parts = _fed(report), [part for part in report["parts"] if part["pairs_per_s"]][::-1]
    if not fed:
        raise UserError("nothing fed the step, so there is nothing to draw: the table says why")
    heights = [1.3 + BAR_INCHES * len(fed), *([0.9 + BAR_INCHES * len(parts)] if len(parts) > 1 else [])]
    mosaic: Any = [["fed", "waiting"], *([["parts", "parts"]] if len(parts) > 1 else [])]
    figure = Figure(figsize=(9, 0.4 + sum(heights)), dpi=150, layout="constrained")
    axes = figure.subplot_mosaic(mosaic, height_ratios=heights, width_ratios=[4, 1])
    _draw_fed(axes["fed"], fed, report)
    _draw_waiting(axes["waiting"], fed)
    if len(parts) > 1:
        _draw_parts(axes["parts"], parts)
    figure.supxlabel(
        "\n".join(textwrap.wrap(_provenance(report), 130)), x=0.01, ha="left", fontsize=7.5, color=TEXT_COLOUR
    )
    figure.savefig(path)


def _fed(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that load something, from below: the usual step's, then Penstock's, the fastest on top."""
    rows = [row for row in report["rows"] if row["pairs_per_s"] and row["feeder"] != "synthetic"]
    return sorted(rows, key=lambda row: (row["step"] == "penstock", row["pairs_per_s"]))


def _draw_fed(axes: Axes, rows: list[dict[str, Any]], report: dict[str, Any]) -> None:
    ceilings = {row["step"]: row["pairs_per_s"] for row in report["rows"] if row["feeder"] == "synthetic"}
    steps = [step for step in COLOURS if any(row["step"] == step for row in rows)]
    axes.set_xlim(0, 1.2 * max((*(max(row["repeats"]) for row in rows), *(ceilings[step] or 0 for step in steps))))
    for y, row in enumerate(rows):
        ceiling = ceilings[row["step"]]
        if ceiling:
            axes.plot([ceiling] * 2, [y - 0.42, y + 0.42], color=CEILING_COLOUR, linewidth=2.5, zorder=4)
        figures = (_number(row["pairs_per_s"]), _times(row["over_official"], 1), _percent(row["of_step"]))
        _bar(axes, y, row, COLOURS[row["step"]], "   ".join(filter(None, figures)), ceiling)
    axes.set_yticks(range(len(rows)), [row["feeder"] for row in rows], color=TEXT_COLOUR)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    handles: list[Any] = [Patch(color=COLOURS[step], label=NAMES[step]) for step in steps]
    handles.append(Line2D([], [], color=CEILING_COLOUR, linewidth=2.5, label="the same step alone, on one batch"))
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=3, fontsize=8.5, frameon=False,
        borderpad=0, labelcolor=TEXT_COLOUR, columnspacing=1.2,
    )  # fmt: skip
    _title(axes, "Pairs of views trained on a second, by what feeds the step\n", 12)
    _dress(axes)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw_waiting(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Beside each bar, the share of time in which there was no batch."""
    axes.barh(range(len(rows)), [row["waiting_share"] for row in rows], 0.68, color=WAITING_COLOUR, zorder=2)
    for y, row in enumerate(rows):
        place: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axes.annotate(f"{row['waiting_share']:.0%}", (row["waiting_share"], y), color=TEXT_COLOUR, **place)
    axes.set_xlim(0, 1.25)
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    _title(axes, "waiting for data", 9.5)
    _dress(axes)


def _draw_parts(axes: Axes, parts: list[dict[str, Any]]) -> None:
    axes.set_xlim(0, 1.12 * max(max(part["repeats"]) for part in parts))
    for y, part in enumerate(parts):
        figures = (_number(part["pairs_per_s"]), _times(part["over_first"], 2))
        _bar(axes, y, part, COLOURS.get(part["step"], PART_COLOUR), "   ".join(figures), None)
    axes.set_yticks(range(len(parts)), [part["name"] for part in parts], color=TEXT_COLOUR)
    axes.set_ylim(-0.6, len(parts) - 0.4)
    _title(axes, "The step alone, part by part: pairs a second", 10.5)
    _dress(axes)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _bar(axes: Axes, y: int, row: dict[str, Any], colour: str, text: str, ceiling: float | None) -> None:
    """A bar with its spread and its figures: in it, or beside it and its ceiling."""
    speed, far = row["pairs_per_s"], max(row["repeats"])
    axes.barh(y, speed, 0.68, color=colour, zorder=2)
    axes.plot([min(row["repeats"]), far], [y, y], color=TEXT_COLOUR, linewidth=1, zorder=3)
    room = 0.3 * axes.get_xlim()[1]  # what the figures take
    x, text_colour = (0.0, "white") if speed > room else (far, TEXT_COLOUR)
    if x and ceiling and far < ceiling < far + room:
        x = ceiling
    place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "zorder": 5}
    axes.annotate(text, (x, y), color=text_colour, weight="bold", fontsize=9, **place)


def _number(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _times(ratio: float | None, digits: int) -> str:
    return "" if ratio is None else f"{ratio:.{digits}f}×"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _title(axes: Axes, text: str, size: float) -> None:
    axes.set_title(text, loc="left", fontsize=size, fontweight="bold", color=TEXT_COLOUR)


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelcolor=TEXT_COLOUR, color=GRID_COLOUR, left=False)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="x", color=GRID_COLOUR, zorder=0)
    axes.set_axisbelow(True)


def _provenance(report: dict[str, Any]) -> str:
    """What the figures are, what was trained, and on what it was measured."""
    settings, torch = report["settings"], report["versions"]["torch"]
    return (
        "×: over the usual step fed by torchvision, below over the usual step alone; %: of the same step alone. "
        f"{title(settings)}; {settings['precision']}, the usual step in float32. {machine_line(report['machine'])}; "
        f"torch {torch}, {report['date'][:10]}"
    )
