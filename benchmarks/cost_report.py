"""What the cost benchmark leaves: the JSON's content, the table that is printed, and the picture."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from penstock.benchmarks.chart import CEILING_COLOUR, GRID_COLOUR, LOADER_COLOUR, TEXT_COLOUR
from penstock.benchmarks.cost_probe import IMAGENET
from penstock.engine.backbones import takes_width
from penstock.errors import UserError
from penstock.machine import machine_line, provenance, without_folders

EPOCHS = 200
RESTLESS = 0.25  # a spread of the times that no row has on a machine that does nothing else
NAMES = {"moco": "MoCo", "end-to-end": "end-to-end"}
COLOURS = {"moco": LOADER_COLOUR, "end-to-end": CEILING_COLOUR}
# Chen et al. 2020, arXiv 2003.04297, table 3: ResNet-50 on 8 V100, memory of each, 200 epochs of ImageNet.
PUBLISHED: dict[tuple[str, int], dict[str, Any]] = {
    ("moco", 256): {"gb_a_gpu": 5.0, "hours": 53},
    ("end-to-end", 256): {"gb_a_gpu": 7.4, "hours": 65},
    ("end-to-end", 4096): {"gb_a_gpu": 93.0, "hours": None, "estimate": True},
}
CAPTION = (
    "MB: the most memory in use during a step (10^6 bytes; benchmarks/cost_probe.py says what counts); ±: half the"
    " spread of the rounds, of the figure before it; held: of the memory, in use between two steps; vs MoCo: at the"
    " same batch; hours: derived from pairs/s, 200 epochs of ImageNet's 1,281,167 images on this machine; published:"
    " another machine and network, 8 V100 with ResNet-50 (arXiv 2003.04297, table 3), memory of one GPU; ≈: not"
    " measured, on the straight line through end-to-end's rows."
)


def report_of(arguments: list[str], settings: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it; no path of this machine.

    Args:
        rows: each with `task`, `negatives`, `repeats` and `error`, see `benchmarks/cost.py`.
    """
    found = figures(rows)
    return {
        "benchmark": "cost",
        **provenance(shlex.join(["python", "benchmarks/cost.py", *arguments])),
        "settings": settings,
        "rows": found,
        "extrapolated": extrapolated(found, max(settings["queues"])),
    }


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the JSON holds them: medians, and what follows from them."""
    longest = max((row["task"]["queue"] or 0 for row in rows), default=0)
    found = [_figures(row) for row in rows]
    for row in found:
        full = row["queue"] is None or 2 * row["queue"] > longest  # cut to a multiple of the batch, not a shorter queue
        row["published"] = PUBLISHED.get((row["mechanism"], row["batch"])) if full else None
    at = {
        row["batch"]: row["memory_mb"] for row in reversed(found) if row["mechanism"] == "moco"
    }  # the longest queue's
    for row in found:
        base = at.get(row["batch"])
        row["over_moco"] = row["memory_mb"] / base if row["memory_mb"] and base else None
    return found


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    batch, repeats = row["task"]["batch"], [] if row["error"] else row["repeats"]
    about = {"mechanism": row["task"]["mechanism"], "batch": batch, "queue": row["task"]["queue"]}
    about |= {"negatives": row["negatives"], "error": without_folders(row["error"]) if row["error"] else None}
    names = ("memory_mb", "spread", "held_mb", "step_seconds", "seconds_spread", "pairs_per_s", "imagenet_hours")
    if not repeats:
        return about | dict.fromkeys(names) | {"repeats": row["repeats"]}
    peaks = [repeat["peak_bytes"] / 1e6 for repeat in repeats]
    times = [repeat["step_seconds"] for repeat in repeats]
    seconds = median(times)
    values = (
        median(peaks),
        _spread(peaks),
        median(repeat["held_bytes"] for repeat in repeats) / 1e6,
        seconds,
        _spread(times),
        batch / seconds,
        EPOCHS * IMAGENET * seconds / batch / 3600,
    )
    return about | dict(zip(names, values, strict=True)) | {"repeats": repeats}


def _spread(values: list[float]) -> float | None:
    """Half the spread over the median; of one value it is unknown."""
    return (max(values) - min(values)) / 2 / median(values) if len(values) > 1 else None


def extrapolated(rows: list[dict[str, Any]], queue: int) -> list[dict[str, Any]]:
    """End-to-end's memory at the batch of the published estimate, and at the one that has as many negatives as MoCo.

    A straight line through what was measured: too little by what the similarities of all with all take, which grow with
    the square of the batch.
    """
    points = [(row["batch"], row["memory_mb"]) for row in measured(rows, "end-to-end")]
    if len(points) < 2:
        return []
    slope, start = linear_regression(*zip(*points, strict=True))
    batches = [batch for batch in (4096, queue // 2 + 1) if batch > max(points)[0]]
    return [
        {
            "mechanism": "end-to-end", "batch": batch, "negatives": 2 * batch - 2, "memory_mb": start + slope * batch,
            "published": PUBLISHED.get(("end-to-end", batch)),
        }
        for batch in sorted(set(batches))
    ]  # fmt: skip


def measured(rows: list[dict[str, Any]], mechanism: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["mechanism"] == mechanism and row["memory_mb"]]


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table, and what a reader must know beside it."""
    console.print(f"{title(report['settings'])}\n{machine_line(report['machine'])}\n", soft_wrap=True)
    console.print(table(report))
    for row in report["rows"]:
        if row["error"]:
            console.print(f"{NAMES[row['mechanism']]}, batch {row['batch']}: {row['error']}", soft_wrap=True)
    worst = max(filter(None, (row["seconds_spread"] for row in report["rows"])), default=0.0)
    if worst > RESTLESS:
        console.print(f"Times differ by up to ±{worst:.0%}: something else ran on this machine, so measure again.")
    console.print(CAPTION, soft_wrap=True)


