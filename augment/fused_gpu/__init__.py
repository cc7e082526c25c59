"""The fused GPU executor: Triton kernels. uint8 pixels and rows in, normalised channels-last views out.

| file | what |
|---|---|
| `plan.py` | on the host: rows cut into passes, as one block of words |
| `kernels.py` | one tile of one pass: head, slots, write |
| `bands.py` | heads: crop and filters, as products with banded matrices on the tensor cores |
| `clahe.py` | head: CLAHE |
| `color.py` | slots: the pointwise operations |
| `shape.py` | how a view is cut into tiles |
| `report.py` | what the compiled kernels take of a GPU |

A view of up to 32 pixels is one tile: one program crops it, runs all its operations in registers, and writes it. A
larger one is cut into tiles, and passes through memory where an operation needs more than a tile: MoCo v2's takes at
most three, crop and colours, contrast and colours, blur. All work goes to the current stream, and nothing waits.

Where there is no CUDA, the same kernels run in Triton's interpreter on tensors of the CPU: slow, and the same pixels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from importlib import import_module
from threading import RLock
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.fused_gpu import plan as planning
from penstock.augment.fused_gpu.constants import constants
from penstock.augment.fused_gpu.plan import make_plan
from penstock.augment.fused_gpu.shape import TABLE_BLOCK, TABLE_OPTIONS, shape_for
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.rows import PARAMETERS, Opcode, Rows
from penstock.errors import UserError

NATIVE = frozenset(Opcode) - {Opcode.NONE, Opcode.ALBUMENTATIONS}
# Kernels without the code of these take fewer registers, so torchvision's recipes run in kernels of their own.
RICH = [
    Opcode.SOLARIZE,
    Opcode.BRIGHTNESS_CONTRAST,
    Opcode.CHANNEL_SHUFFLE,
    Opcode.HSV_SHIFT,
    Opcode.COARSE_DROPOUT,
    Opcode.GAUSSIAN_NOISE,
]


# One thread at a time plans and launches. Triton's interpreter keeps the program that it is at in globals, and what is
# compiled when it is first called would be compiled by every thread that meets it, at which numba was seen to fail.
_LAUNCHING = RLock()


@contextmanager
def _interpreting() -> Iterator[None]:
    """Kernels defined here are interpreted: Triton asks the environment as it decorates."""
    with _LAUNCHING:
        before = os.environ.get("TRITON_INTERPRET")
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before


@cache
def _kernels() -> ModuleType:
    """The kernels: compiled where there is CUDA, else interpreted.

    Raises:
        UserError: Triton is not installed.
    """
    try:
        import_module("triton")  # its own functions must not be interpreted, so before the environment says so
        with nullcontext() if torch.cuda.is_available() else _interpreting():
            return import_module("penstock.augment.fused_gpu.kernels")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise UserError(
            "--executor fused_gpu needs Triton, which is not installed: pip install triton, or use --executor fused_cpu"
        ) from error


@lru_cache(maxsize=16)
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[float, ...]:
    """slope and offset for red, green and blue: level -> slope · level + offset is (level / 255 - mean) / std."""
    return (*(1 / (255 * s) for s in std), *(-m / s for m, s in zip(mean, std, strict=True)))


@cache
def _constants(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(constants()).to(device)


def _upload(array: NDArray, device: torch.device) -> torch.Tensor:
    """A copy on the device, through pinned memory, without waiting: torch keeps the buffer until the copy is done."""
    if device.type == "cpu":
        return torch.from_numpy(array)
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, pin_memory=True)
    pinned.numpy()[...] = array
    return pinned.to(device, non_blocking=True)


def _source(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """The decoded bytes on the device; they are copied without waiting, unless they are a tensor in other memory."""
    if isinstance(pixels.data, torch.Tensor):
        return pixels.data.to(device, non_blocking=True)
    return _upload(pixels.data, device)


def _check(out: torch.Tensor) -> None:
    size = out.shape[-1]
    if out.stride()[2:] != (1, 3 * size, 3):
        raise UserError(f"fused_gpu writes channels-last views, got strides {out.stride()}: make them channels_last")
    if out.device.type == "cpu" and torch.cuda.is_available():
        raise UserError(
            "fused_gpu writes views on the GPU, got a tensor on the CPU: use --executor fused_cpu for those"
        )


def run(pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
    """Run every row: fill `out` [V, N, 3, S, S] (float32, float16 or bfloat16, channels-last) with normalised views.

    A row whose first slot is NONE is skipped: its part of `out` stays as it is. Nothing waits for the device: `out` is
    ready for what the current stream does next.

    Args:
        pixels: its `data` may be a uint8 tensor, on `out`'s device or the CPU.
        out: on the GPU; on the CPU where there is none.

    Raises:
        UserError: `out` is not channels-last, or on the CPU though there is a GPU; Triton is not installed.
    """
    _launch(pixels, rows, _targets(out), recipe, out)


def write(
    finished: NDArray[np.uint8], view: NDArray[np.int64], sample: NDArray[np.int64], recipe: Recipe, out: torch.Tensor
) -> None:
    """Normalise finished views, uint8 [R, S, S, 3], into out[view[r], sample[r]]; `out` as in `run`.

    They pass through the same kernels, as crops that change nothing.
    """
    count, size = finished.shape[:2]
    side = np.full(count, size, np.int64)
    start = np.arange(count) * (3 * size * size)
    pixels = Pixels(data=finished.reshape(-1), offset=start, height=side, width=side)
    parameters = np.zeros((1, count, 1, PARAMETERS), np.float32)
    parameters[..., 2:4] = size
    rows = Rows(
        opcode=np.full((1, count, 1), Opcode.CROP, np.int32),
        parameters=parameters,
        seed=np.zeros((1, count, 1), np.uint64),
    )
    _launch(pixels, rows, _targets(out)[view, sample][None], recipe, out)


def _targets(out: torch.Tensor) -> NDArray[np.int64]:
    """int64 [V, N]: the element, counted from the first, at which each view begins."""
    views, samples = out.shape[:2]
    return np.arange(views)[:, None] * out.stride(0) + np.arange(samples)[None, :] * out.stride(1)


def _launch(pixels: Pixels, rows: Rows, target: NDArray[np.int64], recipe: Recipe, out: torch.Tensor) -> None:
    """Plan the rows and launch their passes; target: int64 as the rows, from `_targets`."""
    _check(out)
    size, device, module = out.shape[-1], out.device, _kernels()
    shape = shape_for(size)
    with _LAUNCHING, torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        plan = make_plan(pixels, rows, target, whole=shape.whole)
        words, source, numbers = _upload(plan.words, device), _source(pixels, device), _constants(device)
        stored = torch.empty((2, plan.stored, size, size), dtype=torch.int32, device=device)
        tables = torch.empty((plan.tables, 256), dtype=torch.uint8, device=device)
        normalisation, rich = _normalisation(recipe.mean, recipe.std), bool(np.isin(rows.opcode, RICH).any())
        tiles = -(-size // shape.tile_x) * -(-size // shape.tile_y)
        for launch in plan.launches:
            read, kept = stored[(launch.level + 1) % 2], stored[launch.level % 2]
            if launch.head == planning.EQUALIZE:
                module.make_tables[(launch.count * plan.tiles,)](
                    words, launch.first, read, tables, numbers, size, plan.tiles, BLOCK=TABLE_BLOCK, **TABLE_OPTIONS
                )
            module.run_pass[(launch.count * tiles,)](
                words,
                launch.first,
                source,
                read,
                kept,
                tables,
                numbers,
                out,
                size,
                *normalisation,
                **shape.options(launch.head, rich),
                **shape.compiler,
            )


def report(arch: int, only: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """What the kernels take on an architecture, 80 or 90, as `report.py` finds it: {kernel: registers, spills, shared}.

    It needs no GPU, and a process of its own, since kernels may be interpreted in this one. Seconds to a minute.

    Args:
        only: names of kernels; all, if empty.

    Raises:
        UserError: the kernels do not compile here.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"{__name__}.report", str(arch), *only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the kernels do not compile for sm_{arch} here ({reason}): is Triton installed, with ptxas?")
    return json.loads(done.stdout.splitlines()[-1])
