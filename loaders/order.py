"""In which order samples are seen: a pure function of (seed, epoch), in O(1) memory, for any number of ranks.

Rank r takes at step t the elements `permutation[t·G + r·B + j]`, j < B, G = ranks · B the global batch. The
permutation is never stored: a position is enciphered by a four-round Feistel network over the next power of four,
walking its cycle until it falls below N (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
So a set of 100 M samples costs nothing to shuffle, and a run that goes on with another number of ranks still sees
each sample once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.augment.jit import njit
from penstock.augment.philox import philox
from penstock.errors import UserError

ROUNDS = 4
STREAM = np.uint64(0x6F72646572)  # "order": keeps these draws apart from the augmentation's


@njit
def permute(positions: NDArray[np.int64], length: int, seed: np.uint64, epoch: int) -> NDArray[np.int64]:
    """The elements at `positions` (int64 [M], each in [0, length)) of the epoch's permutation of range(length)."""
    half = np.uint64(1)
    while (np.uint64(1) << (np.uint64(2) * half)) < np.uint64(length):
        half += np.uint64(1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = np.empty_like(positions)
    for i in range(len(positions)):
        value = np.uint64(positions[i])
        while True:
            left, right = value >> half, value & mask
            for r in range(ROUNDS):
                word, _, _, _ = philox(seed, right, np.uint64(r), np.uint64(epoch), STREAM)
                left, right = right, left ^ (word & mask)
            value = (left << half) | right
            if value < np.uint64(length):
                break
        out[i] = np.int64(value)
    return out


class Order:
    """Which samples a rank takes at each step of each epoch.

    Args:
        length: samples in the source.
        batch: samples per step on one rank.
        seed, rank, world: as in DESIGN; the seed alone decides the permutation.
        shuffle: False keeps the source's order (evaluation).
        keep_tail: give the last, smaller batch too. Training drops it (another tail each epoch, since the
            permutation changes).

    Raises:
        UserError: the global batch is larger than the set and the tail is dropped, which would leave no step.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        keep_tail: bool = False,
    ) -> None:
        self.length, self.batch, self.seed = length, batch, seed
        self.rank, self.world, self.shuffle, self.keep_tail = rank, world, shuffle, keep_tail
        self.global_batch = batch * world
        if batch < 1:
            raise UserError(f"--batch {batch}: a batch holds at least one sample")
        if length < self.global_batch and not keep_tail:
            ranks = f" on each of {world} ranks" if world > 1 else ""
            raise UserError(
                f"--batch {batch}{ranks} is larger than the data ({length} images), so an epoch would have no step:"
                f" use --batch {max(1, length // world)} or less"
            )

    def steps(self, consumed: int = 0) -> int:
        """Steps left in an epoch of which `consumed` samples (over all ranks) were seen."""
        left = max(0, self.length - consumed)
        return -(-left // self.global_batch) if self.keep_tail else left // self.global_batch

    def indices(self, epoch: int, step: int, consumed: int = 0) -> NDArray[np.int64]:
        """int64 [B], positions in the source; shorter, or empty, only at a kept tail."""
        first = consumed + step * self.global_batch + self.rank * self.batch
        positions = np.arange(min(first, self.length), min(first + self.batch, self.length), dtype=np.int64)
        if not self.shuffle:
            return positions
        return permute(positions, self.length, np.uint64(self.seed), epoch)
