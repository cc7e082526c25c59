"""STL-10 from its binary files (Coates et al. 2011, https://cs.stanford.edu/~acoates/stl10/).

96 x 96 pixels: 5,000 labelled images to train, 8,000 to validate and 100,000 unlabelled. The files are mapped, not
read: the unlabelled split alone is 2.8 GB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UserError
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import UNLABELLED

SUBFOLDER = "stl10_binary"
FILES = {"train": "train", "val": "test", "unlabeled": "unlabeled"}
SIDE = 96
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def find_stl10(folder: Path) -> Path | None:
    """The folder of the binary files: `folder` itself or the one of the official name inside it; None if neither is."""
    return next((place for place in (folder, folder / SUBFOLDER) if (place / "train_X.bin").is_file()), None)


def stl10_source(folder: Path, split: str) -> ImageArrays:
    """Open split `train`, `val` (the official test set) or `unlabeled`; `folder` as `find_stl10` gives it."""
    images = _images(folder / f"{FILES[split]}_X.bin")
    if split == "unlabeled":
        return ImageArrays(images, np.full(len(images), UNLABELLED), (), "stl10-unlabeled")
    path = folder / f"{FILES[split]}_y.bin"
    labels = _bytes(path).astype(np.int64) - 1  # the file counts from 1
    if len(labels) != len(images) or not ((labels >= 0) & (labels < len(CLASSES))).all():
        raise UserError(f"{path}: not the labels of {len(images)} STL-10 images; unpack the official archive anew")
    return ImageArrays(images, labels, CLASSES, f"stl10-{split}")


def _images(path: Path) -> NDArray[np.uint8]:
    pixels = _bytes(path)
    if len(pixels) % (3 * SIDE * SIDE):
        raise UserError(f"{path}: {len(pixels)} bytes are no whole number of images; unpack the official archive anew")
    return pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)  # each channel is stored column by column


def _bytes(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); unpack the official STL-10 archive anew") from error
