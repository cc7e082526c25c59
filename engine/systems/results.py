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
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

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
    return {
        "table": table.name, "title": table.title, "measure": table.measure, "source": table.source,
        "data": data, "images": images, "epochs": own, "published_epochs": published,
        "cut": any(cell.runs[0].config.subset for cell in cells) or own != published,
        "changed": differences(cells),
        "headings": list(table.headings),
        "rows": [_row(cell, folder) for cell in cells],
    }  # fmt: skip


def _row(cell: Cell, folder: Callable[[str], Path]) -> dict[str, Any]:
    finished = [folder(run.name) for run in cell.runs if is_finished(folder(run.name))]
    scores = [cell.entry.score(path) for path in finished]
    figures = [score for score in scores if score is not None]
    return {
        "row": list(cell.entry.row),
        "column": cell.entry.column,
        "figures": figures,
        "mean": mean(figures) if figures else None,
        "std": stdev(figures) if len(figures) > 1 else None,
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
    length = f"{report['data']}, {report['images']:,} images, {report['epochs']} epochs"
    if report["cut"]:
        cut = f"{report['data']} cut to {report['images']:,} images, {report['epochs']} epochs"
        length = f"{cut} ({report['published_epochs']} in the published table)"
    changed = ", ".join(f"{name.replace('_', ' ')} {values}" for name, values in report["changed"].items())
    return f"{length}; changed: {changed}" if changed else length


def cells_of(report: Report) -> tuple[list[str], list[list[str]]]:
    """The table as text: its columns, measured and published, and its rows."""
    columns = list(dict.fromkeys(row["column"] for row in report["rows"]))
    found = {(tuple(row["row"]), row["column"]): row for row in report["rows"]}
    shown = []
    for labels in dict.fromkeys(tuple(row["row"]) for row in report["rows"]):
        line = list(labels)
        for column in columns:
            row = found.get((labels, column), {})
            line += [_number(row.get("mean"), row.get("std")), _number(row.get("published"), row.get("published_std"))]
        shown.append(line)
    return [*report["headings"], *(name for column in columns for name in (column, "published"))], shown


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
    columns, rows = cells_of(report)
    shown = RichTable(title=report["title"], caption=report["measure"], box=SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number < len(report["headings"]) else "right")
    for row in rows:
        shown.add_row(*row)
    return shown


def draw(report: Report, path: Path) -> None:
    """Measured figures as filled marks with their std, published ones as rings."""
    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    columns = list(dict.fromkeys(row["column"] for row in report["rows"]))
    labels = list(dict.fromkeys(_label(report["headings"], row["row"]) for row in report["rows"]))
    for number, column in enumerate(columns):
        own = [row for row in report["rows"] if row["column"] == column]
        at = {_label(report["headings"], row["row"]): row for row in own}
        _draw_column(axes, [at.get(label) for label in labels], column, COLORS[number % len(COLORS)])
    axes.set_xticks(range(len(labels)), labels, rotation=20 if max(map(len, labels)) > 12 else 0)
    axes.set_ylabel(report["measure"].partition(",")[0], fontsize=9)
    axes.set_title(f"{report['title']}\n{header(report)}", loc="left", fontsize=9, wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path)


def _draw_column(axes: Axes, rows: Sequence[dict[str, Any] | None], column: str, color: str) -> None:
    for kind, name, style in (("mean", column, "-"), ("published", f"{column}, published", ":")):
        points = [(i, row[kind], row["std" if kind == "mean" else "published_std"]) for i, row in enumerate(rows)
                  if row and row[kind] is not None]  # fmt: skip
        if points:
            places, values, spreads = zip(*points, strict=True)
            axes.errorbar(
                places, values, yerr=[spread or 0 for spread in spreads], color=color, linestyle=style, marker="o",
                markerfacecolor=color if kind == "mean" else "white", capsize=3, linewidth=1.4, label=name,
            )  # fmt: skip


def _label(headings: Sequence[str], row: Sequence[str]) -> str:
    """A row as one label: ticked headings by their name."""
    named = (heading if value == "✓" else value for heading, value in zip(headings, row, strict=True) if value)
    return ", ".join(named) or "none"


def write_table(report: Report, about: dict[str, Any], out: Path) -> None:
    """All four files, each whole."""
    text = json.dumps({**about, **report}, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / "table.json", lambda path: path.write_text(text, encoding="utf-8"))
    write_whole(out / "table.md", lambda path: path.write_text(markdown(report), encoding="utf-8"))
    write_whole(out / "table.csv", lambda path: path.write_text(as_csv(report), encoding="utf-8"))
    write_whole(out / "table.png", lambda path: draw(report, path))
