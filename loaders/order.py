"""In which order samples are seen: a pure function of (seed, epoch), in O(1) memory, for any number of ranks.

Rank r takes at step t the elements `permutation[t·G + r·B + j]`, j < B, G = ranks · B the global batch. The
permutation is never stored: a position is enciphered by a four-round Feistel network over the next power of four,
walking its cycle until it falls below N (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
So a set of 100 M samples costs nothing to shuffle, and a run that goes on with another number of ranks still sees
each sample once.

A shard larger than memory is read from its disk again in each epoch, and a permutation of all samples reads it in
pieces of one image. The quasi-random order (`Quasi`) reads pieces of megabytes instead, and holds a window of them:

    stored       | block 0 | block 1 | block 2 | block 3 | block 4 | block 5 | short |
    laid out     | block 4 | block 1 | short | block 5 | block 0 | block 3 | block 2 |    blocks permuted
    windows      |          0          |          1          |          2          |
    seen           samples permuted within window 0, then within window 1, then within window 2

It is a pure function of (seed, epoch), too. Two samples of different blocks meet in a batch as often as in a full
permutation, G / N; two of one block more often, about G / window. `tests/test_order.py` counts both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.augment.jit import njit
from penstock.augment.philox import below, philox
from penstock.errors import UserError
from penstock.loaders.ram import memory_limit

ROUNDS = 4
STREAM = np.uint64(0x6F72646572)  # "order": keeps these draws apart from the augmentation's
SAMPLES, BLOCKS, SHORT, WINDOWS = 0, 1, 2, 3  # what is permuted: each has a Feistel network of its own, windows many

BLOCK_BYTES = 8 << 20  # read in one piece: what a `.beton` has for a page, and disks need to reach their speed
FITS = 0.5  # share of memory up to which a shard is left to the page cache; the model and its batches need room, too
WINDOW = 0.125  # share of memory for a window; two are held, the one in use and the one being read


@dataclass(frozen=True, kw_only=True)
class Quasi:
    """The quasi-random order: blocks of consecutive samples in random order, shuffled within a window of them.

    Attributes:
        block: samples that lie side by side and are read in one piece.
        window: samples that are shuffled among each other, and so must be in memory at once; at most so many.

    Raises:
        UserError: no block fits in the window.
    """

    block: int
    window: int

    def __post_init__(self) -> None:
        if not 1 <= self.block <= self.window < 1 << 48:
            raise UserError(
                f"quasi:{self.block}:{self.window}: a block holds at least one sample, and a window at least one block:"
                " use quasi:64:16384"
            )

    def __str__(self) -> str:
        return f"quasi:{self.block}:{self.window}"


@njit(inline=True)
def _bits(length: int) -> np.uint64:
    """Half the width of the narrowest Feistel network that covers range(length)."""
    half = np.uint64(1)
    while (np.uint64(1) << (np.uint64(2) * half)) < np.uint64(length):
        half += np.uint64(1)
    return half


@njit(inline=True)
def _encipher(position: int, length: int, half: np.uint64, seed: np.uint64, epoch: int, network: int) -> np.int64:
    """Where a permutation of range(length) takes `position`; each `network` is another permutation."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    value = np.uint64(position)
    while True:
        left, right = value >> half, value & mask
        for r in range(ROUNDS):
            word, _, _, _ = philox(seed, right, np.uint64(ROUNDS * network + r), np.uint64(epoch), STREAM)
            left, right = right, left ^ (word & mask)
        value = (left << half) | right
        if value < np.uint64(length):
            return np.int64(value)


@njit
def permute(positions: NDArray[np.int64], length: int, seed: np.uint64, epoch: int) -> NDArray[np.int64]:
    """The elements at `positions` (int64 [M], each in [0, length)) of the epoch's permutation of range(length)."""
    half = _bits(length)
    out = np.empty_like(positions)
    for i in range(len(positions)):
        out[i] = _encipher(positions[i], length, half, seed, epoch, SAMPLES)
    return out


