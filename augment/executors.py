"""Executors by name: code that takes pixels and rows, and draws nothing itself.

| name | what it is for |
|---|---|
| `reference` | torchvision's uint8 operations, one row at a time: the oracle |
| `fused_cpu` | compiled, without the GIL |
| `fused_gpu` | Triton kernels; in Triton's interpreter, slowly, where there is no GPU |
| `albumentations` | Albumentations 2.0.8, one row at a time |
| `dali` | DALI's own operators, for comparison; not at parity everywhere (docs/parity.md) |
| `auto` | `fused_gpu` where the views are wanted on a GPU, else `fused_cpu` |

Rows are drawn before pixels move, so routing is per row: one that holds an operation which the executor has no kernel
for, or which `fallback` names, is finished on the CPU, by `fused_cpu` and Albumentations, and only written by the
executor, into its place in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.operations import OPERATIONS
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.rows import Opcode, Rows
from penstock.errors import UserError

BACK_ENDS = ("reference", "fused_cpu", "fused_gpu", "albumentations", "dali")
EXECUTORS = ("auto", *BACK_ENDS)
NEVER = frozenset({Opcode.CROP, Opcode.ALBUMENTATIONS})  # the crop begins every row; the other goes there in any case


class BackEnd(Protocol):
    """A module that moves pixels.

    Attributes:
        NATIVE: the operations that it has code for.
    """

    NATIVE: frozenset[Opcode]

    def run(self, pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
        """Fill `out` [V, N, 3, S, S] (float32, float16 or bfloat16, channels-last) with normalised views.

        A row whose first opcode is NONE is skipped: its part of `out` is left alone.
        """

    def write(
        self,
        finished: NDArray[np.uint8],
        view: NDArray[np.int64],
        sample: NDArray[np.int64],
        recipe: Recipe,
        out: torch.Tensor,
    ) -> None:
        """Normalise finished views [R, S, S, 3] into `out[view[r], sample[r]]`."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is left to do for one group's views of N images: rows to run, and views that only need to be written.

    Attributes:
        rows: [V, N, K]; those that went around the back end begin with NONE.
        finished: uint8 [R, S, S, 3], what became of them.
        view, sample: int64 [R], where in `rows` each of them stands.
    """

    rows: Rows
    finished: NDArray[np.uint8]
    view: NDArray[np.int64]
    sample: NDArray[np.int64]

    @staticmethod
    def joined(parts: Sequence[Work]) -> Work:
        """That for the images of all parts, one part after the other."""
        first = np.cumsum([0, *(part.rows.opcode.shape[1] for part in parts)])
        return Work(
            rows=Rows(
                opcode=np.concatenate([part.rows.opcode for part in parts], axis=1),
                parameters=np.concatenate([part.rows.parameters for part in parts], axis=1),
                seed=np.concatenate([part.rows.seed for part in parts], axis=1),
            ),
            finished=np.concatenate([part.finished for part in parts]),
            view=np.concatenate([part.view for part in parts]),
            sample=np.concatenate([part.sample + start for part, start in zip(parts, first, strict=False)]),
        )


class Executor:
    """A back end, and the way around it for the rows that it cannot finish.

    Calling it does both halves of the work. A loader whose views are made on a GPU does them apart: many threads go
    `around`, each with the images that it has decoded, and one call of `run` makes the views of all.

    Args:
        name: the back end's.
        sent: operations that go to Albumentations although there is other code for them.

    Attributes:
        native: the operations that the back end is left with.
        rows, routed: how many rows have been run, and how many of them went around.
        on_device: whether, for views on a GPU, `out` is to be there already; the others fill host memory.
        within_crops: whether pixels outside of the rows' crops are never read. DALI's resize looks over the edge.
    """

    def __init__(self, name: str, sent: frozenset[Opcode] = frozenset()) -> None:
        from penstock.augment import fused_cpu

        self.name, self.rows, self.routed = name, 0, 0
        self.on_device = name == "fused_gpu"
        self.within_crops = name != "dali"
        self._back_end: BackEnd = import_module(f"penstock.augment.{name}")
        self.native = self._back_end.NATIVE - sent
        self._native = _mask(self.native)
        self._compiled = _mask(fused_cpu.NATIVE - sent)
        self._lock = Lock()

    def __call__(self, pixels: Pixels, rows: Rows, recipe: Recipe, out: torch.Tensor) -> None:
        """Run the rows of one group's views [V, N, K]: fill `out` [V, N, 3, S, S] with normalised views."""
        self.run(pixels, self.around(pixels, rows, recipe, out.shape[-1]), recipe, out)

    def around(self, pixels: Pixels, rows: Rows, recipe: Recipe, size: int) -> Work:
        """Finish, on the CPU, the rows [V, N, K] that the back end cannot, as views of `size` pixels."""
        around = self._goes_around(rows, recipe)
        with self._lock:
            self.rows, self.routed = self.rows + around.size, self.routed + int(around.sum())
        view, sample = np.nonzero(around)
        finished = np.empty((len(view), size, size, 3), np.uint8)
        if not len(view):
            return Work(rows=rows, finished=finished, view=view, sample=sample)
        for r, (v, n) in enumerate(zip(view.tolist(), sample.tolist(), strict=True)):
            finished[r] = self._finish(pixels.image(n), rows, v, n, recipe, size)
        opcode = rows.opcode.copy()
        opcode[around, 0] = Opcode.NONE
        return Work(rows=replace(rows, opcode=opcode), finished=finished, view=view, sample=sample)

    def run(self, pixels: Pixels, work: Work, recipe: Recipe, out: torch.Tensor) -> None:
        """Fill `out` [V, N, 3, S, S]: run the rows that are left, and write the views that went around."""
        self._back_end.run(pixels, work.rows, recipe, out)
        if len(work.view):
            self._back_end.write(work.finished, work.view, work.sample, recipe, out)

    def finishes(self, recipe: Recipe) -> bool:
        """Whether no row of the recipe goes around the back end."""
        return recipe.opcodes <= self.native

    def _goes_around(self, rows: Rows, recipe: Recipe) -> NDArray[np.bool_]:
        """bool [V, N]: which rows hold an operation that the back end is not left with."""
        if self.finishes(recipe):  # then none can, and there is no need to look
            return np.zeros(rows.opcode.shape[:2], np.bool_)
        return np.asarray(~self._native[rows.opcode].all(axis=-1))

    def _finish(
        self, image: NDArray[np.uint8], rows: Rows, view: int, sample: int, recipe: Recipe, size: int
    ) -> NDArray[np.uint8]:
        """One row on the CPU, from the source image to uint8 [S, S, 3]: runs of compiled slots, the rest one by one."""
        from penstock.augment import albumentations, fused_cpu

        opcode, parameters, seed = rows.opcode[view, sample], rows.parameters[view, sample], rows.seed[view, sample]
        k, used = 0, int(np.count_nonzero(opcode))
        while k < used:
            run = int(np.argmin([*self._compiled[opcode[k:used]], False]))  # how many compiled slots follow each other
            if run:
                end = k + run
                image = fused_cpu.run_slots(image, opcode[k:end], parameters[k:end], seed[k:end], size)
                k = end
            else:
                image = albumentations.apply(image, Opcode(opcode[k]), parameters[k], int(seed[k]), recipe)
                k += 1
        return image


