"""A momentum encoder: one that follows the trained one slowly, and takes no gradient."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class Follower:
    """Moves the weights of a copy towards those of the network it was copied from.

    Args:
        slow, fast: networks of one shape. Statistics of normalisation are each network's own.
    """

    def __init__(self, slow: nn.Module, fast: nn.Module) -> None:
        self.slow: list[torch.Tensor] = list(slow.parameters())
        self.fast: list[torch.Tensor] = list(fast.parameters())

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """slow ← momentum · slow + (1 − momentum) · fast, all weights in one call."""
        torch._foreach_lerp_(self.slow, self.fast, 1 - momentum)


def momentum_copy(network: nn.Module) -> nn.Module:
    """A copy that takes no gradient."""
    return copy.deepcopy(network).requires_grad_(False)


def scheduled_momentum(momentum: float, schedule: str, progress: float) -> float:
    """The momentum at `progress` (0 to 1) of the run: `constant`, or `cosine`, which ends at 1.

    Grill et al. 2020 (BYOL, arXiv 2006.07733, section 3.2): 1 − (1 − τ)(cos(πk/K) + 1) / 2.
    """
    if schedule == "constant":
        return momentum
    return 1 - (1 - momentum) * (math.cos(math.pi * progress) + 1) / 2
