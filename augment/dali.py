"""The DALI executor: DALI's own operators, driven by our rows.

    python engine/train.py --executor dali

For people who know DALI, and for the benchmark. Some of its operators are other functions than the reference's;
docs/parity.md has each one's distance in grey levels:

- CROP: its filter sees past the crop's border, and repeats the image's border where torch's stops; its cubic kernel has
  a = -0.5 without antialiasing too, where OpenCV's has -0.75.
- HUE: it turns colours about YIQ's grey axis; HSV's hue, which is meant, is no rotation.
- SATURATION, GRAY: torchvision truncates grey levels, DALI rounds them.

CLAHE is left out because DALI wants its clip limit when the graph is built, the same for all; Gaussian noise because
DALI draws its own.

Rows hold their operations in any order, and DALI's graphs are static. So each operation is a small graph of its own,
built once for each thread, and rows meet in it when its turn comes in them; nothing is copied between graphs. What
costs is the order itself: DALI's users put the whole jitter into one `color_twist`, in DALI's order, clipped once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.fields import hole
from penstock.augment.fused_cpu import write as write
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.rows import Interpolation, Opcode, Rows
from penstock.errors import MissingExtra

try:  # here, not where it is used: who asks for this executor is told before the first batch
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType
except ImportError as error:
    raise MissingExtra("DALI (nvidia.dali)", "dali-cuda13 or dali-cuda12") from error

Node = Any  # a DALI DataNode
Slot = tuple[Opcode, NDArray[np.float32], int]  # opcode, parameters [8], seed
Kind = tuple[int, ...]  # what a graph is built for: the opcode; for a crop its interpolation and antialias, too

BATCH = 64  # views that meet in the graphs: enough to make the cost of a run small; 10 MB at 224 px
RGB, GRAY = DALIImageType.RGB, DALIImageType.GRAY
FILTERS = {Interpolation.BILINEAR: DALIInterpType.INTERP_LINEAR, Interpolation.BICUBIC: DALIInterpType.INTERP_CUBIC}
# DALI rounds where torchvision truncates: all but half a level less makes the one of the other. In shares of 255.
TRUNCATE = -0.499 / 255


def _crop(interpolation: int, antialias: int, image: Node, p: Node) -> Node:
    return fn.resize(
        image,
        roi_start=p[0:2],
        roi_end=p[0:2] + p[2:4],
        size=p[8:10],
        interp_type=FILTERS[Interpolation(interpolation)],
        antialias=bool(antialias),
    )


def _contrast(image: Node, p: Node) -> Node:
    """About the mean of the grey image, as torchvision has it; DALI's own centre is 128."""
    gray = fn.color_space_conversion(image, image_type=RGB, output_type=GRAY)
    center = fn.reductions.mean(gray).cpu() - 0.5  # arguments are wanted on the CPU; torchvision truncates its grey
    return fn.brightness_contrast(image, contrast=p[0], contrast_center=center, brightness_shift=TRUNCATE)


def _saturation(image: Node, p: Node) -> Node:
    """Contrast about 128, and brightness that undoes its factor, leave half a level less, to truncate."""
    contrast = 1 + 0.499 / 128
    return fn.color_twist(image, saturation=p[0], contrast=contrast, brightness=1 / contrast)


def _brightness_contrast(image: Node, p: Node) -> Node:
    return fn.brightness(image, brightness=p[0], brightness_shift=p[1] / 255 + TRUNCATE)


def _gray(image: Node, p: Node) -> Node:
    gray = fn.color_space_conversion(image, image_type=RGB, output_type=GRAY)
    return fn.color_space_conversion(gray, image_type=GRAY, output_type=RGB)


def _gaussian_blur(image: Node, p: Node) -> Node:
    return fn.gaussian_blur(image, sigma=p[0], window_size=fn.cast(2 * p[1] + 1, dtype=DALIDataType.INT32))


def _solarize(image: Node, p: Node) -> Node:
    """Exclusive or with 255 inverts a level; all in bytes, which a choice between two images is not."""
    inverted = fn.cast(image >= p[0], dtype=DALIDataType.UINT8) * Constant(255, dtype=DALIDataType.UINT8)
    return image ^ inverted


def _coarse_dropout(image: Node, p: Node) -> Node:
    holes = fn.reshape(p[8:], shape=[2, -1])
    return fn.erase(image, anchor=holes[0], shape=holes[1], axis_names="HW", fill_value=p[3])


# A batch of uint8 [H, W, 3] and float32 [8 and what `_arguments` adds] for each, to uint8 [H, W, 3].
OPERATORS: dict[Opcode, Callable[[Node, Node], Node]] = {
    Opcode.HORIZONTAL_FLIP: lambda image, p: fn.flip(image, horizontal=1),
    Opcode.VERTICAL_FLIP: lambda image, p: fn.flip(image, horizontal=0, vertical=1),
    Opcode.BRIGHTNESS: lambda image, p: fn.brightness(image, brightness=p[0], brightness_shift=TRUNCATE),
    Opcode.CONTRAST: _contrast,
    Opcode.SATURATION: _saturation,
    Opcode.HUE: lambda image, p: fn.hue(image, hue=360 * p[0]),
    Opcode.GRAY: _gray,
    Opcode.GAUSSIAN_BLUR: _gaussian_blur,
    Opcode.SOLARIZE: _solarize,
    Opcode.BRIGHTNESS_CONTRAST: _brightness_contrast,
    Opcode.COARSE_DROPOUT: _coarse_dropout,
}
NATIVE = frozenset({Opcode.CROP, *OPERATORS})


