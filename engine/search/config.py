"""What a search can be told: every setting of a training, and its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Suppress

from penstock.engine.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Search for a better recipe. Besides every setting of a training:"""

    # Search
    trials: int | None = None
    """Recipes to try, the one given among them; default: 20, or as many as --minutes allow."""
    minutes: float | None = None
    """Begin no trial after so many minutes, those before an interruption counted."""
    add: tuple[str, ...] = ()
    """Operations that may be added behind the recipe's, in this order: solarize clahe randombrightnesscontrast …"""
    held_out: int | None = None
    """Training images to score by, which no trial trains on; default: 5,000, or a fifth of the data. With --val-data:
    none, its images score."""
    pruner: str = "median"
    """Give up a trial: median (once it is worse than half of those before it were at that epoch), asha (unless it is
    among the best third), or none."""
    prune_after: int | None = None
    """Epochs that every trial is given; default: a third of the run."""
    confirm: int = 0
    """Train the best recipe, and the one given, anew with so many other seeds each; not counted by --minutes."""

    # As a training's, but of another meaning
    out: Path | None = None
    """Where all of it goes; default: runs/search-RECIPE, where the same command goes on."""
    resume: Suppress[str | None] = None
    """No option here: a search goes on by the same command."""
