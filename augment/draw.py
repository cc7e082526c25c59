"""The draw: which random values one view of one image gets, as a row.

A pure function of (recipe, seed, epoch, sample, view, source height, source width): the same row whatever the
number of workers, ranks or loaders, and after a resume. Each operation draws from a stream of its own, keyed by
its kind and by how often that kind came before it in the list, so adding an operation leaves the others' values
alone.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from penstock.augment.jit import njit
from penstock.augment.philox import below, philox, unit
from penstock.augment.recipe import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    RandomResizedCrop,
    Recipe,
)
from penstock.augment.rows import PARAMETERS, Opcode, Rows

# Kinds of operation, as the compiled draw sees them; a kind may emit several opcodes (jitter: four).
RESIZED_CROP, CENTER_CROP, FLIP, JITTER, GRAY, BLUR = range(1, 7)
CROP_TRIES = 10
GATE, SEED = np.uint64(0), np.uint64(255)  # blocks of a stream: whether it applies; the slot's seed

_CROP, _FLIP, _GRAY, _BLUR = int(Opcode.CROP), int(Opcode.FLIP), int(Opcode.GRAY), int(Opcode.BLUR)
_BRIGHTNESS, _HUE = int(Opcode.BRIGHTNESS), int(Opcode.HUE)


@lru_cache(maxsize=64)
def _table(operations: tuple[Operation, ...], size: int) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """A recipe's list as arrays: kind and occurrence, int64 [O, 2]; p and ranges, float64 [O, 8]; slots a row needs."""
    kinds, ranges, slots, seen = [], [], 0, Counter[int]()
    for operation in operations:
        kind, p, values, used = _describe(operation, size)
        kinds.append((kind, seen[kind]))
        seen[kind] += 1
        ranges.append([p, *values] + [0.0] * (PARAMETERS - 1 - len(values)))
        slots += used
    return np.array(kinds, np.int64).reshape(-1, 2), np.array(ranges, np.float64).reshape(-1, PARAMETERS), slots


def _describe(operation: Operation, size: int) -> tuple[int, float, tuple[float, ...], int]:
    """(kind, p, ranges, slots) of one operation."""
    match operation:
        case RandomResizedCrop(scale=scale, ratio=ratio, interpolation=how, antialias=antialias):
            log_ratio = np.log(ratio)
            return RESIZED_CROP, 1.0, (*scale, log_ratio[0], log_ratio[1], how, antialias), 1
        case CenterCrop(fraction=fraction, interpolation=how, antialias=antialias):
            return CENTER_CROP, 1.0, (fraction, how, antialias), 1
        case HorizontalFlip(p=p):
            return FLIP, p, (), 1
        case ColorJitter(brightness=b, contrast=c, saturation=s, hue=h, p=p):
            return JITTER, p, (b, c, s, h), 4
        case Grayscale(p=p):
            return GRAY, p, (), 1
        case GaussianBlur(sigma=sigma, p=p):
            return BLUR, p, (*sigma, size), 1


@njit
def _crop(stream, key, c0, c1, c2, ranges, height, width, slot):  # type: ignore[no-untyped-def]
    """torchvision's RandomResizedCrop.get_params: ten tries, then the largest central box of an allowed ratio."""
    low, high, log_low, log_high = ranges[1], ranges[2], ranges[3], ranges[4]
    slot[4], slot[5] = ranges[5], ranges[6]
    for attempt in range(CROP_TRIES):
        a, r, y, x = philox(key, c0, c1, c2, stream | np.uint64(1 + attempt))
        area = height * width * (low + unit(a) * (high - low))
        aspect = np.exp(log_low + unit(r) * (log_high - log_low))
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            slot[0], slot[1] = below(y, np.int64(height - h + 1)), below(x, np.int64(width - w + 1))
            slot[2], slot[3] = h, w
            return
    w, h = np.float64(width), np.float64(height)
    if w / h < np.exp(log_low):
        h = np.rint(w / np.exp(log_low))
    elif w / h > np.exp(log_high):
        w = np.rint(h * np.exp(log_high))
    slot[0], slot[1], slot[2], slot[3] = (height - h) // 2, (width - w) // 2, h, w


@njit
def _center_crop(ranges, height, width, slot):  # type: ignore[no-untyped-def]
    side = max(1.0, np.rint(min(height, width) * ranges[1]))
    slot[0], slot[1], slot[2], slot[3] = np.rint((height - side) / 2), np.rint((width - side) / 2), side, side
    slot[4], slot[5] = ranges[2], ranges[3]


