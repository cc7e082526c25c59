"""Albumentations as its guides have it: OpenCV reads the file, `A.Compose` makes each view, a DataLoader runs it.

https://albumentations.ai/docs/ (the last release under the MIT licence, 2.0.8).
"""

from __future__ import annotations

from typing import Any

import cv2

from penstock.augment import Recipe
from penstock.benchmarks.augment_rivals import albumentations_compose
from penstock.benchmarks.peers.peer import DataLoaderPeer, Files, data_loader, view_transforms
from penstock.loaders import Source


def load(path: str) -> Any:
    """uint8 [H, W, 3], RGB."""
    return cv2.imread(path, cv2.IMREAD_COLOR_RGB)


class AlbumentationsInDataLoader(DataLoaderPeer):
    """One thread of OpenCV's in each worker: with more, workers contend for the cores."""

    def __init__(self, source: Source, recipe: Recipe, *, batch: int, workers: int) -> None:
        cv2.setNumThreads(0)
        files = Files(source, load, view_transforms(recipe, albumentations_compose))
        self.loader = data_loader(files, batch=batch, workers=workers)
