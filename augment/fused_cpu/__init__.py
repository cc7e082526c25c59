"""The fused CPU executor: a decoded image in, every view out, in compiled code that releases the GIL.

The view lives as transposed uint8 planes `[channel][x][y]` from the crop to the last step. Flips commute with nearly
all that is done here, so they are only counted, and carried out as the view is written.

Read `program.py` first, which runs one row; then what it calls: `resample.py` (crops), `color.py`, `blur.py`,
`pointwise.py`, `filters.py`, `clahe.py`, `scatter.py`; then `finish.py`, which writes. The innermost loops are made of
`vectors.py` and `fixed.py`.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.fused_cpu.finish import look_up, normalisation, stream, upright
from penstock.augment.fused_cpu.memory import borrow
from penstock.augment.fused_cpu.program import CROP, NONE, Workspace, allocate, borrow_workspace, run_program
from penstock.augment.fused_cpu.resample import resize_crop
from penstock.augment.fused_cpu.vectors import fence
from penstock.augment.jit import njit
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.rows import PARAMETERS, Opcode, Rows

NATIVE = frozenset(Opcode) - {Opcode.NONE, Opcode.ALBUMENTATIONS}
# How a tensor's elements are handed to compiled code that only copies their bits.
BITS = {
    torch.float32: (torch.int32, np.uint32),
    torch.float16: (torch.int16, np.uint16),
    torch.bfloat16: (torch.int16, np.uint16),
}


class Target(NamedTuple):
    """Where views go: flat memory of 1, 2 or 4 bytes an element, the other two empty; one compilation serves them all.

    View v of sample n is [S, S, 3] elements from v · per_view + n · per_sample on.

    Attributes:
        table: uint32 [3, 256], the bits of each normalised byte; unused where bytes are wanted.
        terms: float32, from `finish.normalisation` where words are wanted; else empty.
    """

    bytes: NDArray[np.uint8]
    shorts: NDArray[np.uint16]
    words: NDArray[np.uint32]
    per_view: int
    per_sample: int
    table: NDArray[np.uint32]
    terms: NDArray[np.float32]


@njit
def _borrow_target(target):  # type: ignore[no-untyped-def]
    """The same on loan: see `memory.borrow`."""
    memory = borrow(target.bytes), borrow(target.shorts), borrow(target.words)
    return Target(*memory, target.per_view, target.per_sample, borrow(target.table), borrow(target.terms))


@njit
def _image(memory, target, view, sample, size):  # type: ignore[no-untyped-def]
    start = view * target.per_view + sample * target.per_sample
    return memory[start : start + size * size * 3].reshape((size, size, 3))


@njit
def _write_image(image, target, view, sample):  # type: ignore[no-untyped-def]
    size = len(image)
    if len(target.terms):
        out = _image(target.words, target, view, sample, size)
        stream(image.reshape(image.size), target.table, target.terms, out.reshape(out.size))
    elif len(target.words):
        look_up(image, target.table, _image(target.words, target, view, sample, size))
    else:
        look_up(image, target.table, _image(target.shorts, target, view, sample, size))


@njit
def _write_planes(planes, spare, left_right, up_down, starts, target, view, sample):  # type: ignore[no-untyped-def]
    size = planes.shape[1]
    if len(target.bytes):
        return upright(planes, left_right, up_down, starts, _image(target.bytes, target, view, sample, size))
    image = spare.reshape((size, size, 3))
    upright(planes, left_right, up_down, starts, image)
    _write_image(image, target, view, sample)


@njit
def _run(data, offset, height, width, opcode, parameters, seed, work, target):  # type: ignore[no-untyped-def]
    """Every view of every image but rows that begin with NONE."""
    data, opcode, parameters, seed = borrow(data), borrow(opcode), borrow(parameters), borrow(seed)
    work, target = borrow_workspace(work), _borrow_target(target)
    whole = np.zeros(PARAMETERS, np.float32)
    whole[2:4] = work.planes.shape[1]
    for n in range(len(offset)):
        rows = data[offset[n] :]
        for view in range(opcode.shape[0]):
            if opcode[view, n, 0] == NONE:
                continue
            if opcode[view, n, 0] != CROP:  # to the same size: exact, and faster than a plain loop
                resize_crop(rows, height[n], width[n], whole, work.crop, work.planes)
            program = opcode[view, n], parameters[view, n], seed[view, n]
            planes, spare, left_right, up_down = run_program(rows, height[n], width[n], *program, work)
            _write_planes(planes, spare, left_right, up_down, work.starts, target, view, n)
    fence()


@njit
def _write(finished, view, sample, target):  # type: ignore[no-untyped-def]
    for r in range(len(finished)):
        _write_image(finished[r], target, view[r], sample[r])
    fence()


@lru_cache(maxsize=16)
def _table(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> NDArray[np.uint32]:
    """[3, 256]: the bits of each normalised byte, computed as the reference does."""
    levels = torch.arange(256, dtype=torch.float32).div_(255)
    values = torch.stack([(levels - m) / s for m, s in zip(torch.tensor(mean), torch.tensor(std), strict=True)])
    return values.to(dtype).view(BITS[dtype][0]).numpy().view(BITS[dtype][1]).astype(np.uint32)


@lru_cache(maxsize=16)
def _terms(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    return normalisation(mean, std, _table(mean, std, torch.float32))


NO_TABLE, NO_TERMS = np.empty((0, 256), np.uint32), np.empty(0, np.float32)


def _target(
    memory: NDArray[np.unsignedinteger],
    view: int,
    sample: int,
    table: NDArray[np.uint32] = NO_TABLE,
    terms: NDArray[np.float32] = NO_TERMS,
) -> Target:
    parts = {kind: np.empty(0, kind) for kind in (np.uint8, np.uint16, np.uint32)} | {memory.dtype.type: memory}
    return Target(parts[np.uint8], parts[np.uint16], parts[np.uint32], view, sample, table, terms)


def _memory(out: torch.Tensor, recipe: Recipe) -> Target:
    """The memory of [V, N, 3, S, S] whose images are channels-last; views and samples may have any strides."""
    views, samples, channels, size, _ = out.shape
    view, sample, *image = out.stride()
    assert image == [1, 3 * size, 3], "views must be channels-last"
    extent = (views - 1) * view + (samples - 1) * sample + channels * size * size
    flat = out.as_strided((extent,), (1,)).view(BITS[out.dtype][0]).numpy().view(BITS[out.dtype][1])
    terms = _terms(recipe.mean, recipe.std) if out.dtype == torch.float32 else NO_TERMS
    return _target(flat, view, sample, _table(recipe.mean, recipe.std, out.dtype), terms)


# What a thread works in, kept from call to call: taken from the system anew, its pages cost as much as a view.
_kept = threading.local()
SPACES = 4  # sizes of views that a thread keeps room for: views that grow leave sizes behind


def _workspace(size: int, longest: int, pixels: int) -> Workspace:
    """This thread's memory for views of `size` pixels out of images of up to `longest` a side and `pixels` in all."""
    spaces = _kept.__dict__.setdefault("spaces", {})
    before, space = spaces.get(size, ((0, 0), None))
    if space is None or before[0] < longest or before[1] < pixels:
        most = max(before[0], longest), max(before[1], pixels)
        space = allocate(size, *most)
        spaces[size] = most, space
        if len(spaces) > SPACES:
            del spaces[next(iter(spaces))]
    return space


