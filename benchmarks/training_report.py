"""What the training benchmark leaves: the JSON's content, and the Markdown tables that are printed."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from penstock.benchmarks.photographs import in_words
from penstock.benchmarks.training_profile import profile_table
from penstock.benchmarks.training_race import Row
from penstock.engine.backbones import takes_width
from penstock.machine import machine_line, provenance, without_folders

RESTLESS = 0.25  # a spread that no row has on a machine that does nothing else
CAPTION = (
    "±: half the spread of the rounds; waiting: share of the time without a batch to work on; of the step: pairs/s over"
    " those of the same step on one batch that is there already; vs torchvision: over the same step fed by torchvision;"
    " vs usual: over the usual step fed by torchvision; first step: empty where the same step has run in a row above"
)
ON_CPU = (
    "On a CPU the loader's threads and the network share the cores. torch computes on {threads} of {cpus} CPUs, in all "
    "rows, as in engine/train.py; a loader that takes more than the rest slows the step down rather than have it wait."
)


def report_of(
    arguments: list[str], settings: dict[str, Any], rows: list[Row], parts: list[tuple[str, Row]], notes: list[str]
) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it; no path of this machine."""
    return {
        "benchmark": "training",
        **provenance(shlex.join(["python", "benchmarks/training.py", *arguments])),
        "settings": settings,
        "rows": fed(rows),
        "parts": part_by_part(parts),
        "notes": notes,
    }


def fed(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as the JSON holds them, with their ratios."""
    speeds = {(row.step, row.feeder): row.pairs_per_s for row in rows}
    return [
        _figures(row)
        | {
            "of_step": _over(row.pairs_per_s, speeds.get((row.step, "synthetic"))),
            "over_torchvision": _over(row.pairs_per_s, speeds.get((row.step, "torchvision"))),
            "over_official": _over(row.pairs_per_s, speeds.get(("official", "torchvision"))),
        }
        for row in rows
    ]


def part_by_part(parts: list[tuple[str, Row]]) -> list[dict[str, Any]]:
    """Steps on one batch, each with one part more than the one before."""
    found = []
    first = before = None
    for name, row in parts:
        speed = row.pairs_per_s
        first = first or speed
        found.append(
            {"name": name, **_figures(row), "over_before": _over(speed, before), "over_first": _over(speed, first)}
        )
        before = speed or before
    return found


def _figures(row: Row) -> dict[str, Any]:
    speed = row.pairs_per_s
    return asdict(row) | {
        "error": without_folders(row.error) if row.error else None,
        "pairs_per_s": speed,
        "spread": (max(row.repeats) - min(row.repeats)) / 2 / speed if speed and len(row.repeats) > 1 else None,
        "waiting_share": median(row.waiting) if speed else None,
    }


def _over(speed: float | None, other: float | None) -> float | None:
    return speed / other if speed and other else None


def show(report: dict[str, Any], console: Console) -> None:
    """Print the tables, and what a reader must know beside them."""
    settings = report["settings"]
    console.print(f"{title(settings)}\n{machine_line(report['machine'])}; {settings['precision']}\n", soft_wrap=True)
    console.print(_fed_table(report["rows"]))
    if len(report["parts"]) > 1:
        console.print(_parts_table(report["parts"]))
    if "profile" in report:
        console.print(profile_table(report["profile"]))
    for row in [*report["rows"], *report["parts"]]:
        if row["error"] and (row.get("name") or row["step"]):
            console.print(f"{row.get('name') or row['step']}, {row['feeder']}: {row['error']}", soft_wrap=True)
    worst = max(filter(None, (row["spread"] for row in [*report["rows"], *report["parts"]])), default=0.0)
    if worst > RESTLESS:
        console.print(f"Rounds differ by up to ±{worst:.0%}: something else ran on this machine, so measure again.")
    console.print("\n".join([*report["notes"], CAPTION]), soft_wrap=True)


def title(settings: dict[str, Any]) -> str:
    """What was trained, on what."""
    width = f" of width {settings['width']}" * takes_width(settings["arch"])
    return (
        f"{settings['method']}, {settings['arch']}{width}, {settings['recipe']} at {settings['size']} px, batches of "
        f"{settings['batch']}: "
        f"{settings['data']}, {in_words(settings['images'], settings['distinct_images'])}"
    )


def _fed_table(rows: list[dict[str, Any]]) -> Table:
    shown = _table("step", "fed by", "workers", "pairs/s", "±", "waiting", "of the step", "vs torchvision", "vs usual")
    for row in rows:
        shown.add_row(
            row["step"], row["feeder"], str(row["workers"] or ""), *_speed(row), _percent(row["waiting_share"]),
            _percent(row["of_step"]), _times(row["over_torchvision"]), _times(row["over_official"]),
        )  # fmt: skip
    return shown


def _parts_table(parts: list[dict[str, Any]]) -> Table:
    measured = any(part["memory"] is not None for part in parts)
    shown = _table("the step alone", "pairs/s", "±", "vs before", "vs first", "first step", *["GPU memory"] * measured)
    for part in parts:
        first = f"{part['first_step']:.1f} s" if part["first_step"] else ""
        memory = "" if part["memory"] is None else f"{part['memory']:.2f} GB"
        ratios = _times(part["over_before"]), _times(part["over_first"])
        shown.add_row(part["name"], *_speed(part), *ratios, first, *[memory] * measured)
    return shown


def _table(*columns: str) -> Table:
    shown = Table(box=MARKDOWN)
    for name in columns:
        text = name in ("step", "fed by", "the step alone")
        shown.add_column(name, justify="left" if text else "right", no_wrap=True)
    return shown


def _speed(row: dict[str, Any]) -> tuple[str, str]:
    speed = row["pairs_per_s"]
    if not speed:
        return "-", ""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}", _percent(row["spread"])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"
