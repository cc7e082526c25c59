"""What a peer is to the benchmark, and the parts that those on DataLoader share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from penstock.augment import Recipe
from penstock.augment.operations import Operation
from penstock.errors import UserError
from penstock.loaders import Source
from penstock.loaders.sources import ImageFolder, Subset

Step = Callable[[Any], Any]
Compose = Callable[[Sequence[Operation | None], int, Recipe | None], Step]  # as in `augment_rivals.py`


@dataclass(frozen=True)
class Batch:
    """One batch as a training loop gets it: for each view a tensor [N, 3, S, S] on the device; labels [N]."""

    views: list[torch.Tensor]
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.label)


class Peer(ABC):
    """Epoch after epoch of batches, one for each `for` loop.

    Args:
        source: the set; a peer takes from it where the images lie, and reads them its own way.
        batch: images in a batch.
        workers: threads, or processes.

    Raises:
        Lacks: the package has no such operation.
        UserError: the source is not kept as the peer reads it.
    """

    @abstractmethod
    def __init__(self, source: Source, recipe: Recipe, *, batch: int, workers: int) -> None: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    def close(self) -> None:  # noqa: B027 (a peer may have nothing to let go of)
        """Stop threads and processes."""


class DataLoaderPeer(Peer):
    """A peer whose batches a DataLoader makes. `self.loader` yields (views, labels)."""

    loader: Any

    def __iter__(self) -> Iterator[Batch]:
        for views, label in self.loader:
            yield Batch([upload(view) for view in views], label)

    def close(self) -> None:
        self.loader._iterator = None  # ends persistent workers; DataLoader has no public way to


class Files(Dataset):
    """An image folder: items are (views, label), each view from a transform of its own."""

    def __init__(self, source: Source, load: Callable[[str], Any], transforms: list[Step]) -> None:
        self.files, self.load, self.transforms = paths(source), load, transforms
        self.labels = source.labels.tolist()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        image = self.load(self.files[index])
        return [transform(image) for transform in self.transforms], self.labels[index]


def data_loader(data: Dataset, *, batch: int, workers: int) -> DataLoader:
    """A DataLoader with the settings that its guides recommend for training."""
    return DataLoader(
        data,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )


def view_transforms(recipe: Recipe, compose: Compose) -> list[Step]:
    """For each view the package's list, ending in normalised float32 [3, S, S]."""
    return [compose(view.operations, view.size, recipe) for view in recipe.views for _ in range(view.count)]


def upload(view: torch.Tensor) -> torch.Tensor:
    return view.cuda(non_blocking=True) if torch.cuda.is_available() else view


def paths(source: Source) -> list[str]:
    """Each image's file. Raises UserError where the images are no files."""
    if isinstance(source, Subset):
        inner = paths(source.source)
        return [inner[i] for i in source.indices]
    if not isinstance(source, ImageFolder):
        raise UserError(f"{source.name}: its images are {source.storage}, and this row reads files")
    return [str(source.path(i)) for i in range(len(source))]
