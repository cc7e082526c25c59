"""From settings to a method: its backbone, its projection head, its loss. One file for each method."""

from __future__ import annotations

from collections.abc import Callable

import torch

from penstock.augment import Recipe
from penstock.engine.backbones import build_backbone
from penstock.engine.config import CompleteConfig
from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Method
from penstock.engine.methods.barlow_twins import BarlowTwins
from penstock.engine.methods.byol import BYOL
from penstock.engine.methods.heads import NORMS, build_head
from penstock.engine.methods.moco import MoCo
from penstock.engine.methods.simclr import SimCLR
from penstock.engine.methods.simsiam import SimSiam
from penstock.engine.methods.swav import SwAV
from penstock.engine.split_bn import split_batch_norm
from penstock.engine.sync_bn import synchronise_batch_norm
from penstock.engine.weights import load_weights
from penstock.errors import UserError

Builder = Callable[[CompleteConfig, Encoder, Team], Method]


def build_method(config: CompleteConfig, team: Team) -> Method:
    """The method of a complete configuration, on the team's device."""
    method = BUILDERS[config.method](config, build_encoder(config, team.device), team).to(team.device)
    if config.sync_bn:
        synchronise_batch_norm(method, team)
    if config.compile != "off":
        torch._dynamo.config.recompile_limit = 64  # of one piece of code: views' sizes × networks × training or not
        for network in method.networks():
            network.compile(mode=config.compile, dynamic=False)  # views have few sizes
    return method


def build_encoder(config: CompleteConfig, device: torch.device) -> Encoder:
    """The network to train, channels-last, its weights drawn from the seed or read from --init."""
    torch.manual_seed(config.seed)
    backbone, features = build_backbone(config.arch, width=config.width, stem=config.stem, size=config.size)
    if config.init is not None:
        load_weights(backbone, config.init, config.arch)
    if config.bn_splits > 1:
        split_batch_norm(backbone, config.bn_splits)
    head = build_head(
        features,
        layers=config.head_layers,
        hidden=config.hidden or features,
        dim=config.dim,
        norm=NORMS[config.head],
    )
    return Encoder(backbone, head).to(device).to(memory_format=torch.channels_last)


def _moco(config: CompleteConfig, encoder: Encoder, team: Team) -> Method:
    both = config.method == "moco-v2+"
    return MoCo(
        encoder,
        dim=config.dim,
        queue=config.queue,
        momentum=config.momentum,
        momentum_schedule=config.momentum_schedule,
        temperature=config.temperature,
        symmetric=config.symmetric or both,
        queues=2 if both else 1,
        debias=config.debias,
        mochi=config.mochi,
        seed=config.seed,
        team=team,
    )


def _simclr(config: CompleteConfig, encoder: Encoder, team: Team) -> Method:
    return SimCLR(
        encoder,
        temperature=config.temperature,
        debias=config.debias,
        mochi=config.mochi,
        seed=config.seed,
        team=team,
    )


def _barlow_twins(config: CompleteConfig, encoder: Encoder, team: Team) -> Method:
    return BarlowTwins(encoder, dim=config.dim, redundancy=config.redundancy, team=team)


def _simsiam(config: CompleteConfig, encoder: Encoder, team: Team) -> Method:
    return SimSiam(encoder, _predictor(config), team=team)


def _byol(config: CompleteConfig, encoder: Encoder, team: Team) -> Method:
    return BYOL(
        encoder,
        _predictor(config),
        momentum=config.momentum,
        momentum_schedule=config.momentum_schedule,
        team=team,
    )


def _predictor(config: CompleteConfig) -> torch.nn.Module:
    """SimSiam's and BYOL's: from one view's projection to the other's."""
    return build_head(config.dim, layers=2, hidden=config.predictor, dim=config.dim, norm="hidden")


def _swav(config: CompleteConfig, encoder: Encoder, team: Team) -> Method:
    return SwAV(
        encoder,
        dim=config.dim,
        prototypes=config.prototypes,
        temperature=config.temperature,
        epsilon=config.epsilon,
        queue=config.queue,
        queue_start=config.queue_start / config.epochs,
        frozen=config.frozen / config.epochs,
        seed=config.seed,
        team=team,
    )


BUILDERS: dict[str, Builder] = {
    "moco-v1": _moco, "moco-v2": _moco, "moco-v2+": _moco, "simclr": _simclr, "barlow-twins": _barlow_twins,
    "simsiam": _simsiam, "byol": _byol, "swav": _swav,
}  # fmt: skip


def check_views(config: CompleteConfig, method: Method, recipe: Recipe) -> None:
    """Raises UserError for a recipe that does not begin with two views of equal size, or makes some without use."""
    size, views = recipe.groups[0]
    count = views.stop - views.start
    if count != 2:
        raise UserError(
            f"--recipe {config.recipe} begins with {count} view{'s' * (count > 1)} of {size} px, and {config.method}"
            " compares two: choose another, such as --recipe moco-v2"
        )
    if len(recipe.groups) > 1 and not method.small_views:
        raise UserError(
            f"--recipe {config.recipe} makes small views, which {config.method} does not use: choose another, such as"
            " --recipe moco-v2, or --method moco-v2 or swav"
        )
