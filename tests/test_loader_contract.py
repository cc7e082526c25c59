"""Every loader keeps the same promises (`loaders/contract.py`); test_loader_pixels.py has what our own add."""

from __future__ import annotations

import gc
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import Recipe, load_recipe
from penstock.augment.operations import ByEpoch, CenterCrop, HorizontalFlip, RandomChoice
from penstock.augment.recipe import Growth, View
from penstock.errors import BrokenImage, UserError
from penstock.loaders import LOADERS, make_loader, open_source
from penstock.loaders.lock import locked
from penstock.loaders.make import shard_path
from penstock.loaders.order import Order
from penstock.loaders.sources import ImageArrays
from tests.shared_loaders import BATCH, IMAGES, SIZE, assert_same, by_sample, collect, need, write_images

START = {"seed": 0, "order": "full", "samples": IMAGES, "epoch": 0, "consumed": 0}
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


@pytest.fixture(params=list(LOADERS))
def name(request):
    need(request.param)
    return request.param


@pytest.fixture(params=[name for name in LOADERS if name != "ffcv-package"])
def quick(request):
    """All but the package that compiles its pipelines anew for each size; test_ffcv_package.py has it."""
    need(request.param)
    return request.param


def threads():
    """Of this process, native ones too."""
    return len(os.listdir("/proc/self/task"))


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


def test_memory_of_a_size_that_is_over_does_not_lie_ready(make):
    loader = make("folder", recipe=GROWING)
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
    "wrong", [{"rank": 2, "world": 2}, {"world": 0}, {"workers": 0}, {"seed": -1}, {"dtype": torch.double}], ids=str
)
def test_what_no_loader_can_do_is_refused(wrong, make):
    with pytest.raises(UserError):
        make("folder", fresh=True, **wrong)


def test_a_gpu_that_is_not_there_is_refused(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda: torch finds no GPU"):
        make("folder", fresh=True, device="cuda")


def test_an_unknown_executor_names_those_there_are(make):
    with pytest.raises(UserError, match="'fused' is not known: choose one of auto, reference, fused_cpu"):
        make("folder", executor="fused")


def test_a_shard_is_converted_once(make, data):
    make("ffcv")
    (shard,) = [path for path in (make.cache / "shards").glob("*.beton") if data.fingerprint()[:16] in path.name]
    before = shard.stat().st_mtime_ns
    make("ffcv")
    assert shard.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["../../elsewhere", "\N{CROISSANT}" * 60], ids=["a path", "long"])
def test_any_name_of_a_set_is_a_shards_name_in_the_cache(name, tmp_path):
    source = ImageArrays(np.zeros((1, 8, 8, 3), np.uint8), [0], ["a"], name)
    shard = shard_path(source, "dali", cache=tmp_path)
    assert shard.parent == tmp_path / "shards"
    with locked(shard):  # as whoever makes it does: the longest of the names
        shard.with_name(f".{shard.name}.journal").touch()


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
