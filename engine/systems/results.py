"""A table's figures: gathered from the runs' folders, and written beside the published ones.

OUT/table.json   every figure, with machine, versions, command and commits
OUT/table.md     the table
OUT/table.csv    a line for each figure
OUT/table.png    its picture
"""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from penstock.counts import counted
from penstock.engine.csv_log import read_csv
from penstock.engine.runs import is_finished, read_run
from penstock.engine.systems.plan import Cell, differences
from penstock.engine.systems.table import Table
from penstock.files import write_whole

Report = dict[str, Any]
COLORS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#0b7285", "#5c3d00")


def gather(table: Table, cells: Sequence[Cell], folder: Callable[[str], Path], *, data: str, images: int) -> Report:
    """What there is so far; figures of runs that are not finished are absent.

    Args:
        folder: of a run's name.
        data, images: what was trained on.
    """
    own = "/".join(str(n) for n in sorted({cell.runs[0].config.epochs or 0 for cell in cells}))
    published = "/".join(str(n) for n in sorted({cell.entry.settings["epochs"] for cell in cells}))
    seeds = len(cells[0].runs)
    changed = {"seeds": f"{seeds} for {table.seeds}"} if seeds != table.seeds else {}
    return {
        "table": table.name, "title": table.title, "measure": table.measure, "source": table.source,
        "data": data, "images": images, "epochs": own, "published_epochs": published,
        "subset": any(cell.runs[0].config.subset for cell in cells),
        "changed": changed | differences(cells, images),
        "headings": list(table.headings),
        "columns": [name for name in table.columns if any(cell.entry.column == name for cell in cells)],
        "rows": [_row(cell, folder) for cell in cells],
    }  # fmt: skip


def _row(cell: Cell, folder: Callable[[str], Path]) -> dict[str, Any]:
    """`std` is of these runs (divided by n), as the published ones are, not an estimate from them (n - 1)."""
    finished = [folder(run.name) for run in cell.runs if is_finished(folder(run.name))]
    scores = [cell.entry.score(path) for path in finished]
    figures = [score for score in scores if score is not None]
    return {
        "row": list(cell.entry.row),
        "column": cell.entry.column,
        "figures": figures,
        "mean": mean(figures) if figures else None,
        "std": pstdev(figures) if len(figures) > 1 else None,
        "published": cell.entry.published,
        "published_std": cell.entry.published_std,
        "runs": [run.name for run in cell.runs],
        "minutes": [_minutes(path) for path in finished],
        "commits": sorted({str(commit) for path in finished for commit in read_run(path)["commits"]}),
    }


def _minutes(folder: Path) -> float:
    """Of training alone."""
    return sum(row.get("train_seconds", 0.0) for row in read_csv(folder / "epochs.csv")) / 60


def header(report: Report) -> str:
    """What was trained, as a line: how long, on how much, and what else differs from what was published."""
    cut = " cut to" if report["subset"] else ","
    epochs = "1 epoch" if report["epochs"] == "1" else f"{report['epochs']} epochs"
    length = f"{report['data']}{cut} {counted(report['images'], 'image')}, {epochs}"
    if report["epochs"] != report["published_epochs"]:
        length += f" ({report['published_epochs']} in the published table)"
    changed = ", ".join(f"{name.replace('_', ' ')} {values}" for name, values in report["changed"].items())
    return f"{length}; changed: {changed}" if changed else length


def cells_of(report: Report) -> tuple[list[str], list[list[str]]]:
    """The table as text: its columns, measured and published, and its rows."""
    columns = report["columns"]
    found = {(tuple(row["row"]), row["column"]): row for row in report["rows"]}
    shown = []
    for labels in dict.fromkeys(tuple(row["row"]) for row in report["rows"]):
        line = list(labels)
        for column in columns:
            row = found.get((labels, column), {})
            line += [_measured(row), _number(row.get("published"), row.get("published_std"))]
        shown.append(line)
    return [*report["headings"], *(name for column in columns for name in (column, "published"))], shown


def _measured(row: dict[str, Any]) -> str:
    """With a word on how many runs are behind it, where some are not finished."""
    figure = _number(row.get("mean"), row.get("std"))
    some = figure and len(row["figures"]) < len(row["runs"])
    return f"{figure} ({len(row['figures'])} of {len(row['runs'])} runs)" if some else figure


def _number(value: float | None, std: float | None) -> str:
    return "" if value is None else f"{value:.2f}" + ("" if std is None else f" ± {std:.2f}")


def markdown(report: Report) -> str:
    """The table under its title, with what was done and where the published figures are from."""
    columns, rows = cells_of(report)
    lines = ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *rows)]
    above = f"# {report['title']}\n\n{header(report)}.\n\n{report['measure']}. Published: {report['source']}.\n\n"
    return above + "\n".join(lines) + "\n"


