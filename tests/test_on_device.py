"""A batch's way to an executor on a GPU: there, or by the same code on tensors of the CPU, where Triton interprets.

What holds with a GPU only (streams, events, pinned memory) is held with stand-ins that note what is asked of them.
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import Pixels, draw
from penstock.augment.executors import Executor, choose_executor
from penstock.augment.operations import CenterCrop, HorizontalFlip, RandomResizedCrop, Solarize
from penstock.augment.recipe import Recipe, View
from penstock.engine.data import _views_in
from penstock.engine.precision import Precision
from penstock.errors import BrokenImage
from penstock.loaders import on_device, open_source
from penstock.loaders.contract import Options
from penstock.loaders.convert import convert
from penstock.loaders.fetched import Fetched, TensorPixels
from penstock.loaders.formats import open_shard
from penstock.loaders.order import Order
from penstock.loaders.pipeline import UNDER_WAY, PipelineLoader
from penstock.loaders.resident import ResidentLoader, ResidentSource
from penstock.loaders.sources.arrays import ImageArrays

pytest.importorskip("triton", reason="the fused GPU executor is written in Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMAGES, BATCH, SIZE = 5, 2, 16
CROP = RandomResizedCrop(scale=(0.2, 1.0))
RECIPE = Recipe(
    name="", about="",
    views=(View(operations=(CROP, HorizontalFlip(p=0.5)), size=SIZE, count=2), View(operations=(CROP,), size=8)),
)  # fmt: skip
ROUTED = Recipe(name="", about="", views=(View(operations=(CROP, Solarize(p=0.5)), size=SIZE, count=2),))


def write_images(folder):
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        height, width = rng.integers(20, 60, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((int(width), int(height)))
        (folder / "a").mkdir(exist_ok=True)
        coarse.save(folder / "a" / f"{i:02}.jpg", quality=90)
    return open_source(str(folder))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def raw(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "raw.beton"
    convert(files, path, encoding="raw", workers=1, progress=False)
    return open_shard(path)


@pytest.fixture(scope="module")
def arrays(files):
    small = np.stack([files.decode(i)[:20, :20] for i in range(IMAGES)])
    return ImageArrays(small, np.zeros(IMAGES), ["a"], "arrays")


def options(recipe=RECIPE, workers=3, keep_tail=False, world=1, rank=0, length=IMAGES, **more):
    order = Order(length, BATCH, keep_tail=keep_tail, world=world, rank=rank)
    return Options(recipe=recipe, order=order, workers=workers, device=DEVICE, executor="fused_gpu", **more)


def of_images(images, index, recipe, epoch=0):
    """What one call of the executor for each group makes of a batch's images."""
    executor, pixels, made = choose_executor("fused_gpu", recipe, device=DEVICE), Pixels.from_images(images), []
    rows = draw(recipe, seed=0, epoch=epoch, index=index, height=pixels.height, width=pixels.width)
    for size, views in recipe.groups:
        shape = views.stop - views.start, len(index), size, size, 3
        out = torch.empty(shape, device=DEVICE).permute(0, 1, 4, 2, 3)
        executor(pixels, rows.views(views), recipe, out)
        made.append(out.flatten(0, 1))
    return made


def assert_made_of(batches, source, recipe):
    for views in batches:
        index = views.index.numpy()
        expected = of_images([np.array(source.decode(i)) for i in index], index, recipe)
        assert all(torch.equal(a, b) for a, b in zip(views.groups, expected, strict=True))


@pytest.fixture
def calls(monkeypatch):
    """(bytes of the images at hand, how many samples) of each call of an executor."""
    noted, run = [], Executor.run

    def counted(self, pixels, work, recipe, out):
        noted.append((len(pixels.data), out.shape[1]))
        return run(self, pixels, work, recipe, out)

    monkeypatch.setattr(Executor, "run", counted)
    return noted


