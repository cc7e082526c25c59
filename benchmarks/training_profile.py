"""What a training step spends its time on, operation by operation: torch's profiler on a batch that is there already.

On a GPU the times are its kernels', by the operation that launched them, and what is left of the wall clock is the time
in which it had nothing to do. Kernels that a CUDA graph launches belong to no operation, and stand together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from penstock.benchmarks.training_steps import Step
from penstock.loaders import Views

WARM_STEPS = 3
MOST = 20  # operations in the report; the others are summed up in its last row
GRAPHS, REST = "in CUDA graphs, or of no operation", "all others"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """An operation's share of the steps.

    Attributes:
        operation: by torch's name, such as `aten::convolution_backward`.
        calls: in a step.
        ms: in a step, without the operations that it calls.
        share: of the wall clock.
    """

    operation: str
    calls: float
    ms: float
    share: float


def profile_step(step: Step, views: Views, device: torch.device, steps: int) -> dict[str, Any]:
    """So many steps on one batch: `ms_per_step`, `busy` (the share in which the device computes), `rows` of `Spent`."""
    on_gpu = device.type == "cuda"
    for _ in range(WARM_STEPS):
        step(views)
    _catch_up(on_gpu)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it logs its start, and as an error that there is no GPU
    with profile(activities=kinds, acc_events=True) as profiler:
        began = perf_counter()
        for _ in range(steps):
            step(views)
        _catch_up(on_gpu)
        seconds = perf_counter() - began
    return summary(profiler.key_averages(), steps=steps, seconds=seconds, on_gpu=on_gpu)


def _catch_up(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def summary(events: Iterable[Any], *, steps: int, seconds: float, on_gpu: bool) -> dict[str, Any]:
    """What `profile_step` returns, from the profiler's averages: operations are the CPU's events, kernels the GPU's."""
    events = [each for each in events if not each.is_user_annotation]
    operations = [each for each in events if each.device_type == DeviceType.CPU]
    kernels = [each for each in events if each.device_type == DeviceType.CUDA]
    found = sorted(((each.key, each.count, _own_time(each, on_gpu)) for each in operations), key=lambda row: -row[2])
    found = [row for row in found if row[2]]
    attributed = sum(time for _, _, time in found)
    computed = sum(_own_time(each, on_gpu) for each in kernels) if on_gpu else attributed
    shown, rest = found[:MOST], found[MOST:]
    shown.append((REST, sum(count for _, count, _ in rest), sum(time for _, _, time in rest)))
    shown.append((GRAPHS, 0, max(0.0, computed - attributed)))
    wall = 1e6 * seconds
    return {
        "steps": steps,
        "ms_per_step": wall / steps / 1e3,
        "busy": computed / wall,
        "rows": [
            asdict(Spent(operation=name, calls=count / steps, ms=time / steps / 1e3, share=time / wall))
            for name, count, time in shown
            if time
        ],
    }


def _own_time(event: Any, on_gpu: bool) -> float:
    """Microseconds, without those of the operations that it calls."""
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)


def profile_table(profiled: dict[str, Any]) -> Table:
    """The rows, as they are printed."""
    shown = Table(box=MARKDOWN)
    for name in ("where the step's time goes", "calls", "ms", "share"):
        shown.add_column(name, justify="left" if name.startswith("where") else "right", no_wrap=True)
    for row in profiled["rows"]:
        calls = f"{row['calls']:g}" if row["calls"] else ""
        name = row["operation"].replace("autograd::engine::evaluate_function:", "autograd:")
        shown.add_row(name, calls, f"{row['ms']:.2f}", f"{row['share']:.1%}")
    whole = f"the whole step, computing {profiled['busy']:.0%} of the time"
    shown.add_row(whole, "", f"{profiled['ms_per_step']:.2f}", "100.0%")
    return shown