def as_csv(report: Report) -> str:
    text = io.StringIO()
    figures = ("column", "mean", "std", "published", "published_std")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*report["headings"], *figures, "seeds", "minutes"])
    for row in report["rows"]:
        numbers = ("" if row[name] is None else row[name] for name in figures)
        minutes = f"{mean(row['minutes']):.2f}" if row["minutes"] else ""
        writer.writerow([*row["row"], *numbers, len(row["figures"]), minutes])
    return text.getvalue()


def rich_table(report: Report) -> RichTable:
    """A line for each figure, the published one beside it: as wide as `cells_of`, it would fit no screen."""
    shown = RichTable(box=SIMPLE_HEAD, show_edge=False)
    for heading in (*report["headings"], ""):
        shown.add_column(heading)
    for heading in ("measured", "published"):
        shown.add_column(heading, justify="right", no_wrap=True)
    labels, above = [row["row"] for row in report["rows"]], None
    for row in sorted(report["rows"], key=lambda row: labels.index(row["row"])):  # figures of the same labels together
        told = row["row"] if row["row"] != above else [""] * len(row["row"])
        shown.add_row(*told, row["column"], _measured(row), _number(row["published"], row["published_std"]))
        above = row["row"]
    return shown


def draw(report: Report, path: Path) -> None:
    """Measured figures as filled marks with their std, published ones as rings; a colour for each column.

    The rows of the table stand side by side; of a table of one row, its columns.
    """
    figure = Figure(figsize=(8.5, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    columns, rows = report["columns"], list(dict.fromkeys(_label(report["headings"], r["row"]) for r in report["rows"]))
    places = rows if len(rows) > 1 else columns
    for number, column in enumerate(columns):
        found = {_label(report["headings"], r["row"]): r for r in report["rows"] if r["column"] == column}
        shift = 0.1 * (number - (len(columns) - 1) / 2) if len(rows) > 1 else number
        at = {place + shift: found.get(row, {}) for place, row in enumerate(rows)}
        line = len(rows) > 2 and len(report["headings"]) == 1  # along one thing, such as strength
        _draw_column(axes, at, COLORS[number % len(COLORS)], line=line)
    axes.set_xticks(range(len(places)), places, fontsize=8)
    axes.set_xlim(-0.6, len(places) - 0.4)
    _label_axes(figure, axes, report)
    _add_legend(axes, columns if len(columns) > 1 and len(rows) > 1 else [])
    figure.savefig(path)


def _draw_column(axes: Axes, at: dict[float, dict[str, Any]], color: str, *, line: bool) -> None:
    """`at`: rows by where they stand on the x axis; empty where the column has no figure."""
    for kind, std, style in (("published", "published_std", ":"), ("mean", "std", "-")):
        values = [math.nan if row.get(kind) is None else row[kind] for row in at.values()]
        axes.errorbar(
            list(at), values, yerr=[row.get(std) or 0 for row in at.values()], color=color, fmt="o", markersize=6,
            capsize=3, elinewidth=1, markerfacecolor=color if kind == "mean" else "white",
        )  # fmt: skip
        if line:
            axes.plot(list(at), values, color=color, linestyle=style, linewidth=1, alpha=0.6, zorder=1)


def _label_axes(figure: Figure, axes: Axes, report: Report) -> None:
    figure.suptitle(textwrap.fill(report["title"], 105), x=0.01, ha="left", fontsize=10, fontweight="bold")
    axes.set_title(textwrap.fill(header(report), 120), loc="left", fontsize=8)
    axes.set_ylabel(textwrap.fill(report["measure"], 55), fontsize=8)
    if len(report["headings"]) == 1:
        axes.set_xlabel(report["headings"][0])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb")
    axes.set_axisbelow(True)


def _add_legend(axes: Axes, columns: Sequence[str]) -> None:
    marks = [Line2D([], [], color=color, marker="o", linestyle="") for color in COLORS]
    named = [(marks[number % len(COLORS)], column) for number, column in enumerate(columns)]
    for name, face in (("measured", "#57606a"), ("published", "white")):
        named.append((Line2D([], [], color="#57606a", marker="o", linestyle="", markerfacecolor=face), name))
    axes.legend(*zip(*named, strict=True), frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)


def _label(headings: Sequence[str], row: Sequence[str]) -> str:
    """A row as a few words: ticked headings by their name, numbers behind that of theirs, where there are several."""
    if len(headings) == 1:
        return row[0]
    ticked = ", ".join(heading for heading, value in zip(headings, row, strict=True) if value == "✓")
    others = [f"{heading} {value}" if value[:1].isdigit() else value
              for heading, value in zip(headings, row, strict=True) if value not in ("", "✓")]  # fmt: skip
    return "\n".join([ticked or "none"] * ("" in row or "✓" in row) + others)


def write_table(report: Report, about: dict[str, Any], out: Path) -> None:
    """All four files, each whole."""
    text = json.dumps({**about, **report}, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / "table.json", lambda path: path.write_text(text, encoding="utf-8"))
    write_whole(out / "table.md", lambda path: path.write_text(markdown(report), encoding="utf-8"))
    write_whole(out / "table.csv", lambda path: path.write_text(as_csv(report), encoding="utf-8"))
    write_whole(out / "table.png", lambda path: draw(report, path))
