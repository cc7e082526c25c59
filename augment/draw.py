"""The draw: which random values one view of one image gets, as a row.

A pure function of (recipe, seed, epoch, sample, view, source height, source width): the same row whatever the
number of workers, ranks or loaders, and after a resume. Each operation draws from a stream of its own, keyed by
its kind and by how often that kind came before it in the list, so adding an operation leaves the others' values
alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from penstock.augment.jit import njit
from penstock.augment.operations import (
    CLAHE,
    Albumentations,
    Blur,
    CenterCrop,
    ChannelShuffle,
    CoarseDropout,
    ColorJitter,
    Flip,
    GaussianBlur,
    GaussNoise,
    Grayscale,
    HorizontalFlip,
    HueSaturationValue,
    Operation,
    RandomBrightnessContrast,
    RandomChoice,
    RandomResizedCrop,
    Sharpen,
    Solarize,
    VerticalFlip,
)
from penstock.augment.philox import below, philox, unit
from penstock.augment.recipe import Recipe, View
from penstock.augment.rows import PARAMETERS, Opcode, Rows
from penstock.errors import UserError

# How an operation is drawn. From LAWS on: one slot of opcode `kind - LAWS`, its parameters uniform in their ranges.
CHOICE, RESIZED_CROP, CENTER_CROP, FLIP_EITHER, JITTER, BLUR, NOISE, SHUFFLE, LAWS = range(9)
CROP_TRIES = 10
OCCURRENCES = 256  # of a kind of operation, for which a stream's name has room
GATE = np.uint64(0)  # the block of an operation's stream that says whether it applies; its values are in those after it

_CROP, _BRIGHTNESS, _BLUR, _NOISE, _SHUFFLE, _HORIZONTAL, _VERTICAL = (
    int(opcode)
    for opcode in (
        Opcode.CROP, Opcode.BRIGHTNESS, Opcode.GAUSSIAN_BLUR, Opcode.GAUSSIAN_NOISE, Opcode.CHANNEL_SHUFFLE,
        Opcode.HORIZONTAL_FLIP, Opcode.VERTICAL_FLIP,
    )
)  # fmt: skip


@dataclass(frozen=True)
class Law:
    """How one operation is drawn.

    Attributes:
        kind: one of the kinds above.
        p: how likely it is to apply.
        low, high: of each parameter, up to 8; equal where there is nothing to draw. Kinds under LAWS read them
            in their own way.
        whole: which parameters are whole numbers, `high` among them.
        members: of a CHOICE, how many of the laws that follow it are its own.
    """

    kind: int
    p: float = 1.0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    whole: tuple[bool, ...] = ()
    members: int = 0


def _uniform(opcode: Opcode, p: float, *ranges: Sequence[float] | float, whole: Sequence[bool] = ()) -> Law:
    """A slot whose parameters are uniform in (low, high), or constant."""
    pairs = [(r, r) if isinstance(r, int | float) else (r[0], r[1]) for r in ranges]
    return Law(LAWS + opcode, p, tuple(low for low, _ in pairs), tuple(high for _, high in pairs), tuple(whole))


def _law(operation: Operation, size: int, foreign: tuple[Albumentations, ...]) -> Law:
    """How an operation on views of `size` pixels is drawn; kernels and holes are kept within the view."""
    within = size - 1  # the largest radius whose reflection at the border is still in the view
    match operation:
        case RandomResizedCrop(scale=scale, ratio=ratio, interpolation=how, antialias=antialias):
            log_low, log_high = np.log(ratio)
            return Law(RESIZED_CROP, 1.0, (scale[0], log_low, how, antialias), (scale[1], log_high))
        case CenterCrop(fraction=fraction, interpolation=how, antialias=antialias):
            return Law(CENTER_CROP, 1.0, (fraction, 0.0, how, antialias))
        case HorizontalFlip(p=p):
            return _uniform(Opcode.HORIZONTAL_FLIP, p)
        case VerticalFlip(p=p):
            return _uniform(Opcode.VERTICAL_FLIP, p)
        case Flip(p=p):
            return Law(FLIP_EITHER, p)
        case ColorJitter(brightness=b, contrast=c, saturation=s, hue=h, p=p):
            lowest = (max(0.0, 1.0 - b), max(0.0, 1.0 - c), max(0.0, 1.0 - s), -h)
            return Law(JITTER, p, lowest, (1.0 + b, 1.0 + c, 1.0 + s, h))
        case Grayscale(p=p):
            return _uniform(Opcode.GRAY, p)
        case GaussianBlur(sigma=sigma, kernel=kernel, p=p):
            (low, high), (smallest, largest) = sigma or (0.0, 0.0), kernel or (0, 0)
            return Law(BLUR, p, (low, smallest, within), (high, largest))
        case Solarize(threshold=threshold, p=p):
            return _uniform(Opcode.SOLARIZE, p, threshold)
        case RandomBrightnessContrast(brightness=b, contrast=c, p=p):
            return _uniform(Opcode.BRIGHTNESS_CONTRAST, p, (1.0 - c, 1.0 + c), (-255.0 * b, 255.0 * b))
        case CLAHE(clip_limit=clip, tiles=tiles, p=p):
            return _uniform(Opcode.CLAHE, p, clip, tiles)
        case Blur(radius=(low, high), p=p):
            return _uniform(Opcode.BOX_BLUR, p, (min(low, within), min(high, within)), whole=[True])
        case Sharpen(alpha=alpha, lightness=lightness, p=p):
            return _uniform(Opcode.SHARPEN, p, alpha, lightness)
        case ChannelShuffle(p=p):
            return Law(SHUFFLE, p)
        case HueSaturationValue(hue=h, saturation=s, value=v, p=p):
            return _uniform(Opcode.HSV_SHIFT, p, (-h, h), (-s, s), (-v, v))
        case CoarseDropout(holes=holes, height=height, width=width, fill=fill, p=p):
            sides = [(min(low, size), min(high, size)) for low, high in (height, width)]
            return _uniform(Opcode.COARSE_DROPOUT, p, holes, *sides, fill, whole=[True] * 3)
        case GaussNoise(variance=(low, high), p=p):
            return Law(NOISE, p, (low,), (high,))
        case Albumentations(p=p):
            return _uniform(Opcode.ALBUMENTATIONS, p, foreign.index(replace(operation, p=1.0)))
    raise NotImplementedError(f"{operation} cannot be drawn")


def _laws(view: View, foreign: tuple[Albumentations, ...]) -> tuple[list[Law], int]:
    """The laws of a view's list, choices laid out before their members, and how many slots a row may need."""
    laws, slots = [], 0
    for operation in view.operations:
        if isinstance(operation, RandomChoice):
            members = [Law(CHOICE) if m is None else _law(m, view.size, foreign) for m in operation.operations]
            laws += operation.times * [Law(CHOICE, members=len(members)), *members]
            slots += operation.times * max(member.slots if member else 0 for member in operation.operations)
        else:
            laws.append(_law(operation, view.size, foreign))
            slots += operation.slots
    return laws, slots


