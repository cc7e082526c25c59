"""docs/slurm/penstock.sbatch: what it passes on to a command, and when the job queues again. Slurm is a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.csv_log import read_csv
from penstock.engine.train import main

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "docs/slurm/penstock.sbatch"
JOB = "4711"
Start = Callable[..., subprocess.Popen[str]]

# Counts the signals it gets; saves for a moment after the first; leaves with the code that it is told.
COMMAND = """
    import signal, sys, time
    from pathlib import Path
    told, ready, code = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    got = []
    signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    ready.touch()
    while not got:
        time.sleep(0.01)
    time.sleep(0.5)
    told.write_text(str(len(got)))
    sys.exit(code)
"""


SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/calls
[ "$1" = requeue ] || echo "   JobState=$(cat {folder}/state) Reason=None"
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts the script with a command, as Slurm would, and with a `scontrol` that writes down how it was called."""
    (tmp_path / "state").write_text("RUNNING")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(SCONTROL.format(folder=tmp_path))
    scontrol.chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": JOB, "OMP_NUM_THREADS": "1"}

    def started(*command: str) -> subprocess.Popen[str]:
        said: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", str(SCRIPT), *command], cwd=ROOT, env={**os.environ, **own}, **said)

    return started


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def requeued(folder: Path) -> bool:
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return f"requeue {JOB}" in calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("code", "state", "again"),
    [
        (143, "RUNNING", True),
        (1, "RUNNING", True),  # torchrun
        (0, "RUNNING", False),  # it was done just then
        (143, "COMPLETING", False),  # it is being cancelled
    ],
)
def test_a_command_asked_to_leave_is_waited_for_and_queued_again(
    number: signal.Signals, code: int, state: str, again: bool, start: Start, tmp_path: Path
) -> None:
    told, ready = tmp_path / "told", tmp_path / "ready"
    (tmp_path / "state").write_text(state)
    process = start(sys.executable, "-c", textwrap.dedent(COMMAND), str(told), str(ready), str(code))
    wait_for(ready, process)
    for _ in range(3):  # the script is told again and again; the command is told once
        process.send_signal(number)
        time.sleep(0.05)
    process.communicate(timeout=60)
    assert process.returncode == code and told.read_text() == "1"
    assert requeued(tmp_path) == again


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_command_that_ends_by_itself_is_not_queued_again(code: int, start: Start, tmp_path: Path) -> None:
    process = start("bash", "-c", f"exit {code}")
    process.communicate(timeout=60)
    assert process.returncode == code and not (tmp_path / "calls").exists()


def test_no_command_is_said(start: Start) -> None:
    process = start()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "no command: sbatch docs/slurm/penstock.sbatch python" in said


def test_a_training_is_saved_queued_again_and_goes_on(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = "--subset 160 --batch 16 --queue 32 --width 8 --size 16 --epochs 4 --knn-every 0 --workers 1"
    command = [*small.split(), "--loader", "folder", "--checkpoint-steps", "1", "--resume", "auto", "--out", str(out)]
    process = start(sys.executable, "engine/train.py", *command)
    wait_for(out / "last.pt", process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and f"left with code 143 on request; job {JOB} queues again" in said
    assert requeued(tmp_path)
    stopped = load_checkpoint(out / "last.pt")["position"]["step"]
    assert 0 < stopped < 40
    assert main(command) == 0  # what Slurm starts again
    steps = [row["step"] for row in read_csv(out / "steps.csv")]
    assert steps[-1] == 40 and stopped in steps and len(set(steps)) == len(steps)


def test_slurm_is_told_what_the_script_relies_on() -> None:
    options = [line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=B:TERM@120", "--open-mode=append"} <= set(options)
    lines = SCRIPT.read_text().splitlines()
    last_option = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert last_option < first_command  # sbatch reads no further
