"""Memory that is used again.

A page that the system hands out for the first time is zeroed and faulted in, and a batch of views has thousands: that
is no small part of the time that it takes to fill them. So a worker keeps the room in which it decodes, and a batch's
memory goes to a later batch once nobody holds it any more.
"""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from collections.abc import Hashable
from functools import partial
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

KEPT = 8  # batches' worth of memory that lies ready for one size: more than a loader and a training step hold at once
MOST = 96 << 20  # bytes of room that a worker keeps: one larger image must not stay in every worker for good


class Room:
    """One thread's memory for decoded images. What was taken from it is overwritten by the next call of `take`."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """uint8 [size], uninitialised."""
        if size > MOST:
            return np.empty(size, np.uint8)
        if size > len(self._memory):
            self._memory = np.empty(size + size // 4, np.uint8)  # images differ: not to grow at each larger one
        return self._memory[:size]


Shelf = deque[NDArray[np.uint8]]  # what lies ready, of one size


class Recycler:
    """Tensors in host memory that, once the last tensor or view of one is gone, becomes that of another.

    Whoever keeps a batch keeps its memory, for as long as they like.
    """

    def __init__(self) -> None:
        self._kind: Hashable = None
        self._free = _shelves()

    def turn_to(self, kind: Hashable) -> None:
        """What is asked for from now on is of this kind: memory of another does not lie ready for it any longer."""
        if kind != self._kind:
            self._kind, self._free = kind, _shelves()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor of that shape ([N, 3, S, S]), channels-last."""
        samples, channels, height, width = shape
        numbers = prod(shape)
        lent = self._lend(max(1, numbers) * dtype.itemsize)  # a rank's part in a kept tail may be empty
        flat = torch.from_numpy(lent).view(dtype)[:numbers]
        return flat.view(samples, height, width, channels).permute(0, 3, 1, 2)

    def _lend(self, size: int) -> NDArray[np.uint8]:
        """uint8 [size]: torch holds this very array for as long as it uses the memory, so its end is the memory's."""
        free = self._free[size]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        lent = memory[:]
        weakref.finalize(lent, _give_back, weakref.ref(free), memory).atexit = False
        return lent


def _shelves() -> defaultdict[int, Shelf]:
    return defaultdict(partial(deque, maxlen=KEPT))


def _give_back(shelf: weakref.ref[Shelf], memory: NDArray[np.uint8]) -> None:
    if (free := shelf()) is not None:  # else nobody asks for this size any more
        free.append(memory)
