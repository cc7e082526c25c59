"""The webdataset package: a tar read from end to end in each worker, a shuffle buffer, PIL, torchvision's transforms.

Its users cut a set into many tars and give each worker its own; from our one tar every worker draws with replacement
(`resampled=True`, what its guides recommend for training), which costs the same.

https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

from typing import Any

import torch
import webdataset
from PIL import Image

from penstock.augment import Recipe
from penstock.benchmarks.augment_rivals import torchvision_pil
from penstock.benchmarks.peers.peer import DataLoaderPeer, Step, view_transforms
from penstock.errors import UserError
from penstock.loaders import Source
from penstock.loaders.webdataset import WebDatasetSource

SHUFFLE = 1000  # samples in the buffer, as in its examples
IMAGES = "jpg;jpeg;png;webp"


class Views:
    """A sample's views; a class, so that workers can be sent it."""

    def __init__(self, transforms: list[Step]) -> None:
        self.transforms = transforms

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [transform(image) for transform in self.transforms]


def collate(samples: list[tuple[list[torch.Tensor], int]]) -> tuple[list[torch.Tensor], torch.Tensor]:
    views, label = zip(*samples, strict=True)
    return [torch.stack(view) for view in zip(*views, strict=True)], torch.tensor(label)


class WebDatasetPackage(DataLoaderPeer):
    """Batches are made in the workers, as its guides advise: WebLoader then hands over whole ones."""

    def __init__(self, source: Source, recipe: Recipe, *, batch: int, workers: int) -> None:
        if not isinstance(source, WebDatasetSource):
            raise UserError(f"{source.name}: the webdataset package reads .tar: python loaders/convert.py SRC NAME.tar")
        samples: Any = (
            webdataset.WebDataset(str(source.path), resampled=True, shardshuffle=False)
            .shuffle(SHUFFLE)
            .decode("pil")
            .to_tuple(IMAGES, "cls")
            .map_tuple(Views(view_transforms(recipe, torchvision_pil)), int)
            .batched(batch, collation_fn=collate, partial=False)
            .with_epoch(max(1, len(source) // batch // workers))
        )
        self.loader = webdataset.WebLoader(
            samples,
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
        )

    def close(self) -> None:
        self.loader = None
