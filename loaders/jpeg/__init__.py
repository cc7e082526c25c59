"""Baseline JPEG to RGB in compiled code of our own: bit for bit libjpeg-turbo's accurate path, and faster.

    if not decode_jpeg(data, out):
        simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=out)

What it does: 8 bits, one scan, Huffman codes, grey or YCbCr in 4:4:4, 4:2:2, 4:4:0 and 4:2:0, with or without restarts.
All else (progressive, arithmetic, CMYK, RGB, …) and all that is damaged is left to libjpeg-turbo: `decode_jpeg` says
False then. It never reads or writes out of bounds, and what it calls right libjpeg decodes without a warning.

Read `scan.py` first, which leads through the rest: `parse.py` (markers), `huffman.py`, `idct.py`, `colour.py`;
`lanes.py` is how they come by vector instructions. Compiled code is kept on the disk; the first call of all compiles
for a while, so make it on one thread.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.jpeg.scan import Workspace, decode, new_workspace

_kept = threading.local()  # each thread's Workspace


def decode_jpeg(
    data: bytes | NDArray[np.uint8], out: NDArray[np.uint8], box: tuple[int, int, int, int] | None = None
) -> bool:
    """Decode into `out`, uint8 [H, W, 3] of the size that the header says, contiguous; not turned as EXIF may ask for.

    With `box` (top, left, bottom, right) only those pixels are written, and only their blocks transformed. The whole
    stream is read all the same, so that no damage goes unseen.

    Returns False, and leaves anything in `out`, if the data are of a kind that is not done here, or damaged.
    """
    height, width, _ = out.shape
    top, left, bottom, right = box or (0, 0, height, width)
    if not (0 <= top <= bottom <= height and 0 <= left <= right <= width and out.flags.c_contiguous):
        raise ValueError(f"box {box} of {out.shape}: compiled code would write elsewhere")
    return decode(_bytes(data), out, top, left, bottom, right, _workspace(len(data), width))


def _bytes(data: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Always read-only, so that one compilation serves all."""
    return np.frombuffer(memoryview(data).toreadonly(), np.uint8)  # type: ignore[arg-type]


def _workspace(compressed: int, width: int) -> Workspace:
    """This thread's memory, large enough."""
    size = _kept.__dict__.get("size", (-1, -1))
    if compressed > size[0] or width > size[1]:
        size = max(compressed, size[0]), max(width, size[1])
        _kept.workspace, _kept.size = new_workspace(*size), size  # in this order: there may be no memory for it
    return _kept.workspace