@pytest.mark.parametrize(("kind", "workers"), [("files", 1), ("files", 5), ("raw", 2), ("arrays", 2)])
def test_views_are_those_of_the_images_whatever_the_number_of_threads(kind, workers, request):
    source = request.getfixturevalue(kind)
    with PipelineLoader(source, options(workers=workers)) as loader:
        batches = list(loader.epoch(0))
    assert [len(views) for views in batches] == [BATCH] * (IMAGES // BATCH)
    assert_made_of(batches, source, RECIPE)


@pytest.mark.parametrize("kind", ["files", "raw", "arrays"])
def test_one_call_makes_a_group_of_the_whole_batch(kind, request, calls, monkeypatch):
    """Of its images alone: a file of raw images, or an array of all, stays where it is."""
    source = request.getfixturevalue(kind)
    monkeypatch.setattr(PipelineLoader, "_chunk", lambda *_: 1)
    with PipelineLoader(source, options(workers=2)) as loader:
        batches = list(loader.epoch(0))
    assert [samples for _, samples in calls] == len(RECIPE.groups) * [BATCH] * len(batches)
    each = [sum(source.decode(i).size for i in views.index.tolist()) for views in batches]
    assert all(size <= max(each) + BATCH * on_device.ALIGNED for size, _ in calls)


def test_images_of_many_bytes_do_not_wait_for_the_rest_of_their_batch(files, calls, monkeypatch):
    monkeypatch.setattr(PipelineLoader, "_chunk", lambda *_: 1)
    monkeypatch.setattr(on_device, "MOST_WAITING", 100)
    with PipelineLoader(files, options(workers=2)) as loader:
        batches = list(loader.epoch(0))
    assert len(calls) == len(batches) * len(RECIPE.groups) * BATCH
    assert_made_of(batches, files, RECIPE)


def test_pieces_are_joined_where_they_meet(files):
    def piece(first, last):
        fetched, part = files.fetch(np.arange(first, last)), slice(first, last)
        return on_device.bring(part, fetched, None, lambda _: [], DEVICE)

    pieces = on_device.joined([piece(4, 5), piece(0, 1), piece(3, 4), piece(1, 2)])
    assert [(piece.part.start, piece.part.stop) for piece in pieces] == [(0, 2), (3, 5)]
    for piece in pieces:
        for i, index in enumerate(range(piece.part.start, piece.part.stop)):
            assert np.array_equal(piece.pixels.image(i), files.decode(index))


def test_rows_that_go_around_are_finished_beside_the_others(files, calls, monkeypatch):
    monkeypatch.setattr(PipelineLoader, "_chunk", lambda *_: 1)
    around = choose_executor("fused_gpu", ROUTED, fallback=["solarize"], device=DEVICE)
    with PipelineLoader(files, options(ROUTED, fallback=("solarize",))) as loader:
        batches = list(loader.epoch(0))
        assert (loader.executor.rows, len(calls)) == (2 * BATCH * len(batches), len(batches))
        assert 0 < loader.executor.routed < loader.executor.rows
    for views in batches:
        index = views.index.numpy()
        pixels = Pixels.from_images([files.decode(i) for i in index])
        rows = draw(ROUTED, seed=0, epoch=0, index=index, height=pixels.height, width=pixels.width)
        expected = torch.empty_like(views.groups[0])
        around(pixels, rows, ROUTED, expected.unflatten(0, (2, -1)))
        assert torch.equal(views.groups[0], expected)


@pytest.mark.parametrize("fallback", [(), ("solarize",)])
def test_images_that_lie_on_the_device_stay_there(files, fallback, calls, monkeypatch):
    """As `resident` holds them on a GPU; without one, in a tensor on the CPU. Nothing of them is copied for a batch."""
    if DEVICE.type == "cpu":
        held = ResidentSource(files, workers=2, device=DEVICE)
        monkeypatch.setattr("penstock.loaders.resident.ResidentSource", lambda *_, **__: held)
    with ResidentLoader(files, options(ROUTED, fallback=fallback)) as loader:
        loader.on_gpu = True
        assert isinstance(loader.source.images, TensorPixels)
        assert (loader._chunk(ROUTED, 1 << 20) == 1 << 20) is not bool(fallback)
        batches, size = list(loader.epoch(0)), loader.source.images.data.numel()
    assert calls == [(size, BATCH)] * len(batches)
    with PipelineLoader(files, options(ROUTED, fallback=fallback)) as loader:
        for views, expected in zip(batches, loader.epoch(0), strict=True):
            assert torch.equal(views.groups[0], expected.groups[0])


def test_broken_images_give_way_to_the_next(files, tmp_path):
    source = write_images(tmp_path)
    for name in ("00.jpg", "04.jpg"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "a" / name).read_bytes()[:-40])
    with PipelineLoader(source, options(keep_tail=True, on_error="skip", workers=5)) as loader:
        batches = list(loader.epoch(0))
        assert set(loader.skipped) == {0, 4}
    index = torch.cat([views.index for views in batches]).tolist()
    assert len(index) == IMAGES and not {0, 4} & set(index)
    assert_made_of(batches, files, RECIPE)
    with PipelineLoader(source, options(keep_tail=True)) as loader, pytest.raises(BrokenImage, match=r"0[04]\.jpg"):
        list(loader.epoch(0))


def test_a_rank_without_a_part_in_a_kept_tail_gets_an_empty_batch_on_the_device(files):
    with PipelineLoader(files, options(keep_tail=True, world=2, rank=1)) as loader:
        last = list(loader.epoch(0))[-1]
    assert len(last) == 0 and [tuple(group.shape) for group in last.groups] == [(0, 3, SIZE, SIZE), (0, 3, 8, 8)]
    assert all(group.device.type == DEVICE.type for group in last.groups)


