"""Checkpoints: everything the next step depends on, written so that a kill at any moment leaves a whole one.

    {"penstock": version, "config": settings, "position": epoch, consumed and step, "method", "optimizer", "scaler",
     "epoch_sums": what the epoch's line of the log is made of, "samples": images in the data, "world": ranks,
     "recipe": as YAML, "best": of --keep-best: which figure, the best so far and its epoch, or None}

Loaded with `weights_only=True`: a checkpoint from elsewhere can run no code.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import penstock
from penstock.engine.config import TrainConfig, flag
from penstock.errors import UserError

# What a checkpoint's tensors, or its place in the order of samples, depend on.
FIXED = ("method", "arch", "width", "stem", "head", "head_layers", "hidden", "dim", "predictor", "prototypes", "queue",
         "optimizer", "data", "split", "subset", "order", "seed")  # fmt: skip


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


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write under another name, wait until it is on the disk, then put it in place of the last one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({"penstock": penstock.__version__, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path, *, what: str = "--resume") -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU. `what` is the flag that errors name beside the path.

    Raises:
        UserError: no such file, or no checkpoint of ours.
    """
    given = f"{what} {path}" if what else f"{path}"
    if not path.is_file():
        raise UserError(f"{given}: there is no such file; a run keeps its checkpoint as OUT/last.pt")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError):  # torch speaks of pickles
        raise UserError(f"{given}: this is no checkpoint, or a damaged one") from None
    if not isinstance(state, dict) or "penstock" not in state:
        raise UserError(f"{given}: this is no checkpoint of a run; weights to start from are given as --init")
    return state


def check_same_run(path: Path, saved: TrainConfig, config: TrainConfig) -> None:
    """Hold that a run goes on with the network and the data it began with.

    Raises:
        UserError: a setting was given that contradicts the checkpoint; both are named.
    """
    for field in FIXED:
        was, now = getattr(saved, field), getattr(config, field)
        if was != now:
            raise UserError(
                f"--resume {path}: it was trained with {flag(field)} {was}, not {now}: leave {flag(field)} out to go"
                f" on with {was}, or start anew from its weights with --init {path}"
            )
