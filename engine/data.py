"""The loaders of a run: one that feeds the training, and those that feed what it is evaluated by meanwhile."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch

from penstock.augment import Recipe
from penstock.augment.executors import split_names
from penstock.engine.config import CompleteConfig
from penstock.engine.distributed import Team
from penstock.engine.evaluate.data import (
    check_same_classes,
    in_order,
    labelled,
    open_validation,
    plain_view,
    probe_view,
)
from penstock.engine.evaluate.online import OnlineEvaluation, OnlineKNN, OnlineLogistic, OnlineProtocol
from penstock.engine.precision import Precision
from penstock.engine.seeds import derive_seed
from penstock.errors import UserError
from penstock.loaders import LOADERS, Loader, Source, make_loader, open_source
from penstock.loaders.threads import available_cpus
from penstock.sizes import parse_bytes


def build_loader(
    config: CompleteConfig, source: Source, recipe: Recipe, team: Team, precision: Precision | None = None
) -> Loader:
    """This rank's share of every epoch's augmented views, the recipe's stages scaled to the run.

    Args:
        precision: what the network computes in, see `_views_in`; None: float32.
    """
    loader = make_loader(
        config.loader,
        source,
        recipe=recipe.over(config.epochs),
        batch=config.batch // team.world // config.accumulate,
        seed=config.seed,
        rank=team.rank,
        world=team.world,
        workers=threads(config, team),
        device=team.device,
        dtype=_views_in(precision, config.loader),
        executor=config.executor,
        fallback=split_names(config.fallback),
        on_error=config.on_error,
        budget=parse_bytes(config.memory_budget),
        order=config.order,
    )
    loader.order.follow(team.of_leader(loader.order.name))  # machines with other memory may have chosen another
    return loader


def _views_in(precision: Precision | None, loader: str) -> torch.dtype:
    """The type of the views: on a GPU what autocast would make of them first thing, which takes half the memory.

    Loaders that bring their own augmentation give float32 everywhere, as their users have it.
    """
    if precision is None or precision.dtype is None or precision.device.type != "cuda":
        return torch.float32
    return torch.float32 if LOADERS[loader].own_augmentation else precision.dtype


def threads(config: CompleteConfig, team: Team) -> int:
    """For a loader of one rank: as many as were asked for, or a fair share of the machine's."""
    return config.workers or max(1, available_cpus() // team.on_machine)


def share_cpus(team: Team) -> None:
    """Where the network runs on the CPU, leave one of this rank's CPUs to the loader, unless OMP_NUM_THREADS is set.

    torch's threads wait for each other at the end of every operation: one that shares its CPU with the loader holds up
    all of them, and a small network then trains many times as slowly as on fewer threads.
    """
    if team.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cpus() // team.on_machine - 1))


def build_evaluation(config: CompleteConfig, source: Source, recipe: Recipe, team: Team) -> OnlineEvaluation | None:
    """What the run is evaluated by while it trains. None where nothing is wanted, or the images for it are not there.

    Raises:
        UserError: validation images of other classes than the data's, images of one class alone, or a best epoch that
            nothing would tell.
    """
    images = labelled_images(config, source) if config.knn_every or config.logistic_every else None
    if images is None:
        if config.keep_best:
            raise UserError(f"--keep-best {config.keep_best}: {why_none(config, source)}, or leave --keep-best out")
        return None
    train, val = images
    plain, classes = plain_view(config.size, recipe), len(train.classes)
    show = partial(
        in_order,
        workers=threads(config, team),
        device=team.device,
        on_error=config.on_error,
        seed=derive_seed(config.seed, "evaluation"),  # its crops are not those that the network is trained on
    )
    protocols: list[OnlineProtocol] = []
    if config.knn_every:
        voting: dict[str, Any] = {"k": config.knn_k, "temperature": config.knn_temperature, "on": config.knn_features}
        protocols.append(OnlineKNN(every=config.knn_every, train=show(train, plain), classes=classes, **voting))
    if config.logistic_every:
        crops = show(train, probe_view(config.size, recipe))
        protocols.append(OnlineLogistic(every=config.logistic_every, train=crops, classes=classes))
    return OnlineEvaluation(protocols=protocols, val=show(val, plain), epochs=config.epochs)


def _labelled_training(config: CompleteConfig, source: Source) -> Source:
    """The labelled images of the training split, whichever split is trained on."""
    train = source if config.split == "train" else open_source(config.data, "train", class_list=config.class_list)
    return labelled(train)


def labelled_images(config: CompleteConfig, source: Source) -> tuple[Source, Source] | None:
    """Of the training set and of the validation set, of the same classes; None where one of them has none."""
    val = open_validation(config.data, val_data=config.val_data, class_list=config.class_list)
    train = _labelled_training(config, source)
    if val is None or not len(train):
        return None
    remedy = "choose another --val-data, or --knn-every 0 --logistic-every 0"
    check_same_classes(train, val, name=config.val_data or config.data, remedy=remedy)
    if config.logistic_every and len(np.unique(train.labels)) < 2:
        raise UserError(
            f"--logistic-every {config.logistic_every}: all images of {config.data} are of one class, and a regression"
            " tells classes apart: leave it out"
        )
    return train, val


def why_none(config: CompleteConfig, source: Source, *, option: str = "--val-data FOLDER") -> str:
    """Why there are no `labelled_images`, and what to do; `option`: what brings a command validation images."""
    if not len(_labelled_training(config, source)):
        unlabelled = f"{config.data} has no labels, and --val-data brings none to its training images"
        return f"{unlabelled}: sort them into class folders"
    return f"{config.data} has no labelled validation split: name images of the same classes with {option}"