@njit
def _jitter(stream, key, c0, c1, c2, ranges, order, opcode, parameters, k):  # type: ignore[no-untyped-def]
    """Up to four slots, brightness, contrast, saturation and hue, in the order that the word `order` codes."""
    words = philox(key, c0, c1, c2, stream | np.uint64(1))
    code = below(order, 24)
    left = np.array([0, 1, 2, 3])
    for n in range(4, 0, -1):  # the code's digits in the factorial number system pick from those left
        pick = code % n
        code //= n
        which = left[pick]
        left[pick:3] = left[pick + 1 :]
        strength = ranges[1 + which]
        if strength == 0:
            continue
        word = words[0] if which == 0 else words[1] if which == 1 else words[2] if which == 2 else words[3]
        centre = 0.0 if which == 3 else 1.0
        lowest = -strength if which == 3 else max(0.0, centre - strength)
        opcode[k] = _BRIGHTNESS + which
        parameters[k, 0] = lowest + unit(word) * (centre + strength - lowest)
        k += 1
    return k


@njit
def _draw_row(kinds, ranges, key, epoch, sample, view, height, width, opcode, parameters, seed):  # type: ignore[no-untyped-def]
    """Fill one row: opcode [K], parameters [K, 8], seed [K]."""
    c0, c1, c2 = sample, sample >> np.uint64(32), epoch
    k = 0
    for o in range(len(kinds)):
        kind = kinds[o, 0]
        stream = (view << np.uint64(24)) | (np.uint64(kind) << np.uint64(16)) | (np.uint64(kinds[o, 1]) << np.uint64(8))
        gate, order, value, _ = philox(key, c0, c1, c2, stream | GATE)
        if unit(gate) >= ranges[o, 0]:
            continue
        first = k
        if kind == JITTER:
            k = _jitter(stream, key, c0, c1, c2, ranges[o], order, opcode, parameters, k)
        else:
            k += 1
        if kind == RESIZED_CROP:
            opcode[first] = _CROP
            _crop(stream, key, c0, c1, c2, ranges[o], height, width, parameters[first])
        elif kind == CENTER_CROP:
            opcode[first] = _CROP
            _center_crop(ranges[o], height, width, parameters[first])
        elif kind == FLIP:
            opcode[first] = _FLIP
        elif kind == GRAY:
            opcode[first] = _GRAY
        elif kind == BLUR:
            opcode[first] = _BLUR
            sigma = ranges[o, 1] + unit(value) * (ranges[o, 2] - ranges[o, 1])
            parameters[first, 0] = sigma
            parameters[first, 1] = min(max(1.0, np.ceil(3 * sigma)), ranges[o, 3] - 1)  # reflection needs radius < size
        low, high, _, _ = philox(key, c0, c1, c2, stream | SEED)
        seed[first:k] = low | (high << np.uint64(32))


@njit
def _draw_all(kinds, ranges, key, epoch, index, height, width, opcode, parameters, seed):  # type: ignore[no-untyped-def]
    for view in range(opcode.shape[0]):
        for n in range(opcode.shape[1]):
            _draw_row(
                kinds,
                ranges,
                key,
                np.uint64(epoch),
                np.uint64(index[n]),
                np.uint64(view),
                height[n],
                width[n],
                opcode[view, n],
                parameters[view, n],
                seed[view, n],
            )


def draw(
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    index: NDArray[np.int64],
    height: NDArray[np.int64],
    width: NDArray[np.int64],
) -> Rows:
    """The rows of every view of N samples.

    Args:
        seed: 64 bits. epoch: counted from 0.
        index: int64 [N], the samples' positions in the source.
        height, width: int64 [N], the decoded images' sizes in pixels.

    Returns:
        `Rows` [V, N, K], V = recipe.views, K = the slots that this recipe can use.
    """
    kinds, ranges, slots = _table(recipe.operations, recipe.size)
    shape = (recipe.views, len(index), slots)
    rows = Rows(
        opcode=np.zeros(shape, np.int32),
        parameters=np.zeros((*shape, PARAMETERS), np.float32),
        seed=np.zeros(shape, np.uint64),
    )
    _draw_all(kinds, ranges, np.uint64(seed), epoch, index, height, width, rows.opcode, rows.parameters, rows.seed)
    return rows
