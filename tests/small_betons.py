"""Small `.beton` files, and images for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penstock.loaders.beton import JPEG, RAW, BetonWriter
from penstock.loaders.shard import Entry, checksum

SIZES = ((40, 56), (33, 17), (64, 64), (8, 120))


def smooth(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Something like a photograph, so that JPEG keeps it well."""
    coarse = np.random.default_rng(seed).integers(40, 216, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write(path: Path, images: list[tuple[bytes, int, int, int]], labels: list[int]) -> None:
    """A `.beton` without a sidecar from (data, mode, height, width)."""
    with open(path, "wb") as file:
        writer = BetonWriter(file, len(images))
        for i, ((data, mode, height, width), label) in enumerate(zip(images, labels, strict=True)):
            kind = {JPEG: "jpeg", RAW: "raw"}[mode]
            writer.add(Entry(i, kind, height, width, label, len(data), checksum(data, label)), data)
        writer.finish()
