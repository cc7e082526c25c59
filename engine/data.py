"""The loaders of a run: one that feeds the training, two that feed kNN."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from penstock.augment import Recipe, evaluation
from penstock.augment.executors import split_names
from penstock.engine.config import CompleteConfig
from penstock.engine.distributed import Team
from penstock.engine.evaluate.knn import OnlineKNN
from penstock.errors import UserError
from penstock.loaders import Loader, Source, Subset, make_loader, open_source
from penstock.loaders.sources import UNLABELLED, validation_source
from penstock.loaders.threads import available_cpus
from penstock.sizes import parse_bytes

EVALUATION_BATCH = 256


def build_loader(config: CompleteConfig, source: Source, recipe: Recipe, team: Team) -> Loader:
    """This rank's share of every epoch's augmented views, the recipe's stages scaled to the run."""
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
        executor=config.executor,
        fallback=split_names(config.fallback),
        on_error=config.on_error,
        budget=parse_bytes(config.memory_budget),
        order=config.order,
    )
    loader.order.follow(team.of_leader(loader.order.name))  # machines with other memory may have chosen another
    return loader


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


def build_knn(config: CompleteConfig, source: Source, recipe: Recipe, team: Team) -> OnlineKNN | None:
    """What evaluates the run: the training images vote on those of the validation split. None where there is none.

    Raises:
        UserError: validation images of other classes than the data's.
    """
    queries = _queries(config) if config.knn_every else None
    bank = source
    if config.split != "train":
        bank = open_source(config.data, "train", class_list=config.class_list)
    labelled = np.flatnonzero(bank.labels != UNLABELLED)
    if queries is None or not len(labelled):
        return None
    if queries.classes != bank.classes:
        raise UserError(
            f"{config.val_data or config.data}: the classes to validate on ({', '.join(queries.classes[:3])}, …) are"
            f" not those of the data ({', '.join(bank.classes[:3])}, …): choose another --val-data, or --knn-every 0"
        )
    crop = (
        1.0 if config.size <= 64 else 0.875
    )  # small images are shown whole, photographs as ImageNet's evaluation does
    options: dict[str, Any] = {
        "recipe": evaluation(config.size, crop, like=recipe), "batch": EVALUATION_BATCH, "order": "stored",
        "keep_tail": True, "workers": threads(config, team), "device": team.device, "on_error": config.on_error,
    }  # fmt: skip
    return OnlineKNN(
        bank=make_loader("folder", Subset(bank, labelled), **options),
        queries=make_loader("folder", queries, **options),
        classes=len(bank.classes),
        k=config.knn_k,
        temperature=config.knn_temperature,
        on=config.knn_features,
    )


def _queries(config: CompleteConfig) -> Source | None:
    """The images to classify: of --val-data, which may be a single set, or of the data's own validation split."""
    own = validation_source(config.val_data or config.data, class_list=config.class_list)
    if own is not None or config.val_data is None:
        return own
    return open_source(config.val_data, class_list=config.class_list)