def _build(kind: Kind, device: torch.device) -> Pipeline:
    """The graph of one operation: `images` and their `parameters` in, images out."""
    opcode, *crop = kind
    operator = partial(_crop, *crop) if crop else OPERATORS[Opcode(opcode)]
    gpu = device.type == "cuda"
    pipe = Pipeline(
        batch_size=BATCH,
        num_threads=1,  # who wants more calls `run` from more threads: one budget for all executors
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,  # outputs own their memory, so they can wait for their row's next turn
    )
    with pipe:
        images = fn.external_source(
            name="images",
            device="gpu" if gpu else "cpu",
            dtype=DALIDataType.UINT8,
            layout="HWC",
            ndim=3,
            no_copy=not gpu,  # a GPU's first graph takes images from the host
        )
        parameters = fn.external_source(name="parameters", dtype=DALIDataType.FLOAT, ndim=1, no_copy=True)
        # The parameters go out, too: an input that no operator needs would be dropped, and could not be fed.
        pipe.set_outputs(operator(images, parameters), parameters)
    pipe.build()
    return pipe


class _Graphs(threading.local):
    """The calling thread's graphs: they take milliseconds to build, and only one thread may run one at a time."""

    def __init__(self) -> None:
        self.built: dict[tuple[Kind, torch.device], Pipeline] = {}

    def __call__(self, kind: Kind, device: torch.device) -> Pipeline:
        if (kind, device) not in self.built:
            self.built[kind, device] = _build(kind, device)
        return self.built[kind, device]


_graphs = _Graphs()


def _kind(slot: Slot) -> Kind:
    opcode, parameters, _ = slot
    return (opcode, *(int(value) for value in parameters[4:6])) if opcode == Opcode.CROP else (opcode,)


def _arguments(slot: Slot, size: int) -> NDArray[np.float32]:
    """The parameters, and after them a crop's size, or the holes' corners and then their sizes, y before x."""
    opcode, parameters, seed = slot
    more: list[float] = []
    if opcode == Opcode.CROP:
        more = [size, size]
    elif opcode == Opcode.COARSE_DROPOUT:
        holes, height, width = (int(value) for value in parameters[:3])
        corners = [hole(np.uint64(seed), which, size, height, width) for which in range(holes)]
        more = [*(value for corner in corners for value in corner), *((height, width) * holes)]
    return np.array([*parameters, *more], np.float32)


def _augment(images: list[Any], programs: list[list[Slot]], size: int, device: torch.device) -> list[Any]:
    """Run up to BATCH rows.

    Rows hold their operations in any order and a graph is static, so there is one for each operation, and always the
    operation comes next whose turn it is in most of the rows.

    Args:
        images: uint8 [H, W, 3], a row's each. programs: their slots.

    Returns:
        uint8 [size, size, 3], DALI's tensors.
    """
    images, left = list(images), [program[::-1] for program in programs]
    while any(left):
        kind, _ = Counter(_kind(program[-1]) for program in left if program).most_common(1)[0]
        turn = [r for r, program in enumerate(left) if program and _kind(program[-1]) == kind]
        pipe = _graphs(kind, device)
        pipe.feed_input("images", [images[r] for r in turn])
        pipe.feed_input("parameters", [_arguments(left[r].pop(), size) for r in turn])
        results, _ = pipe.run()
        for i, r in enumerate(turn):
            images[r] = results[i]
    return images


def _write_on_device(
    finished: torch.Tensor, view: NDArray[np.int64], sample: NDArray[np.int64], recipe: Recipe, out: torch.Tensor
) -> None:
    """As `write`, for uint8 [R, S, S, 3] on the device of `out`."""
    mean, std = (torch.tensor(values, device=out.device).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    levels = finished.permute(0, 3, 1, 2).float().div_(255)
    out[view, sample] = levels.sub_(mean).div_(std).to(out.dtype)


def run(pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
    """Run every row: fill `out` [V, N, 3, S, S] (float32, float16 or bfloat16, channels-last) with normalised views.

    A row whose first slot is NONE is skipped: its part of `out` stays as it is.
    """
    views, samples = np.nonzero(rows.opcode[:, :, 0] != Opcode.NONE)
    for first in range(0, len(views), BATCH):
        view, sample = views[first : first + BATCH], samples[first : first + BATCH]
        programs = [rows.program(v, n) for v, n in zip(view, sample, strict=True)]
        images = [pixels.image(n) for n in sample]
        finished = _augment(images, programs, out.shape[-1], out.device)
        if out.is_cuda:
            _write_on_device(torch.stack([torch.from_dlpack(image) for image in finished]), view, sample, recipe, out)
        else:
            write(np.stack(finished), view, sample, recipe, out)
