"""`torchvision`: the baseline, as people write it today. Every speed-up is held against this loader.

PIL opens and converts the file, torchvision's transforms make two views one after the other, and a `DataLoader`
runs that in worker processes (persistent, pinned memory where there is a GPU). It brings its own augmentation, so
its pixels differ from our rows'; coverage, labels and order are ours, through the sampler.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

from penstock.augment.recipe import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    RandomResizedCrop,
    Recipe,
)
from penstock.augment.rows import Interpolation
from penstock.errors import BrokenImage
from penstock.loaders.contract import Loader, LoaderState, Views
from penstock.loaders.order import Order
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import Source, Subset
from penstock.loaders.sources.folder import ImageFolder

MODES = {
    Interpolation.BILINEAR: transforms.InterpolationMode.BILINEAR,
    Interpolation.BICUBIC: transforms.InterpolationMode.BICUBIC,
}


class PILGaussianBlur(torch.nn.Module):
    """Pillow's filter, as MoCo v2's own script blurs; torchvision's transform of that name costs many times as much."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


def transform(operation: Operation, size: int) -> torch.nn.Module:
    """The torchvision transform that people use for one operation of a recipe."""
    match operation:
        case RandomResizedCrop(scale=scale, ratio=ratio, interpolation=how):
            return transforms.RandomResizedCrop(size, scale=scale, ratio=ratio, interpolation=MODES[how])
        case CenterCrop(fraction=fraction):
            return transforms.Compose([transforms.Resize(round(size / fraction)), transforms.CenterCrop(size)])
        case HorizontalFlip(p=p):
            return transforms.RandomHorizontalFlip(p)
        case ColorJitter(brightness=b, contrast=c, saturation=s, hue=h, p=p):
            return transforms.RandomApply([transforms.ColorJitter(b, c, s, h)], p=p)
        case Grayscale(p=p):
            return transforms.RandomGrayscale(p)
        case GaussianBlur(sigma=sigma, p=p):
            return transforms.RandomApply([PILGaussianBlur(sigma)], p=p)


@dataclass(frozen=True)
class Broken:
    """What a worker hands over for an image that Pillow cannot read: an exception would arrive without its fields."""

    location: str
    reason: str


def collate(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | Broken:
    """DataLoader's own batching, all first views before all second ones; or the first broken image."""
    if broken := next((item for item in items if isinstance(item, Broken)), None):
        return broken
    views, index, label = zip(*items, strict=True)
    in_order = [view for same in zip(*views, strict=True) for view in same]
    return default_collate(in_order), torch.tensor(index), torch.tensor(label)


class TwoViews(Dataset):
    """An ImageFolder-like data set whose items are (views [V, 3, S, S], index, label)."""

    def __init__(self, source: Source, recipe: Recipe) -> None:
        self.source, self.views = source, recipe.views
        steps = [transform(operation, recipe.size) for operation in recipe.operations]
        self.transform = transforms.Compose(
            [*steps, transforms.ToTensor(), transforms.Normalize(recipe.mean, recipe.std)]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int, int] | Broken:
        try:
            image = open_pil(self.source, index)
        except BrokenImage as error:
            return Broken(error.location, error.reason)
        except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others on damaged files
            return Broken(self.source.location(index), str(error))
        return [self.transform(image) for _ in range(self.views)], index, int(self.source.labels[index])


def open_pil(source: Source, index: int) -> Image.Image:
    """The image as torchvision's own data sets open it: files by PIL, arrays wrapped."""
    if isinstance(source, Subset):
        return open_pil(source.source, int(source.indices[index]))
    if isinstance(source, ImageFolder):
        return pil_loader(str(source.path(index)))
    if isinstance(source, ImageArrays):
        return Image.fromarray(source.images[index])
    return Image.fromarray(source.decode(index))


class EpochBatches:
    """A batch sampler that walks our order; persistent workers outlive epochs, so it is re-pointed, not rebuilt."""

    def __init__(self, order: Order) -> None:
        self.order, self.epoch, self.consumed = order, 0, 0

    def __len__(self) -> int:
        return self.order.steps(self.consumed)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(len(self)):
            yield self.order.indices(self.epoch, step, self.consumed).tolist()


class TorchvisionLoader(Loader):
    """The DataLoader of the usual training script behind our contract.

    Its random values come from each worker's own generators, seeded once: a resumed run goes on in order, but with
    other augmentations than the uninterrupted one. On a CPU its views are laid out as `ToTensor` leaves them.
    """

    def __init__(
        self,
        source: Source,
        *,
        recipe: Recipe,
        order: Order,
        workers: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.order, self.device, self.dtype, self.state = order, torch.device(device), dtype, LoaderState()
        self.sampler = EpochBatches(order)
        self.generator = torch.Generator()
        self.loader = DataLoader(
            TwoViews(source, recipe),
            batch_sampler=self.sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=self.generator,
            collate_fn=collate,
        )

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        self.sampler.epoch, self.sampler.consumed = epoch, consumed
        self.generator.manual_seed((self.order.seed * 1_000_003 + epoch) & (2**63 - 1))
        for batch in self.loader:
            if isinstance(batch, Broken):
                raise BrokenImage(batch.location, batch.reason)
            views, index, label = batch
            group = views.to(self.device, self.dtype, non_blocking=True)
            if self.device.type == "cuda":  # cheap there; on a CPU it would be work that no one's script does
                group = group.contiguous(memory_format=torch.channels_last)
            yield Views(groups=[group], index=index, label=label)

    def close(self) -> None:
        self.loader._iterator = None  # ends persistent workers; DataLoader has no public way to