# A law as a line of numbers; from LOW, HIGH and WHOLE on, one for each parameter
KIND, OCCURRENCE, MEMBERS, P, LOW, HIGH, WHOLE, COLUMNS = 0, 1, 2, 3, 4, 12, 20, 28


@lru_cache(maxsize=256)
def _table(view: View, foreign: tuple[Albumentations, ...]) -> tuple[NDArray[np.float64], int]:
    """A view's O laws, float64 [O, COLUMNS], and how many slots a row needs at most."""
    laws, slots = _laws(view, foreign)
    seen = Counter[int]()
    table = np.zeros((len(laws), COLUMNS))
    if max(Counter(law.kind for law in laws).values()) > OCCURRENCES:
        raise UserError(f"a view can hold an operation at most {OCCURRENCES} times, choices written out")
    for line, law in zip(table, laws, strict=True):
        line[:LOW] = law.kind, seen[law.kind], law.members, law.p
        seen[law.kind] += 1
        for column, values in ((LOW, law.low), (HIGH, law.high), (WHOLE, law.whole)):
            line[column : column + len(values)] = values
    return table, slots


# Few arrays, passed whole and with indexes into them: numba takes longer to pass an array, or to make a view of one,
# than to draw a number.


@njit
def _resized_crop(stream, key, c0, c1, c2, laws, o, height, width):  # type: ignore[no-untyped-def]
    """Top, left, height, width by torchvision's rule: ten tries, then the largest central box of an allowed ratio."""
    for attempt in range(CROP_TRIES):
        a, r, y, x = philox(key, c0, c1, c2, stream | np.uint64(1 + attempt))
        area = height * width * (laws[o, LOW] + unit(a) * (laws[o, HIGH] - laws[o, LOW]))
        aspect = np.exp(laws[o, LOW + 1] + unit(r) * (laws[o, HIGH + 1] - laws[o, LOW + 1]))
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return below(y, np.int64(height - h + 1)), below(x, np.int64(width - w + 1)), h, w
    w, h = np.float64(width), np.float64(height)
    if w / h < np.exp(laws[o, LOW + 1]):
        h = max(1.0, np.rint(w / np.exp(laws[o, LOW + 1])))
    elif w / h > np.exp(laws[o, HIGH + 1]):
        w = max(1.0, np.rint(h * np.exp(laws[o, HIGH + 1])))
    return np.int64(height - h) // 2, np.int64(width - w) // 2, h, w


