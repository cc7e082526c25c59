"""A classifier that trains in a blink: its images, its backbone, its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from penstock.augment import RECIPES
from penstock.engine.evaluate.classifier_config import ClassifierConfig
from penstock.engine.evaluate.classify import ClassifierResult, train_classifier
from penstock.engine.precision import Precision
from penstock.loaders.sources import ImageArrays

CPU = torch.device("cpu")
FP32 = Precision(device=CPU, dtype=None)
SIZE, FEATURES, CLASSES = 16, 6, ("red", "green", "blue")
TINY = ClassifierConfig(epochs=3, batch=16, lr=0.5, loader="folder", workers=1)


def images(count: int, *, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> ImageArrays:
    """Noise in which the label's channel is a little brighter."""
    noise = np.random.default_rng(seed)
    pixels, labels = noise.integers(0, 200, (count, SIZE, SIZE, 3), np.uint8), noise.integers(0, len(CLASSES), count)
    pixels[np.arange(count), :, :, labels] += 25
    return ImageArrays(pixels, labels, classes, f"noise-{count}")


TRAIN, VAL = images(72), images(40, seed=1)


def tiny_backbone(*, dropout: float = 0.0) -> nn.Module:
    """[N, 3, S, S] -> [N, 6], its BatchNorm statistics as of some training."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(FEATURES)
    with torch.no_grad():
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
    return nn.Sequential(nn.Conv2d(3, FEATURES, 3, stride=2), norm, nn.ReLU(), *pool)


def fit(config: ClassifierConfig, out: Path, backbone: nn.Module | None = None, **options: Any) -> ClassifierResult:
    options = {"precision": FP32, "like": RECIPES["probe"].resized(SIZE), "progress": False} | options
    train, val = options.pop("train", TRAIN), options.pop("val", VAL)
    return train_classifier(backbone or tiny_backbone(), FEATURES, train, val, config, out=out, **options)
