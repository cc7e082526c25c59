"""What the tests of the augmentation benchmark feed it: two small images, and rows that are not measured."""

from __future__ import annotations

import numpy as np

from penstock.augment import Recipe
from penstock.augment.operations import Operation
from penstock.benchmarks.augment_passes import Case, Contender

IMAGES = list(np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8))


def contender(executor: str, *times: float, threads: int = 1) -> Contender:
    """With these times of a view, in microseconds."""
    made = Contender(executor=executor, run=lambda: None, views=1, threads=threads, bytes=1000)
    made.times.extend(times)
    return made


def lists_of(recipe: Recipe) -> list[tuple[tuple[Operation, ...], int]]:
    """Every view's operations and size, as rivals take them."""
    return [(view.operations, view.size) for view in recipe.views for _ in range(view.count)]


def case(*contenders: Contender) -> Case:
    """What ran side by side."""
    return Case(operation="blur", size=32, contenders=list(contenders))
