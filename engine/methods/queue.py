"""A queue of embeddings of earlier batches, held as a ring: the newest take the places of the oldest.

K its length, C the embeddings' dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Queue(nn.Module):
    """The last K embeddings that were pushed; at first, random directions.

    Attributes:
        keys: float32 [K, C], of unit length if those pushed are; in no order that matters.
        pushed: how many have entered since the start.
    """

    keys: torch.Tensor

    def __init__(self, length: int, dim: int, *, seed: int, device: torch.device) -> None:
        super().__init__()
        start = torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", functional.normalize(start).to(device))
        self.pushed = 0

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def push(self, keys: torch.Tensor) -> None:
        """Put keys [n, C], n ≤ K, in the place of the n oldest; wraps around."""
        first = self.pushed % len(self.keys)
        places = torch.arange(first, first + len(keys), device=keys.device) % len(self.keys)
        self.keys[places] = keys
        self.pushed += len(keys)

    def get_extra_state(self) -> int:
        return self.pushed

    def set_extra_state(self, state: Any) -> None:
        self.pushed = state