def title(settings: dict[str, Any]) -> str:
    """What took the steps."""
    width = f" of width {settings['width']}" * takes_width(settings["arch"])
    where = f"{settings['device']}, {settings['precision']}"
    threads = f", {settings['threads']} thread{'s' * (settings['threads'] != 1)}" if settings["device"] == "cpu" else ""
    quick = "--quick: " * settings["quick"]
    return f"{quick}{settings['arch']}{width}, views of {settings['size']} px; {where}{threads}"


def table(report: dict[str, Any]) -> Table:
    shown = Table(box=MARKDOWN)
    shown.add_column("", no_wrap=True)
    for heading in ("batch", "negatives", "MB", "±", "held MB", "vs MoCo", "s/step", "±", "pairs/s", "hours",
                    "published GB/GPU", "published hours"):  # fmt: skip
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        about = (NAMES[row["mechanism"]], f"{row['batch']:,}", f"{row['negatives']:,}")
        shown.add_row(*about, *_cells(row), *_published(row["published"]))
    for row in report["extrapolated"]:
        about = (NAMES[row["mechanism"]], f"{row['batch']:,}", f"{row['negatives']:,}")
        shown.add_row(*about, f"≈ {row['memory_mb']:,.0f}", *[""] * 7, *_published(row["published"]))
    return shown


