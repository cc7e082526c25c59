"""How long a process waits for its first augmented view: printed as JSON, for benchmarks/augment.py to read.

Run in a process of its own, where another has compiled and cached the code before: what every restart costs.
"""

from __future__ import annotations

from time import perf_counter

START = perf_counter()

import json

import numpy as np
import torch

from penstock.augment import Pixels, draw, load_recipe
from penstock.augment.executors import choose_executor


def first_view() -> dict[str, float]:
    """Seconds that imports took from the start of this module on, and then until a view of MoCo v2 was made."""
    recipe = load_recipe("moco-v2")
    executor = choose_executor("fused_cpu", recipe)
    imported = perf_counter()
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    pixels, out = Pixels.from_images([image]), torch.empty(2, 1, recipe.size, recipe.size, 3).permute(0, 1, 4, 2, 3)
    rows = draw(recipe, seed=0, epoch=0, index=np.arange(1), height=pixels.height, width=pixels.width)
    executor(pixels, rows, recipe, out)
    return {"imports_s": imported - START, "first_view_s": perf_counter() - imported}


if __name__ == "__main__":
    print(json.dumps(first_view()))
