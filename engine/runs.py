"""A training, and what evaluates it, in a process of its own: begun, gone on with, watched.

Sweeps and searches are lists of such runs. All that is known of one lies in its folder, so that whoever is killed and
started again goes on where it stood:

    FOLDER/run.json    its settings, the commits it was carried out at, whether it is finished
    FOLDER/lock        held by whoever works on it: a process that outlives the one that began it is waited for
    FOLDER/output.txt  what its processes said
    FOLDER/…           the run itself, as engine/train.py and engine/evaluate/run.py leave it
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Event
from typing import Any

from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.config import TrainConfig, flag, to_dict
from penstock.engine.csv_log import read_csv
from penstock.errors import UserError
from penstock.files import write_whole
from penstock.machine import git_commit

ENGINE = Path(__file__).resolve().parent
DOWNSTREAM = "downstream"  # in a run's folder: not `evaluation`, where a user's own would take its place
LAST_LINES = 12  # of what a failed run said
REFUSED = 2  # the exit code of a command that was given what cannot work
PAUSE = 0.5  # seconds between two looks at a process
OWN = ("out", "resume", "device", "workers")  # where and how a run is carried out, not what it is


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is done with a trained network.

    Attributes:
        protocols: names of `engine/evaluate/run.py --protocols`.
        settings: of that command, by the names of its flags: {"probe-augmented.epochs": 20}.
        checkpoint: which one: last, or best (with --keep-best).
    """

    protocols: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = "last"

    def words(self, folder: Path) -> list[str]:
        """What is typed behind engine/evaluate/run.py."""
        said = [word for name, value in self.settings.items() for word in (f"--{name}", str(value))]
        place = [str(folder / f"{self.checkpoint}.pt"), "--out", str(folder / DOWNSTREAM)]
        return [*place, "--protocols", ",".join(self.protocols), *said]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and its evaluation.

    Attributes:
        name: its folder's; the same for the same run in every sweep that has it.
        config: what it is trained with; `epochs` is given.
    """

    name: str
    config: TrainConfig
    evaluation: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is carried out, beside others.

    Attributes:
        workers: threads that load, and that compute on a CPU; None: as engine/train.py has it.
        gpu: the number of the one to use, among those that are visible; None: as engine/train.py has it.
    """

    workers: int | None = None
    gpu: int | None = None

    def words(self) -> list[str]:
        return [] if self.workers is None else ["--workers", str(self.workers)]

    def environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self.workers is not None:
            environment["OMP_NUM_THREADS"] = str(self.workers)
        if self.gpu is not None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[self.gpu] if visible else str(self.gpu)
        return environment


class RunFailed(UserError):
    """A run's process left with an error: exit code `code`, or a signal, negative. The message has what it said."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def carry_out(
    run: Run,
    folder: Path,
    *,
    place: Place,
    stop: Event,
    watch: Callable[[int], None] = lambda epochs: None,
    waits: Callable[[], None] = lambda: None,
) -> bool:
    """Train and evaluate from where the run stands. Returns whether it is finished, which it is not after a stop.

    Args:
        folder: the run's own.
        stop: when set, the training is asked to save and to leave after its step.
        watch: told twice a second how many epochs are over.
        waits: called once where somebody else is at the run, who is waited for.

    Raises:
        UserError: another run lies in the folder, or it cannot be made.
        RunFailed: see there.
    """
    check_same(run, folder)
    make_folder(folder)

    def look() -> None:
        watch(epochs_done(folder))

    with _locked(folder, stop, look, waits) as lock:
        if stop.is_set() or is_finished(folder):
            return is_finished(folder)
        _note(run, folder, finished=False)
        for words in _commands(run, folder, place):
            if stop.is_set() or not _process(words, folder, place, lock, stop, look):
                return False
        _note(run, folder, finished=True)
    return True


def make_folder(folder: Path) -> None:
    """A folder for what is measured. Raises UserError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}): choose another --out") from error


def _commands(run: Run, folder: Path, place: Place) -> Iterator[list[str]]:
    """What is left to do, each when the one before is done."""
    last = folder / "last.pt"
    if not _is_trained(run, folder):  # a checkpoint goes on with all that it began with
        what = ["--resume", str(last)] if last.exists() else [*words_of(run.config), "--out", str(folder)]
        yield [str(ENGINE / "train.py"), *what, *place.words()]
    if run.evaluation is not None:
        yield [str(ENGINE / "evaluate/run.py"), *run.evaluation.words(folder), *place.words()]


def _is_trained(run: Run, folder: Path) -> bool:
    """By the checkpoint, which is written a moment after the log's last line: a kill can come between."""
    epochs, last = run.config.epochs or 0, folder / "last.pt"
    return epochs_done(folder) >= epochs and last.exists() and load_checkpoint(last)["position"]["epoch"] >= epochs