def choose_executor(
    name: str, recipe: Recipe, *, fallback: Iterable[str] = (), device: torch.device | str = "cpu"
) -> Executor:
    """The executor of that name.

    Args:
        fallback: operations to send to Albumentations, by a recipe's names or a row's (`CLAHE`, `clahe`, `hue`).
        device: where the views are wanted.

    Raises:
        UserError: unknown name, an operation that cannot fall back, or a foreign transform that Albumentations lacks.
        MissingExtra: a package that the executor or the recipe needs is not installed.
    """
    if name not in EXECUTORS:
        raise UserError(f"--executor {name!r} is not known: choose one of {', '.join(EXECUTORS)}")
    if name == "fused_gpu" and not find_spec("triton"):
        raise UserError("--executor fused_gpu needs Triton: pip install triton, or use --executor fused_cpu")
    if name == "auto":
        name = "fused_gpu" if torch.device(device).type == "cuda" and find_spec("triton") else "fused_cpu"
    for operation in recipe.foreign:
        from penstock.augment import albumentations  # seconds to import, for the recipes that need it

        albumentations.check(operation.transform, operation.arguments, recipe.smallest)
    return Executor(name, fallback_opcodes(fallback))


def _mask(opcodes: frozenset[Opcode]) -> NDArray[np.bool_]:
    """bool [opcodes there are]: true for these, and for NONE."""
    mask = np.zeros(len(Opcode), np.bool_)
    mask[[Opcode.NONE, *opcodes]] = True
    return mask


def split_names(listed: str) -> tuple[str, ...]:
    """The names in `clahe,solarize`."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def fallback_opcodes(names: Iterable[str]) -> frozenset[Opcode]:
    """The opcodes of operations named as in a recipe or as in a row, in any case.

    Raises:
        UserError: no operation has that name, or it is the crop, which has no fallback.
    """
    of_rows = {o.name.lower(): frozenset({o}) for o in Opcode if Opcode.CROP < o < Opcode.ALBUMENTATIONS}
    known = of_rows | {name.lower(): kind.opcodes for name, kind in OPERATIONS.items() if not kind.opcodes & NEVER}
    for name in names:
        if name.lower() not in known:
            raise UserError(
                f"--fallback {name!r} is not an operation that can: choose among {', '.join(sorted(of_rows))}, or a"
                " recipe's own names, such as ColorJitter"
            )
    return frozenset[Opcode]().union(*(known[name.lower()] for name in names))
