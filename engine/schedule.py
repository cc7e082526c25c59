"""The learning rate: a pure function of how far the run is, so a resumed run needs no state of it."""

from __future__ import annotations

import math

from penstock.engine.config import CompleteConfig


def learning_rate(config: CompleteConfig, progress: float) -> float:
    """The learning rate at `progress` epochs (3.5: half-way through the fourth), of a completed configuration."""
    return scheduled(
        progress,
        schedule=config.schedule,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        drops=config.drops,
        peak=config.lr,
        final=config.final_lr,
    )


def scheduled(
    progress: float,
    *,
    schedule: str,
    epochs: int,
    warmup_epochs: float,
    drops: tuple[float, ...],
    peak: float = 1.0,
    final: float = 0.0,
) -> float:
    """A linear rise to the peak, then tenths of it behind each drop (`step`), or a cosine down to `final`."""
    if progress < warmup_epochs:
        return peak * progress / warmup_epochs
    if schedule == "step":
        return peak * 0.1 ** sum(progress >= drop * epochs for drop in drops)
    share = (progress - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return final + (peak - final) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
