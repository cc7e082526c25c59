"""`torchvision`: the baseline, as people write it today. Every speed-up is held against this loader.

PIL opens and converts the file, torchvision's transforms make its views one after the other, and a `DataLoader` runs
that in worker processes (persistent, pinned memory where there is a GPU). Operations that torchvision has no
transform for are Albumentations', on the image as an array, with the recipe's ranges: as users of both write it. It
brings its own augmentation, so its pixels differ from our rows'; coverage, labels and order are ours, through the
sampler. What Pillow does not object to it shows: invalid codes in a JPEG come out as made-up pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

from penstock.augment.albumentations import check
from penstock.augment.counterparts import counterpart
from penstock.augment.operations import (
    CenterCrop,
    ColorJitter,
    Flip,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    RandomChoice,
    RandomResizedCrop,
    Solarize,
    VerticalFlip,
)
from penstock.augment.recipe import Recipe
from penstock.augment.rows import Interpolation
from penstock.errors import BrokenImage
from penstock.loaders.contract import Loader, Options, Views
from penstock.loaders.order import Order
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import Source, Subset
from penstock.loaders.sources.folder import ImageFolder

MODES = {
    Interpolation.BILINEAR: transforms.InterpolationMode.BILINEAR,
    Interpolation.BICUBIC: transforms.InterpolationMode.BICUBIC,
}


class PILGaussianBlur(nn.Module):
    """Pillow's filter, as MoCo v2's own script blurs; torchvision's transform of that name costs many times as much."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


class OnArray(nn.Module):
    """What Albumentations has for an operation, on a PIL image. Its random values follow the worker's seed."""

    def __init__(self, operation: Operation, size: int) -> None:
        super().__init__()
        self.transform = counterpart(operation, size)
        self.transform.set_random_seed(random.getrandbits(32))

    def forward(self, image: Image.Image) -> Image.Image:
        return Image.fromarray(self.transform(image=np.array(image))["image"])


def transform(operation: Operation | None, size: int) -> nn.Module:
    """The transform that people use for one operation of a recipe, on PIL images."""
    match operation:
        case None:
            return nn.Identity()
        case RandomResizedCrop(scale=scale, ratio=ratio, interpolation=how):  # PIL antialiases always
            return transforms.RandomResizedCrop(size, scale=scale, ratio=ratio, interpolation=MODES[how])
        case CenterCrop(fraction=fraction):
            return transforms.Compose([transforms.Resize(round(size / fraction)), transforms.CenterCrop(size)])
        case HorizontalFlip(p=p):
            return transforms.RandomHorizontalFlip(p)
        case VerticalFlip(p=p):
            return transforms.RandomVerticalFlip(p)
        case Grayscale(p=p):
            return transforms.RandomGrayscale(p)
        case Solarize(threshold=threshold, p=p):
            return transforms.RandomSolarize(threshold, p)
        case RandomChoice(operations=members, times=times):
            return transforms.Compose(times * [transforms.RandomChoice([transform(m, size) for m in members])])
    return transforms.RandomApply([_certain(replace(operation, p=1.0), size)], p=operation.p)  # type: ignore


def _certain(operation: Operation, size: int) -> nn.Module:
    """The transform of an operation whose p is 1, by Albumentations where torchvision has none on PIL images."""
    match operation:
        case Flip():
            left_right, up_down = transforms.RandomHorizontalFlip(1.0), transforms.RandomVerticalFlip(1.0)
            return transforms.RandomChoice([left_right, up_down, transforms.Compose([left_right, up_down])])
        case ColorJitter(brightness=b, contrast=c, saturation=s, hue=h):
            return transforms.ColorJitter(b, c, s, h)
        case GaussianBlur(sigma=sigma, kernel=None) if sigma:
            return PILGaussianBlur(sigma)
    return OnArray(operation, size)


def view_transforms(recipe: Recipe) -> list[nn.Module]:
    """For each view: from a PIL image to normalised pixels, float32 [3, S, S]. The recipe is that of one epoch."""
    finish = [transforms.ToTensor(), transforms.Normalize(recipe.mean, recipe.std)]
    made = []
    for view in recipe.views:
        steps = [transform(operation, view.size) for operation in view.operations]
        made += view.count * [transforms.Compose([*steps, *finish])]
    return made


@dataclass(frozen=True)
class Broken:
    """What a worker hands over for an image that Pillow cannot read: an exception would arrive without its fields."""

    index: int
    location: str
    reason: str


@dataclass(frozen=True)
class Collated:
    """A batch from a worker: the views of each group, [V·N, 3, S, S], and the images that were passed over for it.

    A batch of no images has no groups: a worker does not know of which epoch it is.
    """

    groups: list[torch.Tensor]
    index: torch.Tensor
    label: torch.Tensor
    broken: list[Broken]

    def pin_memory(self) -> Collated:
        """The same with pinned views: DataLoader asks each type that it does not know to do so itself."""
        return replace(self, groups=[group.pin_memory() for group in self.groups])


