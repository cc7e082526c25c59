"""The ffcv package's own loader behind our contract: coverage, labels, order and clean ends. Its pixels are its own."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from penstock.augment import Recipe, load_recipe
from penstock.augment.operations import CenterCrop
from penstock.augment.recipe import Growth, View
from penstock.errors import UserError
from penstock.loaders import Options
from penstock.loaders.beton import BetonSource
from penstock.loaders.convert import convert
from penstock.loaders.ffcv_package import FFCVPackageLoader, translate
from penstock.loaders.order import Order
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import Subset

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason="the ffcv package is not installed (penstock[ffcv])"
)
COUNT = 26
WHOLE = View(operations=(CenterCrop(fraction=1.0),), size=16, count=2)
PLAIN = Recipe(name="plain", about="", views=(WHOLE,), mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> BetonSource:
    """26 RAW images of 16×16, each of one grey that tells which it is: 3·i; label i mod 5."""
    path = tmp_path_factory.mktemp("ffcv-package") / "greys.beton"
    images = np.repeat(3 * np.arange(COUNT, dtype=np.uint8), 16 * 16 * 3).reshape(COUNT, 16, 16, 3)
    convert(ImageArrays(images, np.arange(COUNT) % 5, list("abcde"), "greys"), path, progress=False)
    return BetonSource(path)


@pytest.fixture(scope="module")
def loader(shard: BetonSource) -> Iterator[FFCVPackageLoader]:
    """One for all tests, since the package compiles for seconds: 20 of the images, in another order, 3 a batch."""
    source = Subset(shard, np.random.default_rng(0).permutation(COUNT)[:20])
    order = Order(20, 3, seed=5, keep_tail=True)
    with FFCVPackageLoader(source, Options(recipe=PLAIN, order=order, workers=2)) as loader:
        yield loader


@needs_ffcv
def test_each_epoch_is_our_order_with_its_labels_and_images(loader: FFCVPackageLoader, shard: BetonSource) -> None:
    for epoch, consumed in ((0, 0), (1, 0), (1, 6), (2, 20)):
        batches = list(loader.epoch(epoch, consumed))
        assert len(batches) == loader.order.steps(consumed)
        for step, views in enumerate(batches):
            index = loader.order.indices(epoch, step, consumed)
            place = loader.positions[index]
            assert views.index.tolist() == index.tolist()
            assert views.label.tolist() == (place % 5).tolist()
            group = views.groups[0]
            assert group.shape == (2 * len(index), 3, 16, 16)
            assert group.is_contiguous(memory_format=torch.channels_last)
            grey = (255 * group).mean(dim=(1, 2, 3)).round().long().tolist()
            assert grey == np.tile(3 * place, 2).tolist()


@needs_ffcv
def test_kept_batches_do_not_change(loader: FFCVPackageLoader) -> None:
    kept, copies = [], []
    for views in loader.epoch(0):
        kept.append(views.groups[0])
        copies.append(views.groups[0].clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@needs_ffcv
def test_views_grow(shard: BetonSource) -> None:
    """The package compiles the size in: a Loader for each one."""
    small = View(operations=WHOLE.operations, size=12)
    growth = Growth(sizes=((0, 32), (2, 48)), of=3)
    recipe = replace(PLAIN, views=(replace(WHOLE, size=48), small), growth=growth)
    kept, copies = [], []
    with FFCVPackageLoader(shard, Options(recipe=recipe, order=Order(COUNT, 8))) as loader:
        for epoch, side, small_side in ((0, 32, 8), (1, 32, 8), (2, 48, 12)):
            for step, views in enumerate(loader.epoch(epoch)):
                assert [group.shape for group in views.groups] == [(16, 3, side, side), (8, 3, small_side, small_side)]
                index = loader.order.indices(epoch, step)
                for group in views.groups:
                    grey = (255 * group).mean(dim=(1, 2, 3)).round().long().tolist()
                    assert grey == np.tile(3 * index, len(group) // 8).tolist()
                    kept.append(group)
                    copies.append(group.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@needs_ffcv
def test_an_early_break_ends_the_package_s_thread(loader: FFCVPackageLoader) -> None:
    before = threading.active_count()
    for _ in range(3):
        for _ in loader.epoch(0):
            break
    assert threading.active_count() == before


@needs_ffcv
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_pipeline_that_raises_is_an_error_and_no_hang(
    loader: FFCVPackageLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise ValueError("an operation of the pipeline")

    monkeypatch.setattr(loader.loaders[0], "code", ([(broken, [])], []))
    with pytest.raises(RuntimeError, match="ffcv's pipeline raised an error"):
        next(loader.epoch(0))


@needs_ffcv
def test_torch_keeps_its_threads(loader: FFCVPackageLoader) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        list(loader.epoch(0))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@needs_ffcv
def test_what_the_package_lacks_is_left_out_and_said(shard: BetonSource, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe("moco-v2", size=16)
    FFCVPackageLoader(shard, Options(recipe=recipe, order=Order(COUNT, 4)))  # nothing is compiled before it is used
    assert "no Grayscale(p .2), GaussianBlur(sigma .1-2, p .5), hue: left out" in caplog.text
    names = [[type(part).__name__ for part in translate(operation, 16)] for operation in recipe.views[0].operations]
    jitter = ["RandomBrightness", "RandomContrast", "RandomSaturation"]
    assert names == [["RandomResizedCropRGBImageDecoder"], jitter, [], [], ["RandomHorizontalFlip"]]


def test_only_a_beton_is_read() -> None:
    arrays = ImageArrays(np.zeros((4, 8, 8, 3), np.uint8), [0] * 4, ["a"], "arrays")
    with pytest.raises(UserError, match=r"reads only \.beton"):
        FFCVPackageLoader(arrays, Options(recipe=PLAIN, order=Order(4, 2)))