@njit
def _center_crop(fraction, height, width):  # type: ignore[no-untyped-def]
    side = max(1.0, np.rint(min(height, width) * fraction))
    return np.int64(np.rint((height - side) / 2)), np.int64(np.rint((width - side) / 2)), side, side


@njit
def _within(word, low, high, whole):  # type: ignore[no-untyped-def]
    """A word as a value in [low, high], a whole number or not."""
    if whole:
        return low + below(word, np.int64(high - low) + 1)
    return low + unit(word) * (high - low)


@njit
def _jitter(words, order, laws, o, opcode, parameters, n, k):  # type: ignore[no-untyped-def]
    """Up to four slots, brightness, contrast, saturation and hue, in the order that the word `order` codes."""
    code, left = below(order, 24), 0x3210  # the four that are left, one in each hexadecimal digit
    for count in range(4, 0, -1):  # the code's digits in the factorial number system pick from them
        shift = 4 * (code % count)
        code //= count
        which = (left >> shift) & 3
        left = (left & ((1 << shift) - 1)) | ((left >> (shift + 4)) << shift)
        if laws[o, LOW + which] == laws[o, HIGH + which]:
            continue
        opcode[n, k] = _BRIGHTNESS + which
        parameters[n, k, 0] = laws[o, LOW + which] + unit(words[which]) * (laws[o, HIGH + which] - laws[o, LOW + which])
        k += 1
    return k


