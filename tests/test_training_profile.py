"""Where a step's time goes: the sums over a profiler's events, on a CPU and as a GPU's are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from penstock.benchmarks.training_profile import GRAPHS, MOST, REST, profile_step, profile_table, summary
from penstock.loaders import Views


def event(key: str, count: int, cpu: float, gpu: float = 0.0, device: DeviceType = DeviceType.CPU, **more: Any) -> Any:
    times = {"self_cpu_time_total": cpu, "self_device_time_total": gpu}
    known = {"key": key, "count": count, "device_type": device, "is_user_annotation": False}
    return SimpleNamespace(**known | times | more)


def test_on_a_gpu_the_kernels_count_by_the_operation_that_launched_them() -> None:
    events = [
        event("aten::conv", 20, cpu=9000, gpu=4000),
        event("aten::add_", 10, cpu=9000, gpu=1000),
        event("aten::view", 10, cpu=9000),
        event("## Call CompiledFxGraph ##", 10, cpu=9000, gpu=500),
        event("cudaLaunchKernel", 30, cpu=7000),
        event("sm90_conv", 20, cpu=0, gpu=4000, device=DeviceType.CUDA),
        event("vectorized_add", 10, cpu=0, gpu=1000, device=DeviceType.CUDA),
        event("triton_poi_fused_relu", 10, cpu=0, gpu=500, device=DeviceType.CUDA),
        event("replayed_by_a_graph", 10, cpu=0, gpu=2000, device=DeviceType.CUDA),
        event("Optimizer.step", 10, cpu=0, gpu=6000, device=DeviceType.CUDA, is_user_annotation=True),
    ]
    found = summary(events, steps=10, seconds=0.01, on_gpu=True)
    assert [(row["operation"], row["calls"], row["ms"]) for row in found["rows"]] == [
        ("aten::conv", 2, pytest.approx(0.4)),
        ("aten::add_", 1, pytest.approx(0.1)),
        ("## Call CompiledFxGraph ##", 1, pytest.approx(0.05)),
        (GRAPHS, 0, pytest.approx(0.2)),
    ]
    assert found["busy"] == pytest.approx(0.75)
    assert found["ms_per_step"] == pytest.approx(1.0)
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(found["busy"])


def test_the_many_small_ones_are_summed_up() -> None:
    found = summary([event(f"aten::op{i}", 1, cpu=100 - i) for i in range(MOST + 5)], steps=1, seconds=1, on_gpu=False)
    assert len(found["rows"]) == MOST + 1
    assert found["rows"][-1]["operation"] == REST
    assert found["rows"][-1]["calls"] == 5
    assert sum(row["ms"] for row in found["rows"]) == pytest.approx(sum(range(76, 101)) / 1e3)


def test_the_last_row_is_the_whole_step() -> None:
    events = [event("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 1, cpu=440_000)]
    shown = profile_table(summary(events, steps=1, seconds=0.5, on_gpu=False))
    names, shares = ([*shown.columns[i].cells] for i in (0, 3))
    assert names == ["autograd: torch::autograd::AccumulateGrad", "the whole step, computing 88% of the time"]
    assert shares == ["88.0%", "100.0%"]


def test_steps_are_profiled_where_there_is_no_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    class Product:
        layout, steps = torch.contiguous_format, 0

        def __call__(self, views: Views) -> torch.Tensor:
            self.steps += 1
            return (views.groups[0][0, 0] @ views.groups[0][0, 0]).sum()

    step = Product()
    batch = Views(groups=[torch.ones(2, 3, 64, 64)], index=torch.arange(1), label=torch.zeros(1, dtype=torch.long))
    found = profile_step(step, batch, torch.device("cpu"), steps=4)
    products = next(row for row in found["rows"] if row["operation"] == "aten::mm")
    assert products["calls"] == 1
    assert 0 < products["share"] < found["busy"] <= 1
    assert step.steps > 4, "it is warm before the profiler starts"
    assert capfd.readouterr().err == "", "the profiler keeps its log to itself"
