"""The learning rate: a pure function of how far the run is, so a resumed run needs no state of it."""

from __future__ import annotations

import math

from penstock.engine.config import CompleteConfig


def learning_rate(config: CompleteConfig, progress: float) -> float:
    """The learning rate at `progress` epochs (3.5: half-way through the fourth), of a completed configuration."""
    if progress < config.warmup_epochs:
        return config.lr * progress / config.warmup_epochs
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(progress >= drop * config.epochs for drop in config.drops)
    share = (progress - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.final_lr + (config.lr - config.final_lr) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
