"""What depends on the epoch, in stages: an operation's strength (`ByEpoch`), the size of the views (`Growth`)."""

from __future__ import annotations

from typing import TypeVar

from penstock.errors import UserError

T = TypeVar("T")
Stages = tuple[tuple[int, T], ...]  # (first epoch, counted from 0; what holds from then on), in order


def check_stages(what: str, stages: Stages[T], of: int) -> None:
    """Raises UserError unless stages begin at epoch 0, rise, and all begin within the `of` epochs of a run."""
    if not isinstance(of, int) or isinstance(of, bool):
        raise UserError(f"{what}: of must be a number of epochs, not {of!r}")
    starts = [start for start, _ in stages]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= of:
        raise UserError(f"{what}: stages start at epochs {starts} of {of}: they begin at 0, rise, and end before")


def in_force(stages: Stages[T], epoch: int) -> T:
    """What holds in an epoch, counted from 0."""
    return [stage for start, stage in stages if start <= epoch][-1]


def scaled(stages: Stages[T], of: int, epochs: int) -> Stages[T]:
    """Stages of a run of `of` epochs in one of `epochs`; where several would begin together, the last of them does."""
    return tuple({start * epochs // of: stage for start, stage in stages}.items())
