"""Every loader keeps the same promises (`loaders/contract.py`); ours also agree with each other to the last bit."""

from __future__ import annotations

import gc
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import evaluation, load_recipe
from penstock.errors import BrokenImage, UserError
from penstock.loaders import LOADERS, Subset, make_loader, missing, open_source
from penstock.loaders.order import Order

IMAGES, BATCH, SIZE = 22, 6, 16
OURS = ["folder", "ffcv", "dali"]  # pixels are the reference executor's, on our rows
OWN_PIXELS = ["torchvision", "ffcv-package"]  # bring their own augmentation


def need(name):
    if reason := missing(name):
        pytest.skip(reason)


@pytest.fixture(params=list(LOADERS))
def name(request):
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
        options = {"batch": BATCH, "workers": 2, "recipe": load_recipe("moco-v2", size=SIZE), "cache": cache} | options
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


def test_batches_own_their_memory(name, make):
    kept, copies = [], []
    for epoch in range(2):
        for views in make(name).epoch(epoch):
            kept.append(views)
            copies.append([group.clone() for group in views.groups])
    gc.collect()
    assert all(
        torch.equal(a, b)
        for views, copy in zip(kept, copies, strict=True)
        for a, b in zip(views.groups, copy, strict=True)
    )


def test_ranks_share_an_epoch_without_overlap(name, make):
    seen = [collect(make(name, rank=rank, world=2, batch=3).epoch(1))[0] for rank in range(2)]
    order = Order(IMAGES, 6)
    whole = np.concatenate([order.indices(1, step) for step in range(order.steps())])
    assert sorted(torch.cat(seen).tolist()) == sorted(whole.tolist())
    assert not set(seen[0].tolist()) & set(seen[1].tolist())


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
    loader.load_state_dict({"epoch": 0, "consumed": 0})
    first = [views.index for views in loader]
    assert loader.state_dict() == {"seed": 0, "epoch": 1, "consumed": 0}
    second = iter(loader)
    whole = [next(second).index, next(second).index]
    state = loader.state_dict()  # taken while more is prefetched
    assert state == {"seed": 0, "epoch": 1, "consumed": 2 * BATCH}
    whole += [views.index for views in second]
    assert not torch.equal(torch.cat(first), torch.cat(whole))
    loader.load_state_dict(state)
    assert torch.equal(torch.cat([views.index for views in loader]), torch.cat(whole[2:]))


def test_going_on_equals_never_stopping(ours, make):
    whole = list(make(ours).epoch(2))
    assert_same(whole[2:], list(make(ours).epoch(2, consumed=2 * BATCH)))


def test_the_number_of_threads_changes_nothing(ours, make):
    assert_same(list(make(ours, workers=1).epoch(0)), list(make(ours, workers=3).epoch(0)))


@pytest.mark.parametrize("executor", ["reference", "fused_cpu"])
def test_executors_make_the_same_views_but_for_rounding(ours, make, executor):
    auto, other = (next(make(ours, executor=name).epoch(0)).groups[0] for name in ("auto", executor))
    assert (auto - other).abs().mean() < 0.01


def test_a_loader_with_its_own_augmentation_takes_no_executor(make):
    with pytest.raises(UserError, match="the torchvision loader brings its own augmentation"):
        make("torchvision", executor="fused_cpu")


def test_an_unknown_executor_names_those_there_are(make):
    with pytest.raises(UserError, match="'fused' is not known: choose one of auto, reference, fused_cpu"):
        make("folder", executor="fused")


def test_seeds_change_the_views(ours, make):
    one, other = (next(make(ours, seed=seed, shuffle=False).epoch(0)).groups[0] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_epochs_change_the_views(ours, make):
    loader = make(ours, shuffle=False)
    assert not torch.equal(next(loader.epoch(0)).groups[0], next(loader.epoch(1)).groups[0])


@pytest.mark.parametrize("other", ["ffcv", "dali"])
def test_our_loaders_give_the_same_pixels(other, make):
    need(other)
    assert_same(list(make("folder").epoch(0)), list(make(other).epoch(0)))


def test_evaluation_views_are_the_same_in_our_loaders(make):
    options = {"recipe": evaluation(SIZE), "shuffle": False, "keep_tail": True}
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
    with pytest.raises(UserError, match="'dalli' is not known: choose one of torchvision, folder, ffcv, dali"):
        make_loader("dalli", data, recipe=load_recipe("moco-v2", size=SIZE), batch=2)
