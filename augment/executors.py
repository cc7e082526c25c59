"""Executors by name: code that takes pixels and rows, and draws nothing itself.

| name | what it is for |
|---|---|
| `reference` | torchvision's uint8 operations, one row at a time: the oracle |
| `fused_cpu` | compiled, without the GIL |
| `auto` | `fused_cpu` where it covers the whole recipe, else `reference` |
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe
from penstock.augment.rows import Rows
from penstock.errors import UserError

Executor = Callable[[Pixels, Rows, Recipe, torch.Tensor], None]
EXECUTORS = ("auto", "reference", "fused_cpu")


def choose_executor(name: str, recipe: Recipe) -> Executor:
    """The executor of that name.

    Raises:
        UserError: unknown name, or one that lacks a kernel for an operation of the recipe.
    """
    from penstock.augment.fused_cpu import covers, fused_cpu
    from penstock.augment.reference import reference

    if name not in EXECUTORS:
        raise UserError(f"--executor {name!r} is not known: choose one of {', '.join(EXECUTORS)}")
    fused = covers(recipe)
    if name == "fused_cpu" and not fused:
        raise UserError(f"--executor fused_cpu has no kernel for all of {recipe}: use --executor auto")
    return fused_cpu if name != "reference" and fused else reference