class _Writable:
    """A read-only array, such as a file's mapping, for compiled code that is known not to write to it."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array  # kept alive for as long as what is made of this
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


def _writable(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return array if array.flags.writeable else np.asarray(_Writable(array))


def _launch(pixels: Pixels, rows: Rows, size: int, target: Target) -> None:
    """Run the rows on one thread. Arrays are made contiguous and writable first: others would be compiled anew."""
    longest = max(int(pixels.height.max()), int(pixels.width.max()))
    most = int((pixels.height * pixels.width).max())
    _run(
        _writable(pixels.data),
        np.ascontiguousarray(pixels.offset),
        np.ascontiguousarray(pixels.height),
        np.ascontiguousarray(pixels.width),
        np.ascontiguousarray(rows.opcode),
        np.ascontiguousarray(rows.parameters),
        np.ascontiguousarray(rows.seed),
        _workspace(size, longest, most),
        target,
    )


def run(pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
    """Run every row: fill `out` [V, N, 3, S, S] (float32, float16 or bfloat16, channels-last) with normalised views.

    A row whose first slot is NONE is skipped: its part of `out` stays as it is.
    """
    if out.numel():
        _launch(pixels, rows, out.shape[-1], _memory(out, recipe))


def write(
    finished: NDArray[np.uint8], view: NDArray[np.int64], sample: NDArray[np.int64], recipe: Recipe, out: torch.Tensor
) -> None:
    """Normalise finished views, uint8 [R, S, S, 3], into out[view[r], sample[r]]; out as in `run`."""
    if len(finished):
        finished, view, sample = map(np.ascontiguousarray, (finished, view, sample))
        _write(finished, view, sample, _memory(out, recipe))


def run_slots(
    image: NDArray[np.uint8],
    opcode: NDArray[np.int32],
    parameters: NDArray[np.float32],
    seed: NDArray[np.uint64],
    size: int,
) -> NDArray[np.uint8]:
    """Run some slots of a row on one image and give the view's bytes.

    Args:
        image: uint8 [H, W, 3]; H = W = size unless the first slot is a CROP.
        opcode [k], parameters [k, 8], seed [k]: the slots, of `NATIVE` operations only.

    Returns:
        uint8 [size, size, 3].
    """
    out = np.empty(size * size * 3, np.uint8)
    rows = Rows(opcode=opcode[None, None], parameters=parameters[None, None], seed=seed[None, None])
    height, width = (np.array([side]) for side in image.shape[:2])
    pixels = Pixels(data=image.reshape(-1), offset=np.zeros(1, np.int64), height=height, width=width)
    _launch(pixels, rows, size, _target(out, out.size, out.size))
    return out.reshape(size, size, 3)
