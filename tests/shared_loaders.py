"""A few small images, and loaders of them that tests share: the fixtures `data` and `make` of conftest.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import load_recipe
from penstock.loaders import Loader, Source, Views, make_loader, missing

IMAGES, BATCH, SIZE = 22, 6, 16


class SharedLoaders:
    """Makes loaders, and keeps them by what they were made with: some take seconds to compile, so tests share them."""

    def __init__(self, source: Source, cache: Path) -> None:
        """`source`: what is loaded where nothing else is said."""
        self.source, self.cache = source, cache
        self.made: dict[tuple[Any, ...], Loader] = {}

    def __call__(self, name: str, source: Source | None = None, *, fresh: bool = False, **options: Any) -> Loader:
        """`fresh`: one that is not shared, and is the caller's to close."""
        # the ffcv package compiles every pipeline anew, jitter for half a minute
        recipe = load_recipe("a" if name == "ffcv-package" else "moco-v2", size=SIZE)
        options = {"batch": BATCH, "workers": 2, "recipe": recipe, "cache": self.cache} | options
        source = self.source if source is None else source
        key = (name, id(source), *sorted(options.items(), key=str))
        if fresh:
            return make_loader(name, source, **options)
        if key not in self.made:
            self.made[key] = make_loader(name, source, **options)
        return self.made[key]

    def close(self) -> None:
        for loader in self.made.values():
            loader.close()


def need(name: str) -> None:
    """Skip the test where a loader is not installed."""
    if reason := missing(name):
        pytest.skip(reason)


def write_images(folder: Path, count: int = IMAGES, classes: tuple[str, ...] = ("ant", "bee", "cat")) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / classes[i % len(classes)] / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(20, 60, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((int(width), int(height)))
        (coarse.convert("L") if i == 4 else coarse).save(path, quality=90)


def collect(batches: Iterable[Views]) -> tuple[torch.Tensor, torch.Tensor, list[Views]]:
    """The indices and the labels of an epoch, and its batches."""
    batches = list(batches)
    return torch.cat([views.index for views in batches]), torch.cat([views.label for views in batches]), batches


def by_sample(batches: Iterable[Views]) -> dict[int, list[torch.Tensor]]:
    """Every sample's views, [V, 3, S, S] for each group, by its index."""
    found = {}
    for views in batches:
        groups = [group.unflatten(0, (-1, len(views))) for group in views.groups]
        found |= {int(i): [group[:, n] for group in groups] for n, i in enumerate(views.index)}
    return found


def assert_same_views(first: dict[int, list[torch.Tensor]], second: dict[int, list[torch.Tensor]]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(a, b) for i in first for a, b in zip(first[i], second[i], strict=True))


def assert_same(first: list[Views], second: list[Views]) -> None:
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.index, theirs.index) and torch.equal(ours.label, theirs.label)
        assert all(torch.equal(a, b) for a, b in zip(ours.groups, theirs.groups, strict=True))
