"""What the scale benchmark leaves: the JSON's content, and the tables that are printed."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from penstock.benchmarks.scale_lineup import CONTENDERS, Row
from penstock.benchmarks.scale_sets import bytes_on_disk
from penstock.machine import machine_line, portable, provenance

INDEX = {  # heading: (figure, its format)
    "open s": ("open_s", "{:,.3f}"),
    "private": ("private_bytes_per_sample", "{:,.1f}"),
    "mapped": ("mapped_bytes_per_sample", "{:,.1f}"),
    "peak": ("peak_bytes_per_sample", "{:,.1f}"),
    "order s": ("order_s", "{:,.4f}"),
    "full": ("order_us", "{:,.2f}"),
    "quasi": ("quasi_us", "{:,.2f}"),
}
BATCHES_OF = {
    "first batch s": ("first_batch_s", "{:,.2f}"),
    "pairs/s, new images": ("new_pairs_per_s", "{:,.0f}"),
    "pairs/s, again": ("pairs_per_s", "{:,.0f}"),
}


def report_of(settings: dict[str, Any], command: list[str], rows: list[Row], available: int) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it; no path of this machine."""
    return {
        "benchmark": "scale",
        **provenance(shlex.join(["python", "benchmarks/scale.py", *command])),
        "settings": portable(settings),
        "memory_available": available,
        "rows": results(rows),
    }


def results(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as the JSON holds them: medians, memory also for each sample."""
    found = []
    for row in rows:
        figures = row.figures()
        each = {
            name.replace("bytes", "bytes_per_sample"): value / row.samples
            for name, value in figures.items()
            if name.endswith("bytes") and value is not None
        }
        found.append({**asdict(row), **figures, **each})
    return found


def short(number: int) -> str:
    """1280000 as 1.28M."""
    unit, letter = (10**6, "M") if number >= 10**6 else (1000, "k") if number >= 1000 else (1, "")
    return f"{number / unit:g}{letter}"


def table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, str]], title: str, caption: str) -> Table:
    shown = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown.add_column("samples", justify="right", no_wrap=True)
    shown.add_column("contender", no_wrap=True)
    for heading in columns:
        shown.add_column(heading, justify="right", no_wrap=True)
    last = None
    for row in rows:
        samples, last = short(row["samples"]) if row["samples"] != last else "", row["samples"]
        cells = [format.format(row[name]) if row.get(name) is not None else "" for name, format in columns.values()]
        shown.add_row(samples, row["contender"], *cells)
    return shown


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table, and what is not in it."""
    rows, machine = report["rows"], machine_line(report["machine"])
    caption = (
        "private, mapped, peak: bytes of memory a sample, opened and while opening;\norder: until the first batch's"
    )
    caption += " indices are known; full, quasi: µs/index"
    console.print(table(rows, INDEX, f"Index and order by the number of samples\n{machine}", caption))
    settings = report["settings"]
    title = f"Batches: moco-v2, 2 views of {settings['size']} px, batches of up to {settings['batch']}"
    rated = [row for row in rows if row.get("first_batch_s") is not None]
    console.print(table(rated, BATCHES_OF, title, "new images: read, and their checksums tested, for the first time"))
    largest = max((bytes_on_disk(CONTENDERS[row["contender"]].kind, row["samples"]) for row in rows), default=0)
    if largest > report["memory_available"]:
        free = decimal(report["memory_available"])
        console.print(
            f"{free} of memory were free, the largest tables take {decimal(largest)}: read from the disk again"
        )
    for row in rows:
        if row["error"]:
            console.print(f"{row['contender']}, {row['samples']:,}: {row['error']}", markup=False)
    for name in report["settings"]["contenders"]:
        contender = CONTENDERS[name]
        if contender.most and max(report["settings"]["samples"]) > contender.most:
            console.print(f"{name}: left out above {contender.most:,} samples: {contender.why}")
