"""Runs a test's function on several ranks, as users start them: torchrun, and gloo between CPUs.

    torchrun --nproc-per-node 2 -m tests.ranks tests.test_sync_bn normalise OUT

The function takes a Team and a folder, and returns what the test looks at. Called with `Team()` it is its own oracle:
what one rank does with the whole batch.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from penstock.engine.distributed import Team, join

ROOT = Path(__file__).resolve().parents[1]
Function = Callable[[Team, Path], dict[str, Any]]


def on_ranks(function: Function, folder: Path, *, ranks: int = 2) -> list[dict[str, Any]]:
    """What a function of a test module's returned on each rank, in their order; starting them takes seconds."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*torchrun, "-m", "tests.ranks", function.__module__, function.__name__, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            _, said = process.communicate()
        finally:
            process.terminate()  # where the test has run out of time: torchrun ends its ranks, a kill would leave them
    assert process.returncode == 0, said[-5000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def main(module: str, name: str, folder: str) -> None:
    team = join("cpu")
    function: Function = getattr(importlib.import_module(module), name)
    torch.save(function(team, Path(folder)), Path(folder) / f"rank{team.rank}.pt")
    team.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
