"""Runs as jobs of Slurm: which are submitted, how one is carried out, saved and queued again. No Slurm is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from penstock.engine import slurm
from penstock.engine.config import TrainConfig
from penstock.engine.runs import Run, RunFailed, is_finished
from penstock.engine.slurm import Job, parse, submit
from penstock.errors import MissingExtra, UserError
from tests.stub_engine import small_images, stub_engine

submitit = pytest.importorskip("submitit")
SWEEP = Path(__file__).resolve().parents[1] / "engine/sweep.py"
RUNS = [Run(name=name, config=TrainConfig(epochs=3)) for name in ("one", "two", "three")]


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int, when: Path) -> threading.Thread:
    """Send this process a signal when a run has begun."""

    def ask() -> None:
        while not (when.exists() and when.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_job_carries_out_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None) -> None:
    stub_engine(tmp_path / "engine", monkeypatch)
    Job(RUNS[0], tmp_path / "one")()
    assert is_finished(tmp_path / "one")
    stub_engine(tmp_path / "engine", monkeypatch, first="sys.exit(1)")
    with pytest.raises(RunFailed):
        Job(RUNS[1], tmp_path / "two")()


@pytest.mark.parametrize("preempted", [True, False])
def test_a_job_whose_time_is_over_saves_and_goes_on_as_another(
    preempted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    """By SIGUSR2 alone, as at a time limit, or by SIGTERM before it."""
    stub_engine(tmp_path / "engine", monkeypatch, seconds=0.3)
    monkeypatch.setattr(slurm, "PAUSE", 0.02)
    said, job = tmp_path / "one/output.txt", Job(RUNS[0], tmp_path / "one")
    queued: list[submitit.helpers.DelayedSubmission] = []

    def as_submitit_does(number: int, frame: FrameType | None) -> None:
        queued.append(job.checkpoint())
        assert said.read_text() == "begins\nsaved 1\n"
        sys.exit(-1)

    signal.signal(signal.SIGUSR2, as_submitit_does)
    threads = [send(signal.SIGTERM, said)] if preempted else []
    wait_for = tmp_path / "saved" if preempted else said
    threads.append(send(signal.SIGUSR2, wait_for))
    if preempted:
        threads.append(threading.Thread(target=mark_saved, args=(said, wait_for)))
        threads[-1].start()
    with pytest.raises(SystemExit):
        job()
    for thread in threads:
        thread.join()
    stub_engine(tmp_path / "engine", monkeypatch)
    [again] = queued
    again.function()
    assert is_finished(tmp_path / "one") and "--resume" in (tmp_path / "one/words.txt").read_text()


def mark_saved(said: Path, mark: Path) -> None:
    while "saved" not in (said.read_text() if said.exists() else ""):
        time.sleep(0.01)
    mark.write_text("saved")


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of Slurm that keep scripts in a folder, number them, and say that all but job 2 are queued."""
    commands = {
        "srun": "",
        "sbatch": f'n=$(ls {tmp_path}/queue | wc -l); cp "$1" {tmp_path}/queue/$n; echo Submitted batch job $n',
        "sacct": "echo 'JobID|State|NodeList'; echo '0|PENDING|'; echo '1|RUNNING|a'; echo '2|FAILED|a'",
    }
    for name, does in commands.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "queue"


def test_runs_are_submitted_that_are_not_finished_or_queued(
    sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch)
    settings, out = "partition=gpu gpus_per_node=1 cpus_per_task=16 timeout_min=600", tmp_path / "slurm"
    said = submit(RUNS, lambda name: tmp_path / name, settings, out)
    assert said == {name: f"job {number}, submitted" for number, name in enumerate(("one", "two", "three"))}
    script = (sbatch / "1").read_text()
    for line in ("job-name=two", "partition=gpu", "gpus-per-node=1", "cpus-per-task=16", "time=600", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in script
    assert "export PYTHONPATH=" in script
    job = submitit.SlurmJob(out / "%j", "0").submission()
    job.function()
    said = submit(RUNS, lambda name: tmp_path / name, settings, out)
    assert said == {"one": "finished", "two": "job 1, queued or at work", "three": "job 3, submitted"}
    assert json.loads((out / "jobs.json").read_text()) == {"one": "0", "two": "1", "three": "3"}


def test_settings_are_names_and_values() -> None:
    assert parse("partition=gpu timeout_min=600") == {"partition": "gpu", "timeout_min": 600}
    assert parse("") == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("gpu", "'gpu': type NAME=VALUE, as in 'partition=gpu timeout_min=600'"),
        ("partition=", "type NAME=VALUE"),
        ("cluster=moon", "moon"),
        ("partitoin=gpu", "partitoin"),
        ("timeout_min=long", "timeout_min"),
    ],
)
def test_settings_that_submitit_does_not_know_are_named(
    settings: str, message: str, sbatch: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        submit(RUNS, lambda name: tmp_path / name, settings, tmp_path / "slurm")


def test_what_is_missing_is_named(sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sbatch.parent / "bin/sbatch").write_text("#!/bin/bash\necho invalid partition specified: gpu >&2; exit 1\n")
    with pytest.raises(UserError, match=r"--slurm 'partition=gpu': .*invalid partition specified"):
        submit(RUNS, lambda name: tmp_path / name, "partition=gpu", tmp_path / "slurm")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="srun"):
        submit(RUNS, lambda name: tmp_path / name, "", tmp_path / "slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '.\[slurm\]'"):
        submit(RUNS, lambda name: tmp_path / name, "", tmp_path / "slurm")


@pytest.mark.timeout(600)  # four processes that start one after the other
def test_a_sweep_hands_its_runs_to_jobs_and_leaves(tmp_path: Path) -> None:
    """Jobs of submitit's local executor, which are real processes, as is the training."""
    photos = small_images(tmp_path / "photos")
    words = ["r1-subsets", "--data", str(photos), "--epochs", "1", "--width", "8", "--size", "16", "--batch", "32",
             "--seeds", "1", "--train=--optimizer adamw --hidden 16", "--only", "simclr-a",
             "--slurm", "cluster=local", "--out", str(tmp_path)]  # fmt: skip
    with (tmp_path / "said.txt").open("w") as said:  # which the job inherits: a pipe would be waited for
        subprocess.run([sys.executable, str(SWEEP), *words], stdout=said, check=True)
    jobs = json.loads((tmp_path / "slurm/jobs.json").read_text())
    assert f"simclr-a-seed0: job {jobs['simclr-a-seed0']}, submitted\n" in (tmp_path / "said.txt").read_text()
    job = tmp_path / "slurm" / jobs["simclr-a-seed0"]
    while not list(job.glob("*_result.pkl")):
        time.sleep(0.1)
    assert is_finished(tmp_path / "runs/simclr-a-seed0")
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["mean"] is None
