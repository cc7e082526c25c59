"""What a run ran on: processor, GPU and the versions that its numbers depend on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import torchvision

import penstock
from penstock.loaders.threads import available_cpus


def machine() -> dict[str, str]:
    """Names and values, for reports."""
    facts = {"processor": f"{_processor()}, {available_cpus()} CPUs"}
    if torch.cuda.is_available():
        facts["gpu"] = f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} in all, CUDA {torch.version.cuda}"
    return facts | {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "penstock": penstock.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
