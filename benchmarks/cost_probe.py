"""One row of the cost benchmark, once, in a process of its own: `benchmarks/cost.py` starts it and reads its JSON.

Memory. On a CPU: the most memory resident during a step (the kernel's VmHWM, forgotten before the step), less what was
resident before the network was built: weights, key encoder, queue, optimizer, the batch of views, activations,
gradients, and what torch's kernels need beside them. Libraries and compiled kernels are there by then, from a
rehearsal of the same step. What is resident is not what is in use, though: malloc keeps freed memory in its arenas,
more or less of it from run to run. So this process is started with MALLOC_MMAP_THRESHOLD_ at 64 KiB: larger blocks then
come from the kernel, and go back once they are freed. Two runs so agree closely, and what is held between two steps is
the sum of weights, optimizer, queue and views. On a GPU it is `torch.cuda.max_memory_allocated` of a step, less what
was allocated before the network was built.

Time. Taken afterwards, with malloc's threshold where its own adjustment ends (32 MiB): giving all back is slow.
"""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from penstock.benchmarks.answers import run_probe
from penstock.benchmarks.training_steps import PenstockStep
from penstock.engine.config import CompleteConfig, TrainConfig
from penstock.engine.defaults import complete
from penstock.engine.distributed import Team, join
from penstock.engine.methods import build_method
from penstock.engine.optimizer import build_optimizer
from penstock.engine.precision import Precision, choose_precision
from penstock.loaders import Views

METHODS = {"moco": "moco-v2", "end-to-end": "simclr"}
ALIKE: dict[str, Any] = {  # MoCo v2's settings, for both
    "recipe": "moco-v2", "head": "mlp", "head_layers": 2, "hidden": 0, "dim": 128, "temperature": 0.2,
    "optimizer": "sgd", "weight_decay": 1e-4, "bn_splits": 1,
}  # fmt: skip
IMAGENET = 1_281_167  # training images
WARM_STEPS, TIMED_STEPS, TIMED_SECONDS = 1, 2, 0.5
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}  # for the memory; see above
USUAL_MALLOC = {-3: 32 << 20, -1: 64 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of glibc's malloc.h
FORGET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the probe tells."""

    peak_bytes: int
    """The most memory in use during a step; the module's docstring says what counts."""
    held_bytes: int
    """Of it, what is in use between two steps."""
    step_seconds: float
    """The median of a few steps."""
    device: str
    precision: str
    threads: int


def configure(task: dict[str, Any]) -> CompleteConfig:
    """A training run's settings. The learning rate is 0: all work is done, but no step depends on those before it.

    Args:
        task: `mechanism` (a name in METHODS), `batch`, `queue` (None for end-to-end), and `arch`, `width`, `stem`,
            `size`, `amp`, `device` of `TrainConfig`.
    """
    asked = {name: value for name, value in task.items() if name != "mechanism"}
    config = TrainConfig(method=METHODS[task["mechanism"]], **asked, **ALIKE)
    return replace(complete(config, source="imagenet-train", length=IMAGENET, world=1), lr=0.0)


def negatives(config: CompleteConfig) -> int:
    """To each query: a queue's keys, or both views of all other images of the batch."""
    return config.queue if config.method == METHODS["moco"] else 2 * config.batch - 2


def build(config: CompleteConfig, team: Team, precision: Precision) -> tuple[PenstockStep, Views]:
    """The step of a training run, and a batch of noise for it."""
    method = build_method(config, team)
    step = PenstockStep(method, build_optimizer(config, method), precision, seed=config.seed)
    group = torch.randn(2 * config.batch, 3, config.size, config.size, device=team.device)
    index = torch.arange(config.batch, device=team.device)
    return step, Views(groups=[group.to(memory_format=torch.channels_last)], index=index, label=torch.zeros_like(index))


def time_of(step: PenstockStep, views: Views) -> float:
    """Seconds a step."""
    taken: list[float] = []
    while len(taken) < WARM_STEPS + TIMED_STEPS or sum(taken[WARM_STEPS:]) < TIMED_SECONDS:
        began = perf_counter()
        step(views)
        if views.index.is_cuda:
            torch.cuda.synchronize()
        taken.append(perf_counter() - began)
    return median(taken[WARM_STEPS:])


class Memory:
    """Bytes in use on a device beyond those in use when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        self.before = self._read("VmRSS", torch.cuda.memory_allocated)

    def forget_peak(self) -> None:
        if self.device.type == "cpu":
            FORGET_PEAK.write_text("5")
        else:
            torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def peak(self) -> int:
        return self._read("VmHWM", torch.cuda.max_memory_allocated) - self.before

    @property
    def now(self) -> int:
        return self._read("VmRSS", torch.cuda.memory_allocated) - self.before

    def _read(self, name: str, on_gpu: Any) -> int:
        if self.device.type != "cpu":
            return int(on_gpu(self.device))
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def memory_of(config: CompleteConfig, team: Team, precision: Precision) -> tuple[int, int]:
    """Bytes in use at most during a step, and between two steps."""
    step, views = build(config, team, precision)
    step(views)  # the rehearsal
    del step, views
    memory = Memory(team.device)
    step, views = build(config, team, precision)
    step(views)  # it makes the optimizer's state
    memory.forget_peak()
    step(views)
    return memory.peak, memory.now


def probe(task: dict[str, Any]) -> Measured:
    """Count a step's memory, then its time."""
    team = join(task["device"])
    torch.backends.cudnn.benchmark = True  # as in engine/train.py
    config, precision = configure(task), choose_precision(task["amp"], team.device)
    peak, held = memory_of(config, team, precision)
    for parameter, value in USUAL_MALLOC.items():
        ctypes.CDLL(None).mallopt(parameter, value)
    return Measured(
        peak_bytes=peak,
        held_bytes=held,
        step_seconds=time_of(*build(config, team, precision)),
        device=team.device.type,
        precision=str(precision),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    run_probe(probe)
