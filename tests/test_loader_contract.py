"""Every loader keeps the same promises (`loaders/contract.py`); ours also agree with each other to the last bit."""

from __future__ import annotations

import gc
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import Recipe, draw, evaluation, load_recipe
from penstock.augment.executors import choose_executor
from penstock.augment.operations import (
    ByEpoch,
    CenterCrop,
    HorizontalFlip,
    RandomChoice,
)
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Growth, View
from penstock.errors import BrokenImage, UserError
from penstock.loaders import LOADERS, Subset, make_loader, missing, open_source
from penstock.loaders.order import Order

IMAGES, BATCH, SIZE = 22, 6, 16
START = {"seed": 0, "order": "full", "samples": IMAGES, "epoch": 0, "consumed": 0}
OURS = ["folder", "ffcv", "resident", "dali"]  # views are an executor's, on our rows
RECIPES = ["moco-v2", "albumentations-7", "pool-14", "multi-crop"]
WHOLE = CenterCrop(fraction=1.0)
FLIPPED = HorizontalFlip(p=1.0)
# A view that is flipped from epoch 1 on, one that always is, and two small ones.
CHANGING = Recipe(
    name="changing", about="",
    views=(
        View(operations=(WHOLE, ByEpoch(stages=((0, HorizontalFlip(p=0.0)), (1, FLIPPED)), of=2)), size=SIZE),
        View(operations=(WHOLE, FLIPPED), size=SIZE),
        View(operations=(WHOLE,), size=SIZE // 2, count=2),
    ),
)  # fmt: skip
# Two views and a small one, whole images, that grow at each of three epochs.
GROWING = Recipe(
    name="growing", about="",
    views=(View(operations=(WHOLE,), size=32, count=2), View(operations=(WHOLE,), size=20)),
    growth=Growth(sizes=((0, 16), (1, 24), (2, 32)), of=3),
)  # fmt: skip
GROWN = {0: (16, 10), 1: (24, 15), 2: (32, 20)}


def need(name):
    if reason := missing(name):
        pytest.skip(reason)


@pytest.fixture(params=list(LOADERS))
def name(request):
    need(request.param)
    return request.param


@pytest.fixture(params=[name for name in LOADERS if name != "ffcv-package"])
def quick(request):
    """All but the package that compiles its pipelines anew for each size; test_ffcv_package.py has it."""
    need(request.param)
    return request.param


@pytest.fixture(params=OURS)
def ours(request):
    need(request.param)
    return request.param


def write_images(folder, count=IMAGES, classes=("ant", "bee", "cat")):
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / classes[i % len(classes)] / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(20, 60, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((int(width), int(height)))
        (coarse.convert("L") if i == 4 else coarse).save(path, quality=90)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return open_source(str(folder))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def made():
    """Loaders by what they were made with: some take seconds to compile, so tests share them."""
    loaders = {}
    yield loaders
    for loader in loaders.values():
        loader.close()


@pytest.fixture
def make(data, cache, made):
    def build(name, source=data, fresh=False, **options):
        # the ffcv package compiles every pipeline anew, jitter for half a minute
        recipe = load_recipe("a" if name == "ffcv-package" else "moco-v2", size=SIZE)
        options = {"batch": BATCH, "workers": 2, "recipe": recipe, "cache": cache} | options
        key = (name, id(source), *sorted(options.items(), key=str))
        if fresh:
            return make_loader(name, source, **options)
        if key not in made:
            made[key] = make_loader(name, source, **options)
        return made[key]

    return build


def collect(batches):
    batches = list(batches)
    return torch.cat([views.index for views in batches]), torch.cat([views.label for views in batches]), batches


def by_sample(batches):
    """Every sample's views, [V, 3, S, S] for each group, by its index."""
    found = {}
    for views in batches:
        groups = [group.unflatten(0, (-1, len(views))) for group in views.groups]
        found |= {int(i): [group[:, n] for group in groups] for n, i in enumerate(views.index)}
    return found


def assert_same_views(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(a, b) for i in first for a, b in zip(first[i], second[i], strict=True))


def threads():
    """Of this process, native ones too."""
    return len(os.listdir("/proc/self/task"))


def assert_same(first, second):
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.index, theirs.index) and torch.equal(ours.label, theirs.label)
        assert all(torch.equal(a, b) for a, b in zip(ours.groups, theirs.groups, strict=True))


def test_an_epoch_follows_the_order_with_the_right_labels(name, make, data):
    index, label, batches = collect(make(name).epoch(3))
    order = Order(len(data), BATCH)
    expected = np.concatenate([order.indices(3, step) for step in range(order.steps())])
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(label, data.labels[expected])
    assert len(batches) == len(make(name)) == IMAGES // BATCH


def test_a_kept_tail_covers_every_sample_once(name, make):
    index, _, batches = collect(make(name, keep_tail=True).epoch(0))
    assert sorted(index.tolist()) == list(range(IMAGES))
    assert len(batches[-1]) == IMAGES % BATCH and len(batches[-1].groups[0]) == 2 * (IMAGES % BATCH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_are_normalised_channels_last_tensors(name, make, dtype):
    options = {} if dtype == torch.float32 else {"dtype": dtype}
    views = next(make(name, **options).epoch(0))
    (group,) = views.groups
    assert group.shape == (2 * BATCH, 3, SIZE, SIZE) and group.dtype == dtype
    assert group.is_contiguous(memory_format=torch.channels_last) or name == "torchvision"
    assert torch.isfinite(group).all() and 0.1 < group.float().std() < 3
    assert views.index.dtype == views.label.dtype == torch.int64


def test_the_two_views_of_a_sample_differ(name, make):
    query, key = next(make(name).epoch(0)).groups[0].chunk(2)
    assert all(not torch.equal(q, k) for q, k in zip(query, key, strict=True))


def test_views_of_several_kinds_and_strengths_that_depend_on_the_epoch(name, make):
    """Groups by size, views in the recipe's order, and workers that outlive epochs follow what is in force."""
    for epoch in (0, 1):
        views = next(make(name, recipe=CHANGING).epoch(epoch))
        large, small = views.groups
        assert large.shape == (2 * BATCH, 3, SIZE, SIZE) and small.shape == (2 * BATCH, 3, SIZE // 2, SIZE // 2)
        if name == "synthetic":
            continue
        first, second = large.chunk(2)
        assert torch.equal(first if epoch else first.flip(3), second)
        assert torch.equal(*small.chunk(2)) and not torch.equal(first, first.flip(3))


def test_views_grow_from_epoch_to_epoch(quick, make, data):
    """Also back again, and with batches of another size on their way: sizes are the epoch's, nothing else's."""
    loader = make(quick, recipe=GROWING)
    next(loader.epoch(2))  # and the rest of it is dropped
    for epoch in (0, 1, 2, 0):
        batches = list(loader.epoch(epoch))
        assert len(batches) == len(loader)
        for views in batches:
            large, small = views.groups
            side, small_side = GROWN[epoch]
            assert large.shape == (2 * BATCH, 3, side, side) and small.shape == (BATCH, 3, small_side, small_side)
            assert large.is_contiguous(memory_format=torch.channels_last) or quick == "torchvision"
            if quick != "synthetic":
                assert torch.equal(*large.chunk(2))
                for view, i in zip(large, views.index.tolist(), strict=False):
                    assert (coarse(view) - coarse(square(data, i))).abs().mean() < 0.3


def square(data, i):
    """The image's central square, normalised, [3, S, S]."""
    image = Image.open(data.path(i)).convert("RGB")
    (width, height), side = image.size, min(image.size)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = torch.from_numpy(np.asarray(image)[top : top + side, left : left + side].copy()).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(GROWING.mean)[:, None, None]) / torch.tensor(GROWING.std)[:, None, None]


def coarse(view):
    """[3, S, S] as the means of 4 × 4 fields, so that pictures of all sizes can be held against each other."""
    return torch.nn.functional.adaptive_avg_pool2d(view[None].contiguous(), 4)[0]


def test_an_empty_part_of_a_kept_tail_has_the_epochs_size(quick, make):
    for epoch, (side, small_side) in GROWN.items():  # and the part is empty in each of them
        *_, last = make(quick, recipe=GROWING, rank=1, world=2, batch=5, keep_tail=True).epoch(epoch)
        assert [group.shape for group in last.groups] == [(0, 3, side, side), (0, 3, small_side, small_side)]


def test_a_batch_splits_into_its_views(make):
    views = next(make("folder", recipe=CHANGING).epoch(0))
    large, small = views.groups
    parts = views.split()
    assert [part.shape for part in parts] == 2 * [(BATCH, 3, SIZE, SIZE)] + 2 * [(BATCH, 3, SIZE // 2, SIZE // 2)]
    assert torch.equal(torch.cat(parts[:2]), large) and torch.equal(torch.cat(parts[2:]), small)


def test_a_random_choice_takes_one_of_its_operations(make):
    choice = RandomChoice(operations=(FLIPPED, None))
    recipe = Recipe(name="choice", about="", views=(View(operations=(WHOLE,)), View(operations=(WHOLE, choice))))
    for name in ("torchvision", "folder"):
        whole = by_sample(make(name, recipe=recipe.resized(SIZE)).epoch(0))
        views = [groups[0] for groups in whole.values()]
        flipped = [torch.equal(plain.flip(2), chosen) for plain, chosen in views]
        kept = [torch.equal(plain, chosen) for plain, chosen in views]
        assert any(flipped) and any(kept) and all(f != k for f, k in zip(flipped, kept, strict=True))


@pytest.mark.parametrize("options", [{}, {"recipe": load_recipe("multi-crop", size=SIZE)}], ids=["pair", "multi-crop"])
def test_batches_own_their_memory(name, options, make):
    options = {} if name == "ffcv-package" else options
    kept, copies = [], []
    for epoch in range(2):
        for views in make(name, **options).epoch(epoch):
            kept.append(views)
            copies.append([group.clone() for group in views.groups])
    gc.collect()
    assert all(
        torch.equal(a, b)
        for views, copy in zip(kept, copies, strict=True)
        for a, b in zip(views.groups, copy, strict=True)
    )


def test_batches_that_are_kept_while_views_grow_do_not_change(quick, make):
    kept, copies = [], []
    for epoch in (0, 1, 2, 0, 2):
        for views in make(quick, recipe=GROWING).epoch(epoch):
            kept += views.groups[epoch % 2 :]  # of some batches a part only
            copies += [group.clone() for group in views.groups[epoch % 2 :]]
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize("loader", ["folder", "synthetic"])
def test_memory_of_a_size_that_is_over_does_not_lie_ready(loader, make):
    loader = make(loader, recipe=GROWING)
    for epoch, (large, small) in GROWN.items():
        list(loader.epoch(epoch))
        gc.collect()
        shapes = (2 * BATCH * 3 * large**2, BATCH * 3 * small**2)
        assert set(loader.memory._free) == {4 * numbers for numbers in shapes}


def test_ranks_share_an_epoch_without_overlap(name, make):
    shares = [collect(make(name, rank=rank, world=2, batch=5, keep_tail=True).epoch(1)) for rank in range(2)]
    assert sorted(torch.cat([index for index, _, _ in shares]).tolist()) == list(range(IMAGES))
    _, _, batches = shares[1]
    assert [len(views) for views in batches] == [5, 5, 0]  # two samples are left, and rank 0 takes them
    assert batches[-1].groups[0].shape == (0, 3, SIZE, SIZE)


def test_an_early_break_leaves_the_loader_usable(name, make):
    loader = make(name)
    expected = collect(loader.epoch(1))[0]
    for _ in loader.epoch(0):
        break
    assert torch.equal(collect(loader.epoch(1))[0], expected)


def test_a_closed_loader_leaves_no_threads(name, make):
    next(make(name).epoch(0))  # what libraries start once and keep is there from now on
    before = threads()
    loader = make(name, fresh=True)
    next(loader.epoch(0))
    loader.close()
    deadline = time.monotonic() + 10
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threads() <= before
    del loader


def test_iterating_walks_epochs_and_remembers_what_was_handed_out(name, make):
    loader = make(name)
    loader.load_state_dict(START)
    first = [views.index for views in loader]
    assert loader.state_dict() == START | {"epoch": 1}
    second = iter(loader)
    whole = [next(second).index, next(second).index]
    state = loader.state_dict()  # taken while more is prefetched
    assert state == START | {"epoch": 1, "consumed": 2 * BATCH}
    whole += [views.index for views in second]
    assert not torch.equal(torch.cat(first), torch.cat(whole))
    loader.load_state_dict(state)
    assert torch.equal(torch.cat([views.index for views in loader]), torch.cat(whole[2:]))


def test_a_run_goes_on_in_mid_epoch_at_the_size_it_had(quick, make):
    loader = make(quick, recipe=GROWING)
    loader.load_state_dict(START)
    whole = [list(loader) for _ in range(3)]
    loader.load_state_dict(START | {"epoch": 1, "consumed": 2 * BATCH})
    rest = [list(loader) for _ in range(2)]
    for views, again in zip([*whole[1][2:], *whole[2]], [*rest[0], *rest[1]], strict=True):
        assert torch.equal(views.index, again.index)
        assert [group.shape for group in views.groups] == [group.shape for group in again.groups]
        if quick != "synthetic":
            assert_same([views], [again])  # whole images: nothing in them is drawn


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


@pytest.mark.parametrize("executor", ["reference", "fused_cpu", "albumentations"])
def test_executors_make_the_same_views_but_for_rounding(ours, make, executor):
    """Of crops that need no resizing: Albumentations does not antialias."""
    whole = View(operations=(WHOLE, *load_recipe("moco-v2").views[0].operations[1:]), size=SIZE, count=2)
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


@pytest.mark.parametrize("given", [{"executor": "fused_cpu"}, {"fallback": ("clahe",)}], ids=["executor", "fallback"])
@pytest.mark.parametrize("loader", ["torchvision", "ffcv-package", "synthetic"])
def test_a_loader_with_its_own_augmentation_takes_no_executor(loader, given, make):
    need(loader)
    with pytest.raises(UserError, match=f"--{next(iter(given))}: the {loader} loader brings its own augmentation"):
        make(loader, **given)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"samples": IMAGES + 1}])
def test_the_state_of_another_order_is_refused(changed, make):
    loader = make("folder")
    with pytest.raises(UserError, match=f"a loader with {next(iter(changed))}"):
        loader.load_state_dict(START | changed)


@pytest.mark.parametrize(
    "wrong", [{"rank": 2, "world": 2}, {"world": 0}, {"workers": 0}, {"seed": -1}, {"dtype": torch.int8}], ids=str
)
def test_what_no_loader_can_do_is_refused(wrong, make):
    with pytest.raises(UserError):
        make("folder", fresh=True, **wrong)


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


def test_an_unknown_executor_names_those_there_are(make):
    with pytest.raises(UserError, match="'fused' is not known: choose one of auto, reference, fused_cpu"):
        make("folder", executor="fused")


def test_seeds_change_the_views(ours, make):
    one, other = (next(make(ours, seed=seed, order="stored").epoch(0)).groups[0] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_epochs_change_the_views(ours, make):
    loader = make(ours, order="stored")
    assert not torch.equal(next(loader.epoch(0)).groups[0], next(loader.epoch(1)).groups[0])


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


def test_a_shard_is_converted_once(make, cache, data):
    make("ffcv")
    (shard,) = [path for path in (cache / "shards").glob("*.beton") if data.fingerprint()[:16] in path.name]
    before = shard.stat().st_mtime_ns
    make("ffcv")
    assert shard.stat().st_mtime_ns == before


@pytest.mark.parametrize("reader", ["folder", "torchvision"])
def test_a_broken_image_is_named_and_the_loader_can_be_closed(tmp_path, make, reader):
    write_images(tmp_path)
    broken = tmp_path / "bee" / "001.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    loader = make(reader, open_source(str(tmp_path)), fresh=True, keep_tail=True)
    with pytest.raises(BrokenImage, match=r"bee/001\.jpg: cannot decode this image"):
        list(loader.epoch(0))
    loader.close()


def test_the_dali_pipeline_holds_dalis_decoder(make):
    need("dali")
    pipe = make("dali")._build()
    assert b"decoders__Image" in pipe.serialize()


def test_an_unknown_loader_names_those_there_are(data):
    with pytest.raises(UserError, match="'dalli' is not known: choose one of torchvision, folder, ffcv, res"):
        make_loader("dalli", data, recipe=load_recipe("moco-v2", size=SIZE), batch=2)
