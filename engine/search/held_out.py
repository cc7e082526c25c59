"""The images that score: training images that are held out of all trials, so that the test set chooses nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.engine.evaluate.data import labelled, open_validation
from penstock.engine.search.config import Config
from penstock.errors import UserError
from penstock.loaders import Source, Subset, open_source
from penstock.loaders.convert import convert
from penstock.loaders.sources import UNLABELLED

HELD_OUT = 5000  # images, a fifth of smaller sets: their kNN accuracy then has a standard error of up to .7 points


def shares(config: Config, source: Source) -> tuple[int, int]:
    """How many images are trained on, and how many held out.

    Raises:
        UserError: no labels, or not enough images.
    """
    train = source if config.split == "train" else open_source(config.data, "train", class_list=config.class_list)
    if not len(labelled(train)):
        raise UserError(
            f"--data {config.data}: kNN, the score, needs labels, and these training images have none: choose other"
            " data"
        )
    if config.val_data is not None:
        queries = open_validation(config.data, val_data=config.val_data, class_list=config.class_list)
        if queries is None or not len(queries):
            raise UserError(f"--val-data {config.val_data}: kNN, the score, needs labels, and these images have none")
        return config.subset or len(source), 0
    if config.split != "train":
        raise UserError(
            f"--split {config.split}: without labels, none of it can be held out: name labelled images with --val-data"
        )
    if (source.labels == UNLABELLED).any():
        raise UserError(
            f"--data {config.data}: kNN, the score, needs labels, and not all of these images have one: choose other"
            " data, or name labelled images of the same classes with --val-data"
        )
    held_out = config.held_out or min(HELD_OUT, len(source) // 5)
    if not 0 < held_out < len(source):
        raise UserError(
            f"--held-out {held_out:,}: {source.name} has {len(source):,} images: hold out one at least, and leave"
            " others to train on"
        )
    images = config.subset or len(source) - held_out
    if images + held_out > len(source):
        raise UserError(
            f"{source.name}: {images:,} images to train on and {held_out:,} to hold out, but it has {len(source):,}:"
            " use a smaller --subset or --held-out"
        )
    return images, held_out


def write_held_out(config: Config, source: Source, images: int, held_out: int, path: Path) -> None:
    """A shard of training images, of all classes alike, that are not among the `images` trained on."""

    def chosen(limit: int) -> NDArray[np.int64]:
        cut = open_source(config.data, config.split, class_list=config.class_list, limit=limit)
        assert isinstance(cut, Subset)
        return cut.indices

    outside = np.setdiff1d(chosen(images + held_out), chosen(images))  # a smaller choice lies within a larger one
    convert(Subset(source, outside), path, workers=config.workers, on_error=config.on_error, progress=False)
