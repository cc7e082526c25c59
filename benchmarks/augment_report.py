"""What the augmentation benchmark leaves: the JSON's content, and the tables and lines that are printed."""

from __future__ import annotations

import shlex
from importlib import metadata
from statistics import median
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from penstock.benchmarks.augment_contenders import CHAIN, chain_recipe
from penstock.benchmarks.augment_gpu import CAVEATS, FUSED
from penstock.benchmarks.augment_limits import copy_speed, first_view, triton_report
from penstock.benchmarks.augment_passes import Case, Contender
from penstock.benchmarks.augment_rivals import Bytes
from penstock.machine import machine_line, portable, provenance

ALSO = ("opencv-python-headless", "albucore", "triton", "kornia")  # packages whose versions matter here, too
WITHIN = 4  # times its floor: what fused_gpu aims at
AIMS = {"kornia": 10, "dali-pipeline": 5}  # times as fast as these


def report_of(
    settings: dict[str, Any], command: list[str], cases: list[Case], absent: dict[str, str], photos: list[Bytes]
) -> dict[str, Any]:
    """What the JSON holds: every figure, and all it takes to trace it; no path of this machine."""
    quick = settings["quick"]
    used = {(each.device, each.threads) for case in cases for each in case.contenders}
    speeds = {f"{on}-{many}": copy_speed(on, many, 4 if quick else 256) for on, many in sorted(used)}
    errors = [
        {"executor": each.executor, "operation": case.operation, "error": each.error}
        for case in cases
        for each in case.contenders
        if each.error
    ]
    about = provenance(shlex.join(["python", "benchmarks/augment.py", *command]))
    about["versions"] |= {name: metadata.version(name) for name in ALSO if _installed(name)}
    return {
        "benchmark": "augment",
        **about,
        "settings": portable(settings),
        "images": {"count": len(photos), "median_pixels": int(np.median([photo[..., 0].size for photo in photos]))},
        "copy_bytes_per_s": speeds,
        "targets": {"over_floor": WITHIN, "times_as_fast_as": AIMS},
        "caveats": CAVEATS,
        "absent": absent,
        "errors": errors,
        "compile": first_view(),
        "triton": triton_report(quick),
        "rows": results(cases, speeds),
    }


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def results(cases: list[Case], speeds: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of the JSON; `speeds` holds `copy_speed` by device and threads, as `cpu-1`."""
    return [_result(case, each, speeds) for case in cases for each in case.contenders if each.times]


def _result(case: Case, contender: Contender, speeds: dict[str, float]) -> dict[str, Any]:
    time, baseline = median(contender.times), case.baseline
    ran = (each for each in case.contenders if each.times)
    alone = next((each for each in ran if each.executor == contender.executor and each.threads == 1), None)
    floor = contender.bytes / speeds[f"{contender.device}-{contender.threads}"] * 1e6
    return {
        "executor": contender.executor,
        "operation": case.operation,
        "size": case.size,
        "threads": contender.threads,
        "us_per_view": time,
        "views_per_s": 1e6 / time,
        "ratio": median(baseline.times) / time if baseline else None,
        "baseline": baseline.executor if baseline else None,
        "scaling": median(alone.times) / time if alone and contender.threads > 1 else None,
        "bytes_per_view": contender.bytes,
        "writes": str(contender.writes).removeprefix("torch."),
        "floor_us": floor,
        "over_floor": time / floor,
        "device": contender.device,
        "repeats_us": contender.times,
    } | (_gpu_result(case, contender, floor) if contender.batch else {"batch": None})


def _gpu_result(case: Case, contender: Contender, floor: float) -> dict[str, Any]:
    """Of a row on a GPU: what a batch takes, and for ours how much faster it is than each rival there."""
    time = median(contender.times)
    rivals = [each for each in case.contenders if each.batch and each.times and each.executor not in FUSED]
    return {
        "batch": contender.batch,
        "views_per_batch": contender.views,
        "ms_per_batch": time * contender.views / 1e3,
        "host_ms_per_batch": median(contender.host_times) if contender.host_times else None,
        "floor_ms_per_batch": floor * contender.views / 1e3,
        "times_as_fast_as": (
            {each.executor: median(each.times) / time for each in rivals} if contender.executor in FUSED else None
        ),
    }


# What is printed.


def show(report: dict[str, Any], console: Console) -> None:
    """Print the tables, and what a reader must know beside them."""
    console.print(cpu_table(report))
    for row in report["rows"]:
        if row["scaling"]:
            where = f"{row['executor']} on {row['threads']} threads, {row['operation']}"
            console.print(f"{where}: {row['scaling']:.2f} × one thread")
    if any(row["batch"] for row in report["rows"]):
        console.print(gpu_table(report))
        for line in (*(f"{name}: {caveat}" for name, caveat in CAVEATS.items()), *aims(report)):
            console.print(line)
    copying = ", ".join(f"{on} {speed / 1e9:.1f} GB/s" for on, speed in report["copy_bytes_per_s"].items())
    console.print(f"copying memory (device-threads), bytes read and written: {copying}")
    console.print(_compile_line(report["compile"]))
    for architecture, kernels in (report["triton"] or {}).items():
        console.print(f"fused_gpu on {architecture}: {_kernel_line(kernels)}")
    for name, reason in report["absent"].items():
        console.print(f"without {name}: {reason}")
    for failed in report["errors"]:
        console.print(f"{failed['executor']}, {failed['operation']}: {failed['error']}")


def cpu_table(report: dict[str, Any]) -> Table:
    """One line for each operation, one column for each executor: microseconds a view, and the ratio."""
    rows = [row for row in report["rows"] if not row["batch"]]
    columns = list(dict.fromkeys((row["executor"], row["threads"]) for row in rows))
    shown = _table("microseconds a view, and times as fast as the baseline", report, ("operation", "px", "floor"))
    for executor, threads in columns:
        shown.add_column(
            executor.replace("-", "\n") + f"\n{threads} threads" * (threads > 1), justify="right", overflow="fold"
        )
    for operation in dict.fromkeys(row["operation"] for row in rows):
        cells = {(r["executor"], r["threads"]): r for r in rows if r["operation"] == operation}
        first = next(iter(cells.values()))
        about = operation, str(first["size"]), number(first["floor_us"])
        shown.add_row(*about, *(_cell(cells.get(column)) for column in columns))
    return shown


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    ratio = "" if row["ratio"] is None or row["executor"] == row["baseline"] else f" {row['ratio']:.1f}×"
    return number(row["us_per_view"]) + ratio


def gpu_table(report: dict[str, Any]) -> Table:
    """One line for each row on a GPU."""
    names = ("operation", "px", "images", "executor", "ms a batch", "host, ms", "µs a view", "floor, ms", "÷ floor")
    shown = _table("on the GPU: a batch of so many images, all their views", report, (*names, "÷ fused_gpu"))
    rows = [row for row in report["rows"] if row["batch"]]
    for n, row in enumerate(rows):
        ours = {each["operation"]: each["ms_per_batch"] for each in rows if each["executor"] == "fused_gpu"}
        fused = ours.get(row["operation"])
        shown.add_row(
            row["operation"],
            str(row["size"]),
            str(row["batch"]),
            row["executor"],
            f"{row['ms_per_batch']:,.3f}",
            "" if row["host_ms_per_batch"] is None else f"{row['host_ms_per_batch']:,.3f}",
            f"{row['us_per_view']:,.2f}",
            f"{row['floor_ms_per_batch']:.3f}",
            f"{row['over_floor']:,.1f}×",
            f"{row['ms_per_batch'] / fused:,.1f}×" if fused else "",
            end_section=n + 1 == len(rows) or rows[n + 1]["operation"] != row["operation"],
        )
    return shown


def _table(title: str, report: dict[str, Any], columns: tuple[str, ...]) -> Table:
    """An empty one; what stands in a column is written to the right, unless it is a name."""
    shown = Table(
        title=f"{title}\n{machine_line(report['machine'])}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in columns:
        shown.add_column(name, justify="left" if name in ("operation", "executor") else "right", no_wrap=True)
    return shown


def aims(report: dict[str, Any]) -> list[str]:
    """How far fused_gpu is from what it aims at: a line for each chain and aim."""
    lines = []
    for row in report["rows"]:
        if row["executor"] in FUSED and row["operation"].startswith(CHAIN):
            views = f"{row['batch']} × {row['views_per_batch'] // row['batch']} views of {sides(row)} px"
            about = f"{row['executor']}, {row['operation']}, {views}"
            missed = "missed" if row["over_floor"] > WITHIN else "met"
            lines.append(f"{about}: {row['over_floor']:.1f} × its floor (target: within {WITHIN} ×, {missed})")
            for rival, ratio in row["times_as_fast_as"].items():
                said = _verdict(rival, ratio) if row["executor"] == "fused_gpu" else ", which writes float32"
                lines.append(f"{about}: {ratio:.1f} × as fast as {rival}{said}")
    return lines


def sides(row: dict[str, Any]) -> str:
    """Of a row's views, in pixels; where a chain makes several: 2×224 and 6×96."""
    if not row["operation"].startswith(CHAIN):
        return str(row["size"])
    groups = chain_recipe(row["operation"], row["size"]).groups
    if len(groups) == 1:
        return str(row["size"])
    return " and ".join(f"{views.stop - views.start}×{size}" for size, views in groups)


def _verdict(rival: str, ratio: float) -> str:
    if rival not in AIMS:
        return ""
    return f" (target: {AIMS[rival]} ×, {'met' if ratio >= AIMS[rival] else 'missed'})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _compile_line(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"a new process fails: {found['error']}"
    first, imports = found["first_view_s"], found["imports_s"]
    return f"a new process has its first view {first:.2f} s after its imports, which take {imports:.1f} s"


def _kernel_line(kernels: dict[str, Any]) -> str:
    if "error" in kernels:
        return str(kernels["error"])
    most = {need: max(kernel[need] for kernel in kernels.values()) for need in ("registers", "spills", "shared")}
    return (
        f"{len(kernels)} kernels take up to {most['registers']} registers, {most['spills']} bytes of spills and "
        f"{most['shared']:,} bytes of shared memory"
    )