def _process(words: list[str], folder: Path, place: Place, lock: int, stop: Event, watch: Callable[[], None]) -> bool:
    """Run a command to its end. Returns False where it was stopped."""
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(  # in a session of its own: a Ctrl-C reaches it only through us, so only once
            [sys.executable, *words], start_new_session=True, pass_fds=(lock,),
            stdout=output, stderr=subprocess.STDOUT, env=place.environment(),
        )  # fmt: skip
    try:
        while process.poll() is None and not stop.wait(PAUSE):
            watch()
    finally:
        if process.poll() is None:
            process.terminate()  # it saves after its step, even if Slurm has asked it already
            process.wait()
    watch()
    if process.returncode and not stop.is_set():
        raise RunFailed(_failure(folder, process.returncode), process.returncode)
    return process.returncode == 0


def _failure(folder: Path, code: int) -> str:
    """The one line that our commands leave with, else how the process ended, and the last that it said."""
    lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
    if code > 0 and lines and lines[-1].startswith("penstock: "):
        return f"{folder}: {lines[-1].removeprefix('penstock: ')}"
    number = -code if code < 0 else code - 128  # a shell, and our commands, add 128
    how = signal.Signals(number).name if number in set(signal.Signals) else f"code {code}"
    return "\n".join([f"{folder}: the run ended with {how}; {folder / 'output.txt'} has:", *lines[-LAST_LINES:]])


@contextmanager
def _locked(folder: Path, stop: Event, watch: Callable[[], None], waits: Callable[[], None]) -> Iterator[int]:
    """Hold the folder's lock, which the run's processes inherit: it is free when the last of them is gone.

    Without it after a stop.
    """
    with (folder / "lock").open("w") as file:
        if not _lock(file.fileno()):
            waits()
            while not stop.wait(PAUSE) and not _lock(file.fileno()):
                watch()
        yield file.fileno()


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at_work(folder: Path) -> bool:
    """Whether somebody holds the folder's lock."""
    if not (folder / "lock").exists():
        return False
    with (folder / "lock").open("w") as file:
        return not _lock(file.fileno())


def words_of(config: TrainConfig) -> list[str]:
    """What is typed behind engine/train.py for these settings."""
    words: list[str] = []
    for setting in fields(config):
        value, name = getattr(config, setting.name), setting.name
        if value == setting.default or value is None:
            continue
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        else:
            words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def identity(run: Run) -> dict[str, Any]:
    """What makes a run the run it is: as plain values, without what is the default."""
    default, settings = to_dict(TrainConfig()), to_dict(run.config)
    own = {name: value for name, value in settings.items() if value != default[name] and name not in OWN}
    evaluation = [] if run.evaluation is None else run.evaluation.words(Path())
    return {"settings": own, "evaluation": evaluation}


def check_same(run: Run, folder: Path) -> None:
    """Raises UserError where another run, or one with other settings, lies in the folder."""
    if not (folder / "run.json").exists():
        if (folder / "epochs.csv").exists():
            raise UserError(f"{folder}: a run lies there that was not begun from here: choose another --out")
        return
    was, now, default = read_run(folder), identity(run), to_dict(TrainConfig())
    for name in sorted(was["settings"].keys() | now["settings"].keys()):
        before, asked = (settings.get(name, default.get(name)) for settings in (was["settings"], now["settings"]))
        if before != asked:
            raise UserError(
                f"{folder}: this run was begun with {flag(name)} {before}, not {asked}: choose another --out, or delete"
                " the folder to begin it anew"
            )
    if was["evaluation"] != now["evaluation"]:
        raise UserError(
            f"{folder}: this run was to be evaluated by {' '.join(was['evaluation']) or 'nothing'}, not by"
            f" {' '.join(now['evaluation']) or 'nothing'}: choose another --out"
        )


def _note(run: Run, folder: Path, *, finished: bool) -> None:
    """Write run.json, with the commit that is at work beside those before it."""
    commits: list[str | None] = read_run(folder)["commits"] if (folder / "run.json").exists() else []
    commit = git_commit()
    commits += [commit] if commit not in commits[-1:] else []
    text = json.dumps({**identity(run), "commits": commits, "finished": finished}, indent=2) + "\n"
    write_whole(folder / "run.json", lambda path: path.write_text(text))


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder was trained and evaluated to its end."""
    return (folder / "run.json").exists() and read_run(folder)["finished"]


def epochs_done(folder: Path) -> int:
    """Epochs that are over, 0 where there is no run."""
    return max((int(row["epoch"]) for row in read_csv(folder / "epochs.csv")), default=0)
