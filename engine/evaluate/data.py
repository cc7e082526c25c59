"""The images that a network is evaluated on, in order and as they are, and the loaders that show them to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from penstock.augment import Recipe, evaluation, load_recipe
from penstock.errors import UserError
from penstock.loaders import Loader, Source, Subset, make_loader, open_source
from penstock.loaders.sources import UNLABELLED, validation_source

EVALUATION_BATCH = 256


def labelled(source: Source) -> Source:
    """Its labelled images: the source itself, where they all are."""
    known = np.flatnonzero(source.labels != UNLABELLED)
    return source if len(known) == len(source) else Subset(source, known)


def spread(source: Source, count: int) -> Source:
    """So many of its images at most, at equal distances: of all classes, where they lie one after the other."""
    if count >= len(source):
        return source
    return Subset(source, np.linspace(0, len(source) - 1, count).round().astype(np.int64))


def open_validation(data: str, *, val_data: str | None, class_list: Path | None) -> Source | None:
    """The images to classify: of `val_data`, which may be a single set, or the data's own validation split."""
    own = validation_source(val_data or data, class_list=class_list)
    if own is None and val_data is not None:
        own = open_source(val_data, class_list=class_list)
    return None if own is None else labelled(own)


def check_same_classes(
    train: Source, validation: Source, *, name: str, remedy: str = "choose another --val-data"
) -> None:
    """Raises UserError where the classes of the validation set, called `name`, are not those of the training set."""
    if validation.classes != train.classes:
        raise UserError(
            f"{name}: the classes to validate on ({', '.join(validation.classes[:3])}, …) are not those of the data"
            f" ({', '.join(train.classes[:3])}, …): {remedy}"
        )


def plain_view(size: int, like: Recipe) -> Recipe:
    """Small images are shown whole, photographs as ImageNet's evaluation does."""
    return evaluation(size, 1.0 if size <= 64 else 0.875, like=like)


def probe_view(size: int, like: Recipe) -> Recipe:
    """A random crop and flip, as linear classifiers are trained on."""
    return replace(load_recipe("probe", size=size), mean=like.mean, std=like.std)


def large_views(recipe: Recipe) -> Recipe:
    """The recipe at its last size, without the small views of a multi-crop one, which are another augmentation."""
    return replace(recipe, views=tuple(view for view in recipe.views if view.size == recipe.size), growth=None)


def in_order(
    source: Source,
    recipe: Recipe,
    *,
    batch: int = EVALUATION_BATCH,
    workers: int | None = None,
    device: torch.device,
    on_error: str = "stop",
    seed: int = 0,
) -> Loader:
    """A loader of every image once an epoch, in the source's order."""
    return make_loader(
        "folder",
        source,
        recipe=recipe,
        batch=min(batch, len(source)),
        seed=seed,
        workers=workers,
        device=device,
        order="stored",
        keep_tail=True,
        on_error=on_error,
    )
