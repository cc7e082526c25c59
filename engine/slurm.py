"""A list of runs handed to Slurm: a job for each, which goes on by itself after pre-emption and time limits.

    python engine/sweep.py r1-subsets --slurm "partition=gpu gpus_per_node=1 cpus_per_task=16 timeout_min=600"

The settings are submitit's (github.com/facebookincubator/submitit): timeout_min, mem_gb, nodes, cpus_per_task,
gpus_per_node and what it hands on to sbatch, such as partition, account, qos, constraint. `cluster=local` starts the
jobs as processes of this machine instead, all at once: to try it.

    OUT/jobs.json   the last job of each run
    OUT/JOB/        a job's script, and what it said

Slurm announces the end of a job's time by SIGUSR2: the training saves after its step, and the job is queued again.
Pre-emption may come by SIGTERM alone: the training saves at once, and Slurm queues the job again when it ends it. What
is killed without a word goes on from its last checkpoint. The folder must lie on a disk that all machines share.
"""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import TYPE_CHECKING, Any

from penstock.engine.runs import PAUSE, Place, Run, carry_out, is_at_work, is_finished
from penstock.engine.systems.plan import split_words
from penstock.errors import MissingExtra, UserError
from penstock.files import write_whole

if TYPE_CHECKING:
    from submitit import AutoExecutor
    from submitit.helpers import DelayedSubmission

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node")  # of all clusters; others are Slurm's own
MINUTES = 240  # of a job, where nothing is said
REQUEUED = 1000  # times at most, after the end of a job's time


class Job:
    """What a job does: carries out a run from where it stands.

    A thread does it, since the main one runs submitit's signal handlers, which must find somebody at work. The handlers
    assign `asked` alone: a lock that they took could be one that the main thread holds already.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.asked = self.over = self.finished = False
        self.error: Exception | None = None

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, self._ask)
        Thread(target=self._work, daemon=True).start()
        self._wait()
        if self.error is not None:
            raise self.error
        while not self.finished:
            time.sleep(PAUSE)  # saved; what comes is the end, or the signal to be queued again

    def checkpoint(self) -> DelayedSubmission:
        """What submitit is to queue, called in its handler of SIGUSR2."""
        from submitit.helpers import DelayedSubmission

        self.asked = True
        self._wait()
        return DelayedSubmission(Job(self.run, self.folder))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _wait(self) -> None:
        while not self.over:
            time.sleep(PAUSE)

    def _work(self) -> None:
        stop = Event()

        def watch(epochs: int) -> None:
            if self.asked:
                stop.set()

        try:
            self.finished = carry_out(self.run, self.folder, place=Place(), stop=stop, watch=watch)
        except Exception as error:
            self.error = error
        finally:
            self.over = True


def submit(runs: Sequence[Run], folder: Callable[[str], Path], settings: str, out: Path) -> dict[str, str]:
    """Submit the runs that are not finished, queued or at work.

    Args:
        folder: a run's, from its name.
        settings: NAME=VALUE, separated by spaces.
        out: for what submitit keeps.

    Returns:
        What became of each run, by its name.

    Raises:
        MissingExtra: submitit is not installed.
        UserError: settings that submitit does not know, or that Slurm refuses.
    """
    executor = _executor(settings, out)
    jobs: dict[str, str] = json.loads((out / "jobs.json").read_text()) if (out / "jobs.json").exists() else {}
    said: dict[str, str] = {}
    for run in runs:
        place = folder(run.name)
        if is_finished(place):
            said[run.name] = "finished"
        elif is_at_work(place) or _is_queued(executor, jobs.get(run.name), out):
            said[run.name] = f"job {jobs.get(run.name, 'of somebody else')}, queued or at work"
        else:
            jobs[run.name] = _submit(executor, run, place, settings)
            text = json.dumps(jobs, indent=2) + "\n"
            write_whole(out / "jobs.json", lambda path, text=text: path.write_text(text))  # type: ignore[misc]
            said[run.name] = f"job {jobs[run.name]}, submitted"
    return said


def _submit(executor: AutoExecutor, run: Run, folder: Path, settings: str) -> str:
    """Returns the job's id."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor.update_parameters(slurm_job_name=run.name)
    try:
        return executor.submit(Job(run, folder.absolute())).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"--slurm {settings!r}: {_line(error)}") from None


def _is_queued(executor: AutoExecutor, job: str | None, out: Path) -> bool:
    """Whether Slurm still has the job. One that its accounting has forgotten is gone: submitted twice, a run is carried
    out once, for its lock."""
    from submitit import SlurmJob

    if executor.cluster != "slurm" or job is None:
        return False
    known: SlurmJob[bool] = SlurmJob(out / "%j", job)
    return not known.done() and known.state != "UNKNOWN"


def _executor(settings: str, out: Path) -> AutoExecutor:
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise MissingExtra("submitit", "slurm") from None
    given = {"timeout_min": MINUTES} | parse(settings)
    cluster = given.pop("cluster", "slurm")
    parameters = {name if name in SHARED else f"slurm_{name}": value for name, value in given.items()}
    found = f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH"  # a clone need not be installed
    try:
        executor = AutoExecutor(out / "%j", cluster=cluster, **{f"{cluster}_max_num_timeout": REQUEUED})
        executor.update_parameters(**parameters, slurm_setup=[found])
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:  # each of which submitit raises
        raise UserError(f"--slurm {settings!r}: {_line(error)}") from None
    return executor


def parse(settings: str) -> dict[str, Any]:
    """`partition=gpu timeout_min=600` as {"partition": "gpu", "timeout_min": 600}."""
    words = [word.partition("=") for word in split_words("--slurm", settings)]
    for name, equals, value in words:
        if not (name and equals and value):
            raise UserError(f"--slurm {settings!r}: type NAME=VALUE, as in 'partition=gpu timeout_min=600'")
    return {name: int(value) if value.isdecimal() else value for name, _, value in words}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
