"""torchvision's newer way: files decoded to uint8 tensors, its v2 transforms, a DataLoader.

https://pytorch.org/vision/stable/transforms.html (its "Performance considerations" recommend this).
"""

from __future__ import annotations

import torch
from torchvision.io import ImageReadMode, decode_image

from penstock.augment import Recipe
from penstock.benchmarks.augment_rivals import torchvision_v2
from penstock.benchmarks.peers.peer import DataLoaderPeer, Files, data_loader, view_transforms
from penstock.loaders import Source


def load(path: str) -> torch.Tensor:
    return decode_image(path, mode=ImageReadMode.RGB)


class TorchvisionV2(DataLoaderPeer):
    """`decode_image` and v2 on plain tensors, which spares v2 wrapping them."""

    def __init__(self, source: Source, recipe: Recipe, *, batch: int, workers: int) -> None:
        files = Files(source, load, view_transforms(recipe, torchvision_v2))
        self.loader = data_loader(files, batch=batch, workers=workers)
