"""A run saved on so many ranks goes on with another number: the very images and views that one rank would have made."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from penstock.augment import load_recipe
from penstock.loaders import make_loader
from penstock.loaders.sources.arrays import ImageArrays

IMAGES, EPOCH, SIZE = 203, 1, 16
ORDERS = ["full", "quasi:9:60"]


@pytest.fixture(scope="module")
def source():
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 20, 24, 3), np.uint8)
    return ImageArrays(pixels, np.arange(IMAGES) % 3, ("ant", "bee", "cat"), "noise")


def start(order):
    return {"seed": 0, "order": order, "samples": IMAGES, "epoch": EPOCH, "consumed": 0}


def part_of_epoch(source, world, batch, state, steps=None):
    """What `world` ranks hand out from `state` on, by sample: (views [2, 3, S, S], label); and where all of them stand.

    What the loaders were made with gives way to the state's order. Raises AssertionError where two ranks hand out the
    same sample.
    """
    found = {}
    with ExitStack() as stack:
        options = {"recipe": load_recipe("moco-v2", size=SIZE), "workers": 1, "world": world, "keep_tail": True}
        ranks = [make_loader("folder", source, rank=rank, batch=batch, **options) for rank in range(world)]
        for loader in map(stack.enter_context, ranks):
            loader.load_state_dict(state)
            for _, views in zip(range(steps or IMAGES), loader, strict=False):
                by_sample = views.groups[0].unflatten(0, (2, len(views))).transpose(0, 1)  # [N, 2, 3, S, S]
                assert found.keys().isdisjoint(views.index.tolist())
                found |= dict(zip(views.index.tolist(), zip(by_sample, views.label.tolist(), strict=True), strict=True))
        states = [loader.state_dict() for loader in ranks]
    assert all(state == states[0] for state in states)
    return found, states[0]


@pytest.fixture(scope="module", params=ORDERS)
def uninterrupted(request, source):
    return request.param, part_of_epoch(source, 1, 32, start(request.param))[0]


@pytest.mark.parametrize("worlds", [(8, 4), (8, 1), (8, 3), (3, 16), (8, 4, 1)], ids=str)
def test_saved_on_some_ranks_and_resumed_on_others(source, uninterrupted, worlds):
    order, expected = uninterrupted
    state, seen = start(order), {}
    for world in worlds[:-1]:
        part, state = part_of_epoch(source, world, 5, state, steps=2)
        assert seen.keys().isdisjoint(part) and len(part) == 10 * world
        seen |= part
    assert state == start(order) | {"consumed": len(seen)} and len(seen) < IMAGES
    rest, _ = part_of_epoch(source, worlds[-1], 7, state)
    assert seen.keys().isdisjoint(rest)
    seen |= rest
    assert seen.keys() == expected.keys() == set(range(IMAGES))
    assert all(seen[i][1] == expected[i][1] == i % 3 for i in seen)
    assert all(torch.equal(seen[i][0], expected[i][0]) for i in seen)