def _cells(row: dict[str, Any]) -> list[str]:
    if not row["memory_mb"]:
        return ["-", *[""] * 7]
    speed, ratio = row["pairs_per_s"], row["over_moco"]
    return [
        f"{row['memory_mb']:,.0f}",
        _percent(row["spread"]),
        f"{row['held_mb']:,.0f}",
        f"{ratio:.2f}×" if ratio and row["mechanism"] != "moco" else "",
        f"{row['step_seconds']:.3g}",
        _percent(row["seconds_spread"]),
        f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}",
        f"{row['imagenet_hours']:,.0f}",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _published(figure: dict[str, Any] | None) -> tuple[str, str]:
    if not figure:
        return "", ""
    return f"{figure['gb_a_gpu']:g}{' (estimate)' * bool(figure.get('estimate'))}", f"{figure['hours'] or ''}"


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Draw `report`, as benchmarks/cost.py writes it to JSON, into `path`."""
    if not any(row["memory_mb"] for row in report["rows"]):
        raise UserError("no row could be measured, so there is nothing to draw: the table says why")
    figure = Figure(figsize=(10.5, 4.7), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_batches(left, report)
    _draw_negatives(right, report)
    figure.supxlabel(
        "\n".join(textwrap.wrap(_provenance(report), 155)), x=0.01, ha="left", fontsize=7.5, color=TEXT_COLOUR
    )
    figure.savefig(path)


def _draw_batches(axes: Axes, report: dict[str, Any]) -> None:
    """Memory over the batch, a line for each mechanism; the ratio at the largest batch."""
    longest = max(row["queue"] or 0 for row in report["rows"])
    for mechanism, colour in COLOURS.items():
        rows = [row for row in measured(report["rows"], mechanism) if 2 * (row["queue"] or longest) > longest]
        if not rows:
            continue
        axes.plot(_of(rows, "batch"), _of(rows, "memory_mb"), color=colour, marker="o", markersize=5, zorder=3)
        last = rows[-1]
        ratio = f", {last['over_moco']:.2f}×" if mechanism != "moco" and last["over_moco"] else ""
        text = f"{NAMES[mechanism]}\n{_bytes(last['memory_mb'])}{ratio}"
        _note(axes, text, last["batch"], last["memory_mb"], colour, (7, 0), va="center")
    axes.set_xlim(0, 1.4 * max(_of(report["rows"], "batch")))
    axes.set_ylim(
        0, 1.12 * max(_of(measured(report["rows"], "moco") + measured(report["rows"], "end-to-end"), "memory_mb"))
    )
    axes.set_xticks(sorted(set(_of(report["rows"], "batch"))))
    _dress(axes, "Memory of a step, by batch", "images in a batch")


def _draw_negatives(axes: Axes, report: dict[str, Any]) -> None:
    """Memory over the negatives: MoCo at one batch, whatever its queue; end-to-end, and where its line leads."""
    moco, ours = measured(report["rows"], "moco"), measured(report["rows"], "end-to-end")
    if moco:
        batch = min(_of(moco, "batch"))
        rows = sorted((row for row in moco if row["batch"] == batch), key=lambda row: row["negatives"])
        axes.plot(_of(rows, "negatives"), _of(rows, "memory_mb"), color=COLOURS["moco"], marker="o", zorder=3)
        text = (
            f"MoCo at batch {batch}, by its queue\n{rows[-1]['negatives']:,} negatives: {_bytes(rows[-1]['memory_mb'])}"
        )
        _note(axes, text, rows[-1]["negatives"], rows[-1]["memory_mb"], COLOURS["moco"], (4, 9), ha="right")
    if ours:
        colour, beyond = COLOURS["end-to-end"], [ours[-1], *report["extrapolated"]]
        axes.plot(_of(ours, "negatives"), _of(ours, "memory_mb"), color=colour, marker="o", zorder=3)
        axes.plot(_of(beyond, "negatives"), _of(beyond, "memory_mb"), color=colour, linestyle=":", zorder=2)
        text = f"end-to-end,\nbatch {ours[-1]['batch']:,}: {_bytes(ours[-1]['memory_mb'])}"
        _note(axes, text, ours[-1]["negatives"], ours[-1]["memory_mb"], colour, (8, -4), va="top")
        for row in report["extrapolated"]:
            axes.plot(row["negatives"], row["memory_mb"], "o", color=colour, markerfacecolor="white", zorder=3)
            text = f"batch {row['batch']:,}: ≈ {_bytes(row['memory_mb'])}"
            _note(axes, text, row["negatives"], row["memory_mb"], colour, (-7, 3), ha="right", va="bottom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    (near, far), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.set_xlim(near / 2, far)
    axes.set_ylim(low / 2.5, high * 1.5)
    _dress(axes, "Memory of a step, by negatives", "negatives of each query (open circles: extrapolated)")


def _of(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def _bytes(megabytes: float) -> str:
    return f"{megabytes:,.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.3g} GB"


def _note(axes: Axes, text: str, x: float, y: float, colour: str, offset: tuple[int, int], **place: Any) -> None:
    about: dict[str, Any] = {"color": colour, "fontsize": 8.5, "weight": "bold", "zorder": 4}
    axes.annotate(text, (x, y), offset, textcoords="offset points", **about, **place)


def _dress(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=TEXT_COLOUR)
    axes.set_xlabel(label, fontsize=9, color=TEXT_COLOUR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID_COLOUR)
    axes.tick_params(labelcolor=TEXT_COLOUR, color=GRID_COLOUR, labelsize=8.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    if axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.grid(color=GRID_COLOUR, zorder=0)
    axes.set_axisbelow(True)


def _provenance(report: dict[str, Any]) -> str:
    """What took the steps, on what it was measured, and what was published."""
    torch, settings = report["versions"]["torch"], report["settings"]
    rounds = f"the median of {settings['rounds']} processes" if settings["rounds"] > 1 else "one process a row"
    return (
        f"{title(settings)}, {rounds}. {machine_line(report['machine'])}; "
        f"torch {torch}, {report['date'][:10]}. Published (arXiv 2003.04297, ResNet-50, 8 V100, memory a GPU): "
        "MoCo 5.0 GB and end-to-end 7.4 GB at batch 256; end-to-end 93 GB at batch 4,096, an estimate."
    )
