"""From settings to a method: its backbone, its projection head, its loss."""

from __future__ import annotations

import torch

from penstock.augment import Recipe
from penstock.engine.backbones import build_backbone
from penstock.engine.config import CompleteConfig
from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Method
from penstock.engine.moco import MoCo, linear_head, mlp_head
from penstock.engine.split_bn import split_batch_norm
from penstock.engine.weights import load_weights
from penstock.errors import UserError


def check_views(config: CompleteConfig, recipe: Recipe) -> None:
    """Raises UserError for a recipe that does not begin with the two views of equal size that a method compares."""
    size, views = recipe.groups[0]
    count = views.stop - views.start
    if count != 2:
        raise UserError(
            f"--recipe {config.recipe} begins with {count} view{'s' * (count > 1)} of {size} px, and {config.method}"
            " compares two: choose another, such as --recipe moco-v2"
        )


def build_encoder(config: CompleteConfig, device: torch.device) -> Encoder:
    """The network to train, channels-last, its weights drawn from the seed or read from --init."""
    torch.manual_seed(config.seed)
    backbone, features = build_backbone(config.arch, width=config.width, stem=config.stem, size=config.size)
    if config.init is not None:
        load_weights(backbone, config.init, config.arch)
    if config.bn_splits > 1:
        split_batch_norm(backbone, config.bn_splits)
    head = {"linear": linear_head, "mlp": mlp_head}[config.head](features, config.dim)
    return Encoder(backbone, head).to(device).to(memory_format=torch.channels_last)


def build_method(config: CompleteConfig, team: Team) -> Method:
    """The method of a complete configuration, on the team's device."""
    return MoCo(
        build_encoder(config, team.device),
        dim=config.dim,
        queue=config.queue,
        momentum=config.momentum,
        temperature=config.temperature,
        symmetric=config.symmetric,
        seed=config.seed,
        team=team,
    )
