"""The loaders of a run: one that feeds the training, two that feed kNN."""

from __future__ import annotations

import os
from functools import partial

import torch

from penstock.augment import Recipe
from penstock.augment.executors import split_names
from penstock.engine.config import CompleteConfig
from penstock.engine.distributed import Team
from penstock.engine.evaluate.data import check_same_classes, in_order, labelled, open_validation, plain_view
from penstock.engine.evaluate.knn import OnlineKNN
from penstock.loaders import Loader, Source, make_loader, open_source
from penstock.loaders.threads import available_cpus
from penstock.sizes import parse_bytes


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
    if not config.knn_every:
        return None
    queries = open_validation(config.data, val_data=config.val_data, class_list=config.class_list)
    bank = source if config.split == "train" else open_source(config.data, "train", class_list=config.class_list)
    bank = labelled(bank)
    if queries is None or not len(bank):
        return None
    remedy = "choose another --val-data, or --knn-every 0"
    check_same_classes(bank, queries, name=config.val_data or config.data, remedy=remedy)
    workers, plain = threads(config, team), plain_view(config.size, recipe)
    show = partial(in_order, recipe=plain, workers=workers, device=team.device, on_error=config.on_error)
    return OnlineKNN(
        bank=show(bank),
        queries=show(queries),
        classes=len(bank.classes),
        k=config.knn_k,
        temperature=config.knn_temperature,
        on=config.knn_features,
    )
