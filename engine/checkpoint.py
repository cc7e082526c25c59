"""Checkpoints: everything the next step depends on, written so that a kill at any moment leaves a whole one.

    {"penstock": version, "config": settings, "position": epoch, consumed and step, "method", "optimizer", "scaler",
     "epoch_sums": what the epoch's line of the log is made of, "samples": images in the data, "world": ranks,
     "recipe": as YAML, "best": of --keep-best: which figure, the best so far and its epoch, or None}

Loaded with `weights_only=True`: a checkpoint from elsewhere can run no code.
"""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import penstock
from penstock.engine.config import TrainConfig, flag
from penstock.errors import UserError

# What a checkpoint's tensors, or its place in the order of samples, depend on.
FIXED = ("method", "arch", "width", "stem", "head", "head_layers", "hidden", "dim", "predictor", "prototypes", "queue",
         "optimizer", "data", "split", "subset", "order", "seed", "init")  # fmt: skip


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        epoch: epochs that are over.
        consumed: images seen of the one that is not, over all ranks.
        step: optimizer steps taken.
    """

    epoch: int = 0
    consumed: int = 0
    step: int = 0


class NotSaved(UserError):
    """A checkpoint that could not be written: no fault of what was typed, so the exit code is 1."""

    exit_code = 1

    def __init__(self, path: Path, error: Exception) -> None:
        system = error if isinstance(error, OSError) else error.__context__  # torch raises its own over the system's
        reason = system.strerror if isinstance(system, OSError) else str(error).strip().partition("\n")[0]
        kept = "; the one before it is whole" if path.exists() else ""
        super().__init__(f"{path}: the checkpoint cannot be written ({reason}){kept}")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write under another name, wait until it is on the disk, then put it in place of the last one.

    Raises:
        NotSaved: the last one is as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"penstock": penstock.__version__, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's, where the disk is full in the middle of a tensor
        partial.unlink(missing_ok=True)
        raise NotSaved(path, error) from error


class CheckpointWriter:
    """Writes checkpoints while training goes on: the state is copied at once, and a thread waits for the disk.

    One at a time: a second one waits for the first, and makes good for it where it could not be written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="penstock-checkpoint")
        self._writing: Future[None] | None = None

    def save(self, paths: Sequence[Path], state: dict[str, Any]) -> None:
        """Start to write a state under each of these names, in order.

        Raises:
            NotSaved: neither the one before nor this one could be.
        """
        held, before = on_host(state), self._failure()
        self._writing = self._thread.submit(_save_all, paths, held)
        if before is not None:
            self.wait()
            print(f"penstock: {before}; now it could", file=sys.stderr, flush=True)

    def wait(self) -> None:
        """Until all is on the disk. Raises NotSaved."""
        if failure := self._failure():
            raise failure

    def close(self) -> None:
        """Wait; a failure that nobody has asked for is said, as there may be another error on its way."""
        if failure := self._failure():
            print(f"penstock: {failure}", file=sys.stderr, flush=True)
        self._thread.shutdown()

    def _failure(self) -> BaseException | None:
        """What became of the last one, when it is over; said once."""
        writing, self._writing = self._writing, None
        return writing.exception() if writing is not None else None


def _save_all(paths: Sequence[Path], state: dict[str, Any]) -> None:
    for path in paths:
        save_checkpoint(path, state)


def on_host(state: Any) -> Any:
    """A copy of nested dicts and lists whose tensors are on the CPU, and stay as they are now."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        held = copy(state)  # with the versions that torch keeps as an attribute of its state dicts
        held.update((key, on_host(value)) for key, value in state.items())
        return held
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return state


def load_checkpoint(path: Path, *, what: str = "--resume") -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU. `what` is the flag that errors name beside the path.

    Raises:
        UserError: no such file, or no checkpoint of ours.
    """
    given = f"{what} {path}" if what else f"{path}"
    if not path.is_file():
        raise UserError(f"{given}: there is no such file; a run keeps its checkpoint as OUT/last.pt")
    state = read_torch(path, otherwise=f"{given}: this is no checkpoint, or a damaged one")
    if not isinstance(state, dict) or "penstock" not in state:
        raise UserError(f"{given}: this is no checkpoint of a run; weights to start from are given as --init")
    return state


def read_torch(path: Path, *, otherwise: str) -> Any:
    """What `torch.save` wrote, on the CPU. Its checksums are held first: torch reads past them.

    Raises:
        UserError: `otherwise`, where it is something else, or damaged.
    """
    try:
        if zipfile.is_zipfile(path):  # torch wrote plain pickles before 1.6
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(damaged)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, LookupError):
        raise UserError(otherwise) from None  # torch speaks of pickles


def check_same_run(path: Path, saved: TrainConfig, config: TrainConfig) -> None:
    """Hold that a run goes on with the network and the data it began with.

    Raises:
        UserError: a setting was given that contradicts the checkpoint; both are named.
    """
    for field in FIXED:
        was, now = getattr(saved, field), getattr(config, field)
        if field == "init" and was and now:  # a folder stands for its last.pt
            was, now = (file.resolve() / "last.pt" if file.is_dir() else file.resolve() for file in (was, now))
        if was != now:
            had = f"no {flag(field)}" if was is None else f"{flag(field)} {was}"
            raise UserError(
                f"--resume {path}: it was trained with {had}, not {now}: leave {flag(field)} out to go on as it was, or"
                f" start anew from its weights with --init {path}"
            )
