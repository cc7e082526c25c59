"""What a throughput benchmark leaves: the JSON's content, and the tables that are printed."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Printed

from penstock.benchmarks.photographs import in_words
from penstock.benchmarks.plan import DECODE_ONLY, READ_ONLY, Table
from penstock.benchmarks.rival import Row
from penstock.benchmarks.worker import choose_recipe
from penstock.machine import machine_line, provenance, without_folders

RESTLESS = 0.1  # share of one CPU that waiting rows may use before the report warns of it
CAPTION = (
    "±: half the spread of the rounds; ratio: to torchvision; ceiling: share of decode-only (libjpeg-turbo; where the "
    "storage is raw, of read-only), same bytes and threads; CPU s: for 1,000 pairs; MB: of memory, pages of files left "
    "out; start: seconds to the first batch, imports left out, from caches where there are any"
)


def report_of(
    arguments: list[str], settings: dict[str, Any], tables: list[Table], scaling: list[Table]
) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it; no path of this machine."""
    return {
        "benchmark": "throughput",
        **provenance(shlex.join(["python", "benchmarks/throughput.py", *arguments])),
        "settings": settings,
        "tables": [_described(table) for table in tables],
        "scaling": [{"cpus": table.setting.threads, "rows": results(table.rows)} for table in scaling],
    }


def _described(table: Table) -> dict[str, Any]:
    setting = table.setting
    storages = {name: {"about": there.about, "bytes": there.bytes} for name, there in table.places.items()}
    return {
        "data": table.name,
        "images": table.files.count,
        "distinct_images": table.files.distinct,
        **asdict(setting),
        "recipe": without_folders(setting.recipe),
        "views": choose_recipe(setting.recipe, setting.size, setting.views).count,
        "storages": storages,
        "waiting_cpus": table.waiting,
        "rows": results(table.rows),
    }


def results(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as the JSON holds them: with the ratio to the baseline and the share of the ceiling."""
    baseline = rows[0].pairs_per_s
    ceilings = {row.storage: row.pairs_per_s for row in rows if row.loader in (DECODE_ONLY, READ_ONLY)}
    found = []
    for row in rows:
        speed, ceiling = row.pairs_per_s, ceilings.get(row.storage)
        ratio = speed / baseline if speed and baseline else None
        share = speed / ceiling if speed and ceiling else None
        error = without_folders(row.error) if row.error else None
        found.append({**asdict(row), "error": error, "pairs_per_s": speed, "ratio": ratio, "ceiling_share": share})
    return found


def show(report: dict[str, Any], console: Console) -> None:
    """Print the tables, and what a reader must know beside them."""
    for table in report["tables"]:
        console.print(printed(table, report["machine"]))
        for row in table["rows"]:
            _show_beside(row, console)
        if table["waiting_cpus"] > RESTLESS:
            console.print(f"rows that should rest used {table['waiting_cpus']:.1f} CPUs: all figures are too low")
    if report["scaling"]:
        console.print(printed_scaling(report))
    console.print(CAPTION)


def _show_beside(row: dict[str, Any], console: Console) -> None:
    name = f"{row['loader']} {row['storage'] or ''}".strip()
    if row["routed"]:
        console.print(f"{name}: {row['executor']}, {row['routed']:.0%} of the views by Albumentations")
    for text in filter(None, (row["note"], row["error"])):
        console.print(f"{name}: {text}", markup=False, soft_wrap=True)
    if row["cold"]:
        console.print(f"{name}: cold start {row['cold']:.1f} s, imports {row['imports']:.1f} s")


def images_of(table: dict[str, Any]) -> str:
    """What the rows of a table read."""
    return f"{table['data']}, {in_words(table['images'], table['distinct_images'])}"


def printed(table: dict[str, Any], machine: dict[str, Any]) -> Printed:
    shown = Printed(
        title=f"{table['recipe']}, {table['views']} views of {table['size']} px, batches of {table['batch']}: "
        f"{images_of(table)}\n{machine_line(machine)}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("loader", "storage"):
        shown.add_column(name, no_wrap=True)
    for name in ("workers", "pairs/s", "±", "ratio", "ceiling", "CPU s", "MB", "start"):
        shown.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in table["rows"]:
        if before not in (None, row["group"]):
            shown.add_section()
        before = row["group"]
        shown.add_row(row["loader"], row["storage"] or "", *_numbers(row))
    return shown


def _numbers(row: dict[str, Any]) -> list[str]:
    if row["pairs_per_s"] is None:
        return ["", "-"]
    cpu = median(row["cpu"])
    spread = (max(row["repeats"]) - min(row["repeats"])) / 2 / row["pairs_per_s"]  # of one measurement: unknown
    return [
        str(row["workers"]),
        f"{row['pairs_per_s']:,.0f}",
        f"{spread:.0%}" if len(row["repeats"]) > 1 else "",
        f"{row['ratio']:.2f}×" if row["ratio"] else "",
        f"{row['ceiling_share']:.0%}" if row["ceiling_share"] else "",
        f"{cpu:.1f}" if cpu >= 1 else f"{cpu:.2g}",
        f"{max(row['memory']):,.0f}" if row["memory"] else "",
        f"{row['start']:.1f}" if row["start"] else "",
    ]


def printed_scaling(report: dict[str, Any]) -> Printed:
    """Pairs a second of each row on more and more CPUs, and how many times that is of one CPU's."""
    shown = Printed(title="pairs/s by CPUs", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("loader", "storage"):
        shown.add_column(name, no_wrap=True)
    for step in report["scaling"]:
        shown.add_column(f"{step['cpus']} CPU{'s' * (step['cpus'] > 1)}", justify="right")
    for same in zip(*(step["rows"] for step in report["scaling"]), strict=True):
        first = same[0]["pairs_per_s"]
        speeds = [f"{row['pairs_per_s']:,.0f}" if row["pairs_per_s"] else "-" for row in same]
        more = [f" ({row['pairs_per_s'] / first:.2f}×)" if row["pairs_per_s"] and first else "" for row in same[1:]]
        shown.add_row(same[0]["loader"], same[0]["storage"], *map("".join, zip(speeds, ["", *more], strict=True)))
    return shown