def test_an_early_break_leaves_no_work_behind(files, calls):
    with PipelineLoader(files, options(workers=2)) as loader:
        batches = loader.epoch(0)
        next(batches)
        batches.close()
        while loader.pool._work_queue.qsize():
            time.sleep(0.01)
        made = [views.index for views in loader.epoch(1)]
        assert len(made) == IMAGES // BATCH
    after = len(calls)
    gc.collect()
    time.sleep(0.05)
    assert len(calls) == after


class Event:
    """A stand-in for CUDA's."""

    def __init__(self, number):
        self.number, self.waited_for = number, False

    def synchronize(self):
        self.waited_for = True


class Stream:
    """Notes in what order it is asked to do things; a stand-in for CUDA's."""

    def __init__(self):
        self.did, self.events = [], []

    def record_event(self):
        self.events.append(Event(len(self.events)))
        self.did.append("event")
        return self.events[-1]

    def wait_event(self, event):
        self.did.append(f"waits for event {event.number}")


@pytest.fixture
def streams(monkeypatch):
    """The loader's stream and the consumer's; tensors that record a stream note it in the latter."""
    if DEVICE.type == "cuda":
        pytest.skip("stand-ins for a GPU's streams")
    own, consumer = Stream(), Stream()
    note = lambda tensor, stream: stream.did.append(f"keeps {tuple(tensor.shape)}")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: consumer)
    monkeypatch.setattr(torch.Tensor, "record_stream", note)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: torch.inference_mode(False))
    return own, consumer


@pytest.mark.parametrize("executor", ["fused_gpu", "fused_cpu"])
def test_the_consumers_stream_waits_for_its_batch_alone(files, executor, streams, monkeypatch):
    """And for none that is made ahead. The event of a batch stands behind the last call that makes it."""
    own, consumer = streams
    run = Executor.run
    monkeypatch.setattr(Executor, "run", lambda *args: (own.did.append("run"), run(*args))[1])
    with PipelineLoader(files, replace(options(workers=1), executor=executor)) as loader:  # makes them in order
        loader.stream = own
        for number, views in enumerate(loader.epoch(0)):
            kept = [f"keeps {tuple(group.shape)}" for group in views.groups]
            assert consumer.did == [f"waits for event {number}", *kept]
            consumer.did.clear()
    assert own.did[-1] == "event" and own.did.count("event") == IMAGES // BATCH


@pytest.mark.skipif(DEVICE.type == "cpu", reason="it takes a GPU, whose streams run behind the host")
@pytest.mark.parametrize("executor", ["fused_gpu", "fused_cpu"])
def test_no_memory_is_used_again_before_a_busy_consumer_has_read_it(files, executor):
    def copies(*, busy):
        made = []
        with PipelineLoader(files, replace(options(), executor=executor)) as loader:
            for views in (views for epoch in range(8) for views in loader.epoch(epoch)):
                if busy:
                    torch.cuda._sleep(20_000_000)
                made += [group.clone() for group in views.groups]
        return made

    assert all(torch.equal(a, b) for a, b in zip(copies(busy=True), copies(busy=False), strict=True))


def test_the_host_waits_where_it_is_far_ahead_of_the_device(files, streams):
    own, _ = streams
    with PipelineLoader(files, replace(options(workers=1), executor="fused_cpu")) as loader:
        loader.stream = own
        for number, _ in enumerate(views for epoch in range(4) for views in loader.epoch(epoch)):
            assert [event.waited_for for event in own.events[: number + 1]] == [
                event.number + UNDER_WAY <= number for event in own.events[: number + 1]
            ]
    assert number > UNDER_WAY


def test_whole_images_are_not_asked_for(files, monkeypatch):
    """Only the crops' part of a JPEG is decoded."""
    boxes, into = [], Fetched.into

    def noted(self, data, box):
        boxes.append(box)
        return into(self, data, box)

    monkeypatch.setattr(Fetched, "into", noted)
    recipe = Recipe(name="", about="", views=(View(operations=(CenterCrop(fraction=0.5),), size=8),))
    with PipelineLoader(files, options(recipe)) as loader:
        assert_made_of(loader.epoch(0), files, recipe)
    assert boxes and all((box[:, :2] > 0).all() for box in boxes)


@pytest.mark.parametrize(
    ("device", "computed", "loader", "expected"),
    [
        ("cuda", torch.bfloat16, "folder", torch.bfloat16),
        ("cuda", torch.float16, "auto", torch.float16),
        ("cuda", None, "folder", torch.float32),
        ("cuda", torch.bfloat16, "torchvision", torch.float32),
        ("cpu", torch.bfloat16, "folder", torch.float32),
    ],
)
def test_views_are_of_the_type_that_autocast_computes_in(device, computed, loader, expected):
    assert _views_in(Precision(device=torch.device(device), dtype=computed), loader) == expected
