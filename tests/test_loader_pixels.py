"""Our loaders agree to the last bit: with each other, with the executors, whatever the workers, ranks and stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import Recipe, draw, evaluation, load_recipe
from penstock.augment.executors import choose_executor
from penstock.augment.operations import CenterCrop
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import View
from penstock.loaders import Subset, open_source
from penstock.loaders.order import Order
from tests.shared_loaders import (
    BATCH,
    IMAGES,
    SIZE,
    assert_same,
    assert_same_views,
    by_sample,
    collect,
    need,
    write_images,
)

OURS = ["folder", "ffcv", "resident", "dali"]  # views are an executor's, on our rows
RECIPES = ["moco-v2", "albumentations-7", "pool-14", "multi-crop"]


@pytest.fixture(params=OURS)
def ours(request):
    need(request.param)
    return request.param


@pytest.fixture(params=RECIPES)
def recipe(request):
    return load_recipe(request.param, size=24)  # rain takes more than 20 px


def test_workers_ranks_and_going_on_change_no_pixel(ours, recipe, make):
    whole = list(make(ours, recipe=recipe).epoch(2))
    for workers in (1, 7):
        with make(ours, recipe=recipe, workers=workers, fresh=True) as loader:
            assert_same(whole, list(loader.epoch(2)))
            assert_same(whole[2:], list(loader.epoch(2, consumed=2 * BATCH)))
    ranks = [make(ours, recipe=recipe, fresh=True, rank=rank, world=2, batch=BATCH // 2) for rank in range(2)]
    shares = [by_sample(loader.epoch(2)) for loader in ranks]
    assert_same_views(by_sample(whole), shares[0] | shares[1])
    for loader in ranks:
        loader.close()


@pytest.mark.parametrize("other", OURS[1:])
def test_our_loaders_give_the_same_pixels(other, recipe, make):
    need(other)
    assert_same(list(make("folder", recipe=recipe).epoch(0)), list(make(other, recipe=recipe).epoch(0)))


def test_views_are_the_executors_of_the_image_as_pillow_reads_it(ours, recipe, make, data):
    executor = choose_executor("auto", recipe)
    for views in make(ours, recipe=recipe, keep_tail=True).epoch(1):
        index = views.index.numpy()
        pixels = Pixels.from_images([np.asarray(Image.open(data.path(i)).convert("RGB")) for i in index])
        rows = draw(recipe, seed=0, epoch=1, index=index, height=pixels.height, width=pixels.width)
        for group, made in zip(recipe.groups, views.groups, strict=True):
            expected = torch.empty_like(made)
            executor(pixels, rows.views(group.views), recipe, expected.unflatten(0, (-1, len(index))))
            assert torch.equal(made, expected)


def test_growing_views_are_the_executors_of_the_image_at_the_epochs_size(ours, recipe, make, data):
    growing, executor = recipe.resized(32).growing(24, step=4), choose_executor("auto", recipe)
    loader = make(ours, recipe=growing, keep_tail=True)
    for epoch, side in ((2, 32), (0, 24), (1, 28)):
        plain = recipe.resized(32).resized(side)
        for views in loader.epoch(epoch):
            index = views.index.numpy()
            pixels = Pixels.from_images([np.asarray(Image.open(data.path(i)).convert("RGB")) for i in index])
            rows = draw(plain, seed=0, epoch=epoch, index=index, height=pixels.height, width=pixels.width)
            for group, made in zip(plain.groups, views.groups, strict=True):
                expected = made.new_empty(
                    (group.views.stop - group.views.start) * len(index), 3, group.size, group.size
                )
                expected = expected.to(memory_format=torch.channels_last)
                executor(pixels, rows.views(group.views), plain, expected.unflatten(0, (-1, len(index))))
                assert torch.equal(made, expected)


def test_workers_ranks_and_going_on_change_no_pixel_of_growing_views(ours, make):
    recipe = load_recipe("multi-crop", size=32).growing(16).over(6)
    whole = [view for epoch in range(6) for view in make(ours, recipe=recipe).epoch(epoch)]
    with make(ours, recipe=recipe, workers=7, fresh=True) as loader:
        begun = [views for _ in range(3) for views in loader]
        begun += [views for _, views in zip(range(2), loader, strict=False)]  # stopped in mid-epoch
        state = loader.state_dict()
    with make(ours, recipe=recipe, workers=1, fresh=True) as loader:
        loader.load_state_dict(state)
        rest = [views for _ in range(6 - state["epoch"]) for views in loader]
    assert_same(whole[: len(begun)], begun)
    consumed = 3 * (IMAGES // BATCH) + state["consumed"] // BATCH
    assert_same(whole[consumed:], rest)
    for epoch in (1, 2, 5):
        shares = {}
        for rank in range(2):
            with make(ours, recipe=recipe, fresh=True, rank=rank, world=2, batch=BATCH // 2) as loader:
                shares |= by_sample(loader.epoch(epoch))
        assert_same_views(by_sample(make(ours, recipe=recipe).epoch(epoch)), shares)


def test_epochs_of_two_sizes_at_once(make):
    """One thread's batches are of one size while another's are of the other."""
    recipe = load_recipe("multi-crop", size=32).growing(16, step=16)
    loader = make("folder", recipe=recipe)
    alone = [list(loader.epoch(epoch)) for epoch in (0, 1)]
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert_same(alone[0], [small for small, _ in pairs])
    assert_same(alone[1], [large for _, large in pairs])


def test_no_two_epochs_show_the_same_views(recipe, make):
    loader = make("folder", recipe=recipe)
    seen = [by_sample(loader.epoch(epoch)) for epoch in range(4)]
    for i in range(IMAGES):
        views = [tuple(group.numpy().tobytes() for group in epoch[i]) for epoch in seen if i in epoch]
        assert len(set(views)) == len(views)


def test_seeds_change_the_views(ours, make):
    one, other = (next(make(ours, seed=seed, order="stored").epoch(0)).groups[0] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_epochs_change_the_views(ours, make):
    loader = make(ours, order="stored")
    assert not torch.equal(next(loader.epoch(0)).groups[0], next(loader.epoch(1)).groups[0])


@pytest.mark.parametrize("executor", ["reference", "fused_cpu", "albumentations"])
def test_executors_make_the_same_views_but_for_rounding(ours, make, executor):
    """Of crops that need no resizing: Albumentations does not antialias."""
    whole = View(
        operations=(CenterCrop(fraction=1.0), *load_recipe("moco-v2").views[0].operations[1:]), size=SIZE, count=2
    )
    loaders = [make(ours, recipe=Recipe(name="", about="", views=(whole,)), executor=e) for e in ("auto", executor)]
    auto, other = (next(loader.epoch(0)).groups[0] for loader in loaders)
    assert loaders[1].executor.name == executor
    assert (auto - other).abs().mean() < (0.3 if executor == "albumentations" else 0.01)


def test_operations_that_fall_back_are_counted_and_change_little(ours, make):
    recipe = load_recipe("albumentations-7", size=SIZE)
    with (
        make(ours, recipe=recipe, fresh=True) as plain,
        make(ours, recipe=recipe, fallback=("Solarize", "clahe"), fresh=True) as fallen,
    ):
        assert (next(plain.epoch(0)).groups[0] - next(fallen.epoch(0)).groups[0]).abs().mean() < 0.05
    assert fallen.executor.rows >= 2 * BATCH and fallen.executor.routed > 0


def test_evaluation_views_are_the_same_in_our_loaders(make):
    options = {"recipe": evaluation(SIZE), "order": "stored", "keep_tail": True}
    batches = list(make("folder", **options).epoch(0))
    assert_same(batches, list(make("ffcv", **options).epoch(0)))
    assert torch.cat([views.index for views in batches]).tolist() == list(range(IMAGES))


def test_a_subset_keeps_its_own_indices(ours, make, data):
    chosen = Subset(data, [9, 2, 5, 14])
    index, label, _ = collect(make(ours, chosen, batch=2).epoch(0))
    assert sorted(index.tolist()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(label, data.labels[chosen.indices[index]])


def test_broken_images_give_way_to_the_same_ones_in_all_our_loaders(ours, make, tmp_path):
    write_images(tmp_path)
    whole = by_sample(make("folder", open_source(str(tmp_path)), fresh=True, keep_tail=True).epoch(1))
    for name in ("ant/000.jpg", "bee/001.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    source = open_source(str(tmp_path))
    places = {source.location(i).removeprefix(f"{tmp_path}/"): i for i in range(IMAGES)}
    broken = [places["ant/000.jpg"], places["bee/001.jpg"]]
    with make(ours, source, fresh=True, keep_tail=True, on_error="skip") as loader:
        index, label, batches = collect(loader.epoch(1))
        assert len(index) == len(loader.source) == IMAGES and set(loader.skipped) == set(broken)
        order = Order(IMAGES, BATCH, keep_tail=True)
        wanted = np.concatenate([order.indices(1, step) for step in range(order.steps())])
        taken = [int(i + (i in broken)) for i in wanted]
        assert index.tolist() == taken and label.tolist() == source.labels[taken].tolist()
        assert_same_views(by_sample(batches), {i: whole[i] for i in taken})
