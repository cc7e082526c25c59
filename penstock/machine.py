"""What a measurement ran on: the machine, the versions, the commit. Kept beside every number that is published."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from penstock.loaders.threads import available_cpus

PACKAGES = (  # the ones a figure can depend on
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "pillow",
    "simplejpeg",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "ffcv",
    "albumentations",
    "scikit-learn",
    "onnx",
    "onnxruntime",
    "optuna",
    "timm",
    "webdataset",
    "spdl_io",
    "opencv-python-headless",
)


def provenance(command: str) -> dict[str, Any]:
    """What a report begins with: when it was made, by which command, at which commit, on what; no path of this machine.

    Args:
        command: as it was typed.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_folders(command),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": versions(),
    }


def without_folders(text: str) -> str:
    """A text whose absolute paths are cut down to their last part."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+(?=[^\s/:'\"])", "", text)


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with such texts."""
    return {name: without_folders(value) if isinstance(value, str) else value for name, value in settings.items()}


def describe_machine() -> dict[str, Any]:
    """`cpu`, `cpus` (that this process may use), `memory_gb`, `gpus` (names), `system`."""
    return {
        "cpu": _cpu_model(),
        "cpus": available_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(terse=True),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine as one line for a title."""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return f"{machine['cpus']} CPUs of {machine['cpu']}, {machine['memory_gb']} GB, {gpus}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()  # ARM's cpuinfo names no model


def versions() -> dict[str, str]:
    """Name to version of Python and of the installed ones among `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit this code was run at, with `+` where files differed from it; None outside a clone."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