@njit
def window_of(position: int, length: int, window: int) -> tuple[int, int, int]:
    """The window around a position: its number, where it starts, its size.

    They are all of one size, give or take a sample: a short one at the end would hardly be shuffled.
    """
    windows = -(-length // window)
    number = ((position + 1) * windows - 1) // length
    start = number * length // windows
    return number, start, (number + 1) * length // windows - start


@njit
def shuffle_windows(
    positions: NDArray[np.int64], length: int, window: int, seed: np.uint64, epoch: int
) -> NDArray[np.int64]:
    """Permute the positions (int64 [M], each in [0, length)) within their windows."""
    out = np.empty_like(positions)
    for i in range(len(positions)):
        number, start, size = window_of(positions[i], length, window)
        out[i] = start + _encipher(positions[i] - start, size, _bits(size), seed, epoch, WINDOWS + number)
    return out


@njit
def lay_out(places: NDArray[np.int64], length: int, block: int, seed: np.uint64, epoch: int) -> NDArray[np.int64]:
    """The samples at `places` (int64 [M], each in [0, length)) of the permuted blocks.

    Blocks that are whole are permuted; the short one at the end of the set, if there is one, is put between any two.
    """
    whole, short = length // block, length % block
    word, _, _, _ = philox(seed, np.uint64(0), np.uint64(ROUNDS * SHORT), np.uint64(epoch), STREAM)
    before = below(word, whole + 1) * block  # places taken by the blocks before the short one
    half = _bits(whole)
    out = np.empty_like(places)
    for i in range(len(places)):
        place = places[i]
        if before <= place < before + short:
            out[i] = whole * block + place - before
        else:
            place -= short if place >= before else 0
            out[i] = _encipher(place // block, whole, half, seed, epoch, BLOCKS) * block + place % block
    return out


class Order:
    """Which samples a rank takes at each step of each epoch.

    Args:
        length: samples in the source.
        batch: samples per step on one rank.
        seed, rank, world: as in DESIGN; the seed alone decides the permutation.
        shuffle: True permutes all samples, a `Quasi` the blocks of a shard that memory does not hold; False keeps the
            source's order (evaluation).
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
        shuffle: bool | Quasi = True,
        keep_tail: bool = False,
    ) -> None:
        self.length, self.batch, self.seed = length, batch, seed
        self.rank, self.world, self.shuffle, self.keep_tail = rank, world, shuffle, keep_tail
        self.global_batch = batch * world
        if batch < 1:
            raise UserError(f"--batch {batch}: a batch holds at least one sample")
        if not 0 <= rank < world:
            raise UserError(f"rank {rank} of {world}: ranks are counted from 0, and there is at least one")
        if not 0 <= seed < 1 << 64:
            raise UserError(f"--seed {seed}: a seed is at least 0, and less than 2^64")
        if length < self.global_batch and not keep_tail:
            ranks = f" on each of {world} ranks" if world > 1 else ""
            raise UserError(
                f"--batch {batch}{ranks} is larger than the data ({length} images), so an epoch would have no step:"
                f" use --batch {max(1, length // world)} or less"
            )

    @property
    def name(self) -> str:
        """`full`, `stored` or `quasi:BLOCK:WINDOW`: with the seed, all that decides the permutation."""
        return str(self.shuffle) if isinstance(self.shuffle, Quasi) else ("stored", "full")[self.shuffle]

    def follow(self, name: str) -> None:
        """Take another order, by its `name`."""
        self.shuffle = choose_shuffle(name, samples=self.length, stored_bytes=None)

    def steps(self, consumed: int = 0) -> int:
        """Steps left in an epoch of which `consumed` samples (over all ranks) were seen."""
        left = max(0, self.length - consumed)
        return -(-left // self.global_batch) if self.keep_tail else left // self.global_batch

    def indices(self, epoch: int, step: int, consumed: int = 0) -> NDArray[np.int64]:
        """int64 [B], positions in the source; shorter, or empty, only at a kept tail."""
        first = consumed + step * self.global_batch + self.rank * self.batch
        positions = self._range(first, first + self.batch)
        if not self.shuffle:
            return positions
        if isinstance(self.shuffle, Quasi):
            places = shuffle_windows(positions, self.length, self.shuffle.window, np.uint64(self.seed), epoch)
            return lay_out(places, self.length, self.shuffle.block, np.uint64(self.seed), epoch)
        return permute(positions, self.length, np.uint64(self.seed), epoch)

    def ahead(self, epoch: int, step: int, consumed: int = 0) -> NDArray[np.int64]:
        """What the quasi-random order is to read from the disk at this step, so that it is there when it is needed.

        int64 [K, 2], runs of stored samples, [first, last) each: what one window further on takes the place of this
        step's samples; at the first step of an epoch or after a resume also all of the window. The same on each rank.
        Empty in other orders.
        """
        if not isinstance(self.shuffle, Quasi):
            return np.empty((0, 2), np.int64)
        now, window = consumed + step * self.global_batch, self.shuffle.window
        first = now + window if step else window_of(now, self.length, window)[1]
        places = self._range(first, now + self.global_batch + window)
        return _runs(lay_out(places, self.length, self.shuffle.block, np.uint64(self.seed), epoch))

    def _range(self, first: int, last: int) -> NDArray[np.int64]:
        return np.arange(min(first, self.length), min(last, self.length), dtype=np.int64)


def _runs(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Samples as the runs [first, last) that they are made of: int64 [M] to int64 [K, 2]."""
    breaks = np.flatnonzero(np.diff(samples) != 1)
    firsts, lasts = samples[np.r_[0, breaks + 1][: len(samples)]], samples[np.r_[breaks, -1][: len(samples)]]
    return np.stack([firsts, lasts + 1], axis=1)


def choose_shuffle(order: str, *, samples: int, stored_bytes: int | None) -> bool | Quasi:
    """What `Order` takes for `shuffle`, from the name of an order.

    Args:
        order: `full`, `stored` (no shuffle), `quasi`, `quasi:BLOCK:WINDOW` in samples, or `auto`: `quasi` for a shard
            that does not fit in this machine's memory, else `full`. A run that goes on elsewhere must be told what
            was chosen (`Order.name`), and so must ranks on machines that differ.
        samples: in the source.
        stored_bytes: its shard's size; None where it is none, whose samples need not lie side by side.

    Raises:
        UserError: no such order.
    """
    if order in ("full", "stored"):
        return order == "full"
    if order == "auto":
        return True if stored_bytes is None or fits_in_memory(stored_bytes) else quasi_for(samples, stored_bytes)
    kind, *numbers = order.split(":")
    if kind == "quasi" and not numbers:
        if stored_bytes is None:
            raise UserError(
                "--order quasi: only in a shard do samples lie side by side: convert the images, or use full"
            )
        return quasi_for(samples, stored_bytes)
    if kind == "quasi" and len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        return Quasi(block=int(numbers[0]), window=int(numbers[1]))
    raise UserError(f"--order {order!r} is not known: choose auto, full, quasi, quasi:BLOCK:WINDOW or stored")


def quasi_for(samples: int, stored_bytes: int) -> Quasi:
    """Blocks of 8 MiB, and a window of an eighth of memory; the same on machines that are sold as having the same."""
    sample_bytes = max(1, stored_bytes // samples)
    block = max(1, min(samples, BLOCK_BYTES // sample_bytes))
    memory = 1 << memory_limit().bit_length() - 1  # machines of one kind differ by some kilobytes
    return Quasi(block=block, window=max(block, min(samples, int(WINDOW * memory) // sample_bytes)))


def fits_in_memory(stored_bytes: int) -> bool:
    """Whether the page cache keeps a file of that size from one epoch to the next, beside a training run."""
    return stored_bytes <= FITS * memory_limit()