@njit
def _blur(words, laws, o):  # type: ignore[no-untyped-def]
    """Sigma and radius: see `GaussianBlur`."""
    sigma = laws[o, LOW] + unit(words[0]) * (laws[o, HIGH] - laws[o, LOW])
    if laws[o, HIGH + 1] > 0:
        radius = np.float64(np.int64(_within(words[1], laws[o, LOW + 1], laws[o, HIGH + 1], True)) // 2)
        sigma = 0.3 * radius + 0.5 if laws[o, HIGH] == 0 else sigma
    else:
        radius = max(1.0, np.ceil(3 * sigma))
    return sigma, min(radius, laws[o, LOW + 2])


@njit
def _shuffle(code):  # type: ignore[no-untyped-def]
    """One of the six orders of three channels."""
    first = code % 3
    second, third = (first + 1) % 3, (first + 2) % 3
    return (first, second, third) if code < 3 else (first, third, second)


@njit
def _slots(kind, stream, key, c0, c1, c2, order, laws, o, height, width, opcode, parameters, n, k):  # type: ignore[no-untyped-def]
    """Fill the slots of an operation that applies, from slot k on; returns the next free one."""
    if kind in (RESIZED_CROP, CENTER_CROP):
        if kind == RESIZED_CROP:
            top, left, h, w = _resized_crop(stream, key, c0, c1, c2, laws, o, height, width)
        else:
            top, left, h, w = _center_crop(laws[o, LOW], height, width)
        opcode[n, k] = _CROP
        parameters[n, k, 0], parameters[n, k, 1], parameters[n, k, 2], parameters[n, k, 3] = top, left, h, w
        parameters[n, k, 4], parameters[n, k, 5] = laws[o, LOW + 2], laws[o, LOW + 3]
        return k + 1
    if kind == FLIP_EITHER:
        which = below(order, 3)  # the first, the second, both
        opcode[n, k] = _VERTICAL if which == 1 else _HORIZONTAL
        if which == 2:
            opcode[n, k + 1] = _VERTICAL
        return k + 2 if which == 2 else k + 1
    words = philox(key, c0, c1, c2, stream | np.uint64(1))
    if kind == JITTER:
        return _jitter(words, order, laws, o, opcode, parameters, n, k)
    if kind == BLUR:
        opcode[n, k] = _BLUR
        parameters[n, k, 0], parameters[n, k, 1] = _blur(words, laws, o)
    elif kind == NOISE:
        opcode[n, k] = _NOISE
        parameters[n, k, 0] = np.sqrt(_within(words[0], laws[o, LOW], laws[o, HIGH], False))
    elif kind == SHUFFLE:
        opcode[n, k] = _SHUFFLE
        parameters[n, k, 0], parameters[n, k, 1], parameters[n, k, 2] = _shuffle(below(order, 6))
    else:
        opcode[n, k] = kind - LAWS
        for i in range(4):  # no operation has more parameters that are drawn
            parameters[n, k, i] = _within(words[i], laws[o, LOW + i], laws[o, HIGH + i], laws[o, WHOLE + i] != 0)
    return k + 1


@njit
def _draw_view(laws, key, epoch, index, view, height, width, opcode, parameters, seed):  # type: ignore[no-untyped-def]
    """One view of N samples: opcode [N, K], parameters [N, K, 8], seed [N, K]."""
    for n in range(len(index)):
        c0, c1, c2 = np.uint64(index[n]), np.uint64(index[n]) >> np.uint64(32), np.uint64(epoch)
        o, end, k = 0, -1, 0
        while o < len(laws):
            kind, members = np.int64(laws[o, KIND]), int(laws[o, MEMBERS])
            stream = np.uint64((view << 24) | (kind << 16) | (np.int64(laws[o, OCCURRENCE]) << 8))
            gate, order, seed_low, seed_high = philox(key, c0, c1, c2, stream | GATE)
            if members > 0:  # go to the member picked, and from there past the last
                end = o + 1 + members
                o += 1 + int(below(gate, members))
                continue
            if kind != CHOICE and unit(gate) < laws[o, P]:
                first = k
                k = _slots(
                    kind, stream, key, c0, c1, c2, order, laws, o, height[n], width[n], opcode, parameters, n, k
                )  # fmt: skip
                for slot in range(first, k):
                    seed[n, slot] = seed_low | (seed_high << np.uint64(32))
            o, end = (end, -1) if end > 0 else (o + 1, -1)


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
        seed: 64 bits. epoch: counted from 0; decides the strength of operations that depend on it, too, and the size
            of views that grow, which crops' boxes do not depend on.
        index: int64 [N], the samples' positions in the source.
        height, width: int64 [N], the decoded images' sizes in pixels.

    Returns:
        `Rows` [V, N, K], V = recipe.count, K = the slots that this recipe can use.
    """
    tables = [_table(view, recipe.foreign) for view in recipe.at(epoch).views for _ in range(view.count)]
    shape = (len(tables), len(index), max(slots for _, slots in tables))
    rows = Rows(
        opcode=np.zeros(shape, np.int32),
        parameters=np.zeros((*shape, PARAMETERS), np.float32),
        seed=np.zeros(shape, np.uint64),
    )
    index, height, width = map(np.ascontiguousarray, (index, height, width))  # strided ones would be compiled anew
    for view, (laws, _) in enumerate(tables):
        into = rows.opcode[view], rows.parameters[view], rows.seed[view]
        _draw_view(laws, np.uint64(seed), epoch, index, view, height, width, *into)
    return rows
