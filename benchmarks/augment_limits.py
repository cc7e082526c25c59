"""What an augmentation benchmark is held against, besides rivals: memory's speed, a restart, a GPU's registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import penstock

ARCHITECTURES = (80, 90)  # of GPUs that the kernels are compiled for, to see what they take: A100, H100


def copy_speed(device: str, threads: int, megabytes: int) -> float:
    """Bytes a second that copying memory moves: each is read once and written once. The best of seven."""
    torch.set_num_threads(threads)
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    target, times = torch.empty_like(source), []
    copies = 8 if device == "cuda" else 1  # a wait for the GPU is not small beside a copy
    for _ in range(7):
        began = perf_counter()
        for _ in range(copies):
            target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((perf_counter() - began) / copies)
    torch.set_num_threads(1)
    return 2 * len(source) / min(times)


def first_view() -> dict[str, Any]:
    """Seconds until a new process has its first view; this one has compiled and cached the code."""
    return ask("penstock.benchmarks.augment_first")


def triton_report(quick: bool) -> dict[str, Any] | None:
    """What fused_gpu's kernels take of a GPU, compiled for two architectures; None where Triton is not installed."""
    if not importable("triton"):
        return None
    kernels = ["contrast"] if quick else []  # none named: all
    return {f"sm_{arch}": ask("penstock.augment.fused_gpu.report", str(arch), *kernels) for arch in ARCHITECTURES}


def ask(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a module prints last when it is run in a process of its own; if it fails, why, under `error`."""
    root = str(Path(penstock.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-P", "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().rsplit("\n", 1)[-1] or f"it ended with code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])  # libraries may have printed before


def importable(package: str) -> bool:
    """Whether there is such a package or module."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
