"""A few steps of a method, as the loop takes them, for the tests of every method."""

from __future__ import annotations

from collections.abc import Callable

import torch

from penstock.engine.method import Method
from penstock.engine.methods.queue import Queue


def oldest_first(queue: Queue) -> torch.Tensor:
    """The ring's keys [K, C], unrolled."""
    return queue.keys.roll(-queue.pushed, 0)


def run(
    method: Method, batch: Callable[[int], torch.Tensor], *, steps: range, of: int, parts: int = 1, lr: float = 0.1
) -> list[float]:
    """The losses of some of a run's `of` steps, part by part.

    Args:
        batch: from a number, another for each part, to two views [2·N, 3, S, S].
    """
    sgd = torch.optim.SGD([parameter for parameter in method.parameters() if parameter.requires_grad], lr=lr)
    losses = []
    for step in steps:
        method.progress = step / of
        for part in range(parts):
            views = batch(parts * step + part)
            loss, _ = method([views], torch.arange(len(views) // 2))
            (loss / parts).backward()
            losses.append(loss.item())
        method.before_step()
        sgd.step()
        sgd.zero_grad()
        method.after_step()
    return losses
