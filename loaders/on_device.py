"""Batches whose views an executor on a GPU makes: threads bring the images in pieces, few calls make the views of all.

Each call plans on the host, uploads and launches some kernels; for a handful of images that costs more than what the
device then does, and threads take turns at it. So a thread only decodes its piece, into pinned memory of its own, and
has it copied to the device without waiting. Whoever brings the last piece of a batch makes one of them all, by a copy
from device memory to device memory, and calls the executor. Rows that go around the executor need their pixels on the
host: they are finished by the thread that decoded them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.executors import Work
from penstock.augment.pixels import Pixels
from penstock.loaders.fetched import Fetched, Ready, TensorPixels

MOST_WAITING = 1 << 30  # bytes of images that wait for the rest of their batch: views are made of large ones before
ALIGNED = 16  # bytes; sizes that it divides are joined by loads and stores of so many at a time


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a batch.

    Attributes:
        part: which of its samples.
        pixels: their images, on the device.
        nbytes: that these take there until the views are made; 0 where they stay in any case (`resident`).
        work: for each group of views, what the executor is to do.
    """

    part: slice
    pixels: TensorPixels
    nbytes: int
    work: list[Work]


def bring(
    part: slice,
    fetched: Fetched | Ready,
    boxes: NDArray[np.int64] | None,
    around: Callable[[Pixels], list[Work]],
    device: torch.device,
) -> Piece:
    """A piece whose images are decoded, and on their way to the device by the current stream.

    Args:
        boxes: see `Fetched.portions`.
        around: finishes the rows that go around the executor, and gives the work that is left.

    Raises:
        BrokenImage: an image cannot be decoded.
    """
    if isinstance(fetched, Ready) and isinstance(fetched.images, TensorPixels):
        return Piece(part=part, pixels=fetched.images, nbytes=0, work=around(fetched.images))
    size = -(-fetched.nbytes // ALIGNED) * ALIGNED
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    pixels = fetched.into(memory.numpy()[: fetched.nbytes], boxes)
    work = around(pixels)
    data = memory.to(device, non_blocking=True)  # torch gives the memory to nobody else before that is done
    there = TensorPixels(data=data, offset=pixels.offset, height=pixels.height, width=pixels.width)
    return Piece(part=part, pixels=there, nbytes=size, work=work)


def enough(pieces: Iterable[Piece]) -> bool:
    """Whether they should wait for no others."""
    return sum(piece.nbytes for piece in pieces) > MOST_WAITING


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same as few pieces: one, if no sample between them is missing."""
    runs: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.part.start):
        if runs and runs[-1][-1].part.stop == piece.part.start:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [_join(run) if len(run) > 1 else run[0] for run in runs]


def _join(pieces: Sequence[Piece]) -> Piece:
    """Pieces that follow each other, as one. Images that are in one tensor already stay there."""
    starts: dict[torch.Tensor, int] = {}
    for piece in pieces:
        starts.setdefault(piece.pixels.data, sum(tensor.numel() for tensor in starts))
    data = torch.cat(list(starts)) if len(starts) > 1 else pieces[0].pixels.data
    pixels = TensorPixels(
        data=data,
        offset=np.concatenate([piece.pixels.offset + starts[piece.pixels.data] for piece in pieces]),
        height=np.concatenate([piece.pixels.height for piece in pieces]),
        width=np.concatenate([piece.pixels.width for piece in pieces]),
    )
    of_groups = zip(*(piece.work for piece in pieces), strict=True)
    return Piece(
        part=slice(pieces[0].part.start, pieces[-1].part.stop),
        pixels=pixels,
        nbytes=sum(piece.nbytes for piece in pieces),
        work=[Work.joined(of_group) for of_group in of_groups],
    )
