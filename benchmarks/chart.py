"""The bar chart of a throughput report: one bar for each loader, fastest on top, its ceiling marked."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from penstock.machine import machine_line

BASELINE_COLOUR, LOADER_COLOUR, CEILING_COLOUR, TEXT_COLOUR = "#9aa5b1", "#1f6f8b", "#d1495b", "#323f4b"


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Draw `report`, as benchmarks/throughput.py writes it to JSON, into `path`."""
    speeds = {(row["loader"], row["storage"]): row["pairs_per_s"] for row in report["rows"]}
    bars = [row for row in report["rows"] if row["pairs_per_s"] and row["loader"] not in ("decode-only", "synthetic")]
    bars.sort(key=lambda row: row["pairs_per_s"])
    figure = Figure(figsize=(9, 2.2 + 0.55 * len(bars)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(0, 1.12 * max((*(max(row["repeats"]) for row in bars), *_ceilings(speeds))))
    for y, row in enumerate(bars):
        _bar(axes, y, row, speeds.get(("decode-only", row["storage"])))
    axes.set_yticks(range(len(bars)), [_name(row) for row in bars], color=TEXT_COLOUR)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 0.98), borderpad=0, frameon=False, fontsize=9, labelcolor=TEXT_COLOUR
    )
    _dress(axes, report, speeds.get(("synthetic", None)))
    figure.savefig(path)


def _bar(axes: Axes, y: int, row: dict[str, Any], ceiling: float | None) -> None:
    speed = row["pairs_per_s"]
    axes.barh(y, speed, 0.62, color=BASELINE_COLOUR if row["loader"] == "torchvision" else LOADER_COLOUR, zorder=2)
    axes.plot([min(row["repeats"]), max(row["repeats"])], [y, y], color=TEXT_COLOUR, linewidth=1, zorder=3)
    text = f"{speed:,.0f}" + (f"   {row['ratio']:.1f}×" if row["ratio"] else "")
    fits = speed > 0.25 * axes.get_xlim()[1]
    x, colour = (0, "white") if fits else (max(row["repeats"]), TEXT_COLOUR)
    axes.annotate(text, (x, y), (8, 0), textcoords="offset points", va="center", color=colour, weight="bold", zorder=4)
    if ceiling:
        label = "decoding alone: same bytes, same threads" if y == 0 else None
        axes.plot([ceiling] * 2, [y - 0.31, y + 0.31], color=CEILING_COLOUR, linewidth=2.5, label=label, zorder=3)
        axes.annotate(
            f"{ceiling:,.0f}",
            (ceiling, y),
            (5, 0),
            textcoords="offset points",
            va="center",
            color=CEILING_COLOUR,
            size=8,
        )


def _name(row: dict[str, Any]) -> str:
    return f"{row['loader']}\n{row['storage']}, {row['workers']} worker{'s' * (row['workers'] > 1)}"


def _ceilings(speeds: dict[tuple[str, str | None], float | None]) -> list[float]:
    return [speed for (loader, _), speed in speeds.items() if loader == "decode-only" and speed]


def _dress(axes: Axes, report: dict[str, Any], synthetic: float | None) -> None:
    """Title, unit and provenance."""
    settings = report["settings"]
    axes.set_title(
        f"Pairs of views a second: {settings['recipe']}, {settings['views']} × {settings['size']} px",
        loc="left",
        fontsize=13,
        fontweight="bold",
        color=TEXT_COLOUR,
        pad=26,
    )
    noise = f"; batches that cost nothing to make: {synthetic:,.0f}/s" if synthetic else ""
    provenance = (
        f"{report['images']:,} files of {Path(settings['data']).name}{noise}. {machine_line(report['machine'])}; "
        f"torch {report['versions']['torch']}, {report['date'][:10]}"
    )
    axes.set_xlabel("\n".join(textwrap.wrap(provenance, 110)), fontsize=8, color=TEXT_COLOUR, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, labelcolor=TEXT_COLOUR)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", color="#e4e7eb", zorder=0)
    axes.set_axisbelow(True)
