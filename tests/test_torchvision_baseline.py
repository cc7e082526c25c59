"""The baseline's transforms: one for every operation that a recipe may hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from penstock.augment.operations import OPERATIONS, Albumentations, ByEpoch, GaussianBlur, RandomChoice
from penstock.loaders.torchvision_baseline import transform

EACH = [kind() for kind in OPERATIONS.values() if kind not in (Albumentations, RandomChoice, ByEpoch)]
EACH += [GaussianBlur(sigma=None, kernel=(3, 7)), Albumentations(transform="RandomFog")]


@pytest.mark.parametrize("operation", EACH, ids=lambda operation: type(operation).__name__)
def test_the_baseline_has_a_transform_for_every_operation(operation):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    certain = replace(operation, p=1.0) if hasattr(operation, "p") else operation
    image = Image.fromarray(pixels).resize((32, 32)) if hasattr(operation, "p") else Image.fromarray(pixels)
    made = [transform(certain, 32)(image) for _ in range(8)]
    assert all(view.size == (32, 32) and view.mode == "RGB" for view in made)
    assert any(view.tobytes() != image.tobytes() for view in made)