def collate(items: list[Any], groups: list[slice]) -> Collated:
    """DataLoader's own batching of each group, all first views before all second ones; groups: which views."""
    broken = [each for *_, passed_over in items for each in passed_over]
    whole = [item for item in items if item[0]]
    if not whole:  # a rank that has no part in a kept tail still takes the step
        nothing = torch.empty(0, dtype=torch.int64)
        return Collated([], nothing, nothing, broken)
    views, index, label, _ = zip(*whole, strict=True)
    by_view = list(zip(*views, strict=True))
    in_order = [[view for same in by_view[which] for view in same] for which in groups]
    return Collated([default_collate(views) for views in in_order], torch.tensor(index), torch.tensor(label), broken)


class ManyViews(Dataset):
    """An ImageFolder-like data set whose items are (views, [3, S, S] each; index; label), asked for by index and epoch.

    The epoch comes with the index because the workers outlive epochs, and a recipe may change between them.
    """

    def __init__(self, source: Source, recipe: Recipe, on_error: str) -> None:
        self.source, self.recipe, self.on_error = source, recipe, on_error
        self.epoch, self.now = -1, recipe  # what the transforms were made for
        self.transforms: list[nn.Module] = []

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, asked: tuple[int, int]) -> tuple[list[torch.Tensor], int, int, list[Broken]]:
        """Views of the image, or of the next that can be read; no views where none is to be looked for, or there."""
        first, epoch = asked
        self._follow(epoch)
        broken: list[Broken] = []
        for index in (i % len(self) for i in range(first, first + len(self))):
            image = self._open(index)
            if not isinstance(image, Broken):
                views = [transform(image) for transform in self.transforms]
                return views, index, int(self.source.labels[index]), broken
            broken.append(image)
            if self.on_error == "stop":
                break
        return [], first, -1, broken

    def _open(self, index: int) -> Image.Image | Broken:
        try:
            return open_pil(self.source, index)
        except BrokenImage as error:
            return Broken(index, error.location, error.reason)
        except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others on damaged files
            return Broken(index, self.source.location(index), str(error))

    def _follow(self, epoch: int) -> None:
        """Have the epoch's transforms. Made in the worker: of the parent's, all would draw the same values."""
        recipe = self.now if epoch == self.epoch else self.recipe.at(epoch)
        if recipe != self.now or not self.transforms:
            self.transforms = view_transforms(recipe)
        self.epoch, self.now = epoch, recipe


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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(len(self)):
            yield [(index, self.epoch) for index in self.order.indices(self.epoch, step, self.consumed).tolist()]


class TorchvisionLoader(Loader):
    """The DataLoader of the usual training script behind our contract.

    Its random values come from each worker's own generators, seeded once: a resumed run goes on in order, but with
    other augmentations than the uninterrupted one. On a CPU its views are laid out as `ToTensor` leaves them.
    One epoch at a time: two iterators in turns would mix their batches.
    """

    def __init__(self, source: Source, options: Options) -> None:
        super().__init__(source, options)
        self._check()
        self.sampler = EpochBatches(self.order)
        self.generator = torch.Generator()
        self.loader = DataLoader(
            ManyViews(source, self.recipe, options.on_error),
            batch_sampler=self.sampler,
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
            pin_memory=options.device.type == "cuda",
            generator=self.generator,
            collate_fn=partial(collate, groups=[group.views for group in self.recipe.groups]),
        )

    def _check(self) -> None:
        """Have what is wrong with a recipe or not installed said here, and not by a worker."""
        for operation in self.recipe.foreign:
            check(operation.transform, operation.arguments, self.recipe.smallest)
        view_transforms(self.recipe.at(0))

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        self.sampler.epoch, self.sampler.consumed = epoch, consumed
        self.generator.manual_seed((self.order.seed * 1_000_003 + epoch) & (2**63 - 1))
        none = [torch.empty(0, 3, group.size, group.size) for group in self.recipe.at(epoch).groups]
        for batch in self.loader:
            for broken in batch.broken:
                self.skipped.add(np.array([broken.index]), BrokenImage(broken.location, broken.reason))
            groups = [self._upload(group) for group in batch.groups or none]
            yield Views(groups=groups, index=batch.index, label=batch.label)

    def _upload(self, views: torch.Tensor) -> torch.Tensor:
        views = views.to(self.options.device, non_blocking=True).to(self.options.dtype)  # not converted on the CPU
        if views.is_cuda:  # cheap there; on a CPU it would be work that no one's script does
            views = views.contiguous(memory_format=torch.channels_last)
        return views

    def close(self) -> None:
        self.loader._iterator = None  # ends persistent workers; DataLoader has no public way to
