"""Epochs, whole or left early, and loaders that are closed leave nothing behind: threads, processes, files, memory."""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from pathlib import Path

import psutil
import pytest

from penstock.augment import Recipe, load_recipe
from penstock.augment.operations import CenterCrop
from penstock.augment.recipe import View
from penstock.loaders import LOADERS, Loader, make_loader, missing, open_source
from penstock.loaders.decode import encode_jpeg
from tests.broken_images import photo

IMAGES, BATCH, SIZE = 48, 16, 64  # a batch's views take 1.5 MB
WARM, EPOCHS = 5, 12
MARGIN = 12 << 20  # bytes: less than one batch an epoch
PLAIN = Recipe(name="plain", about="", views=(View(operations=(CenterCrop(fraction=1.0),), size=SIZE, count=2),))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(IMAGES):
        (folder / f"{i:02}.jpg").write_bytes(encode_jpeg(photo(i), 90))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=[name for name in LOADERS if name != "auto"])  # which is one of the others
def name(request: pytest.FixtureRequest) -> str:
    if reason := missing(request.param):
        pytest.skip(reason)
    return request.param


def make(name: str, images: Path, cache: Path) -> Loader:
    recipe = PLAIN if name == "ffcv-package" else load_recipe("moco-v2", size=SIZE)  # it compiles what it augments with
    return make_loader(name, open_source(str(images)), recipe=recipe, batch=BATCH, workers=2, cache=cache)


def held() -> tuple[int, int, int]:
    """Threads, child processes and open files of this process."""
    gc.collect()
    files = [link for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
    return len(os.listdir("/proc/self/task")), len(psutil.Process().children(recursive=True)), len(files)


def settled(before: tuple[int, int, int]) -> bool:
    """Whether no more is held than before, soon."""
    deadline = time.monotonic() + 10
    while any(now > then for now, then in zip(held(), before, strict=True)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def resident() -> int:
    """Bytes of memory that this process has."""
    gc.collect()
    return psutil.Process().memory_info().rss


def some_epochs(loader: Loader, first: int, count: int) -> None:
    """Epochs of which every other one is left early; the last three batches of all are kept for a while."""
    kept: deque = deque(maxlen=3)
    for epoch in range(first, first + count):
        for step, views in enumerate(loader.epoch(epoch)):
            kept.append(views)
            if epoch % 2 and step == 1:
                break


def test_epochs_leave_nothing_behind(name: str, images: Path, cache: Path) -> None:
    with make(name, images, cache) as loader:
        some_epochs(loader, 0, WARM)
        before, memory = held(), resident()
        some_epochs(loader, WARM, EPOCHS)
        assert settled(before), (before, held())
        assert resident() - memory < MARGIN


def test_a_closed_loader_leaves_nothing_behind(name: str, images: Path, cache: Path) -> None:
    if name == "ffcv-package":
        pytest.skip("compiled code is never freed, and every loader of the package compiles anew")

    def use() -> Loader:
        loader = make(name, images, cache)
        next(iter(loader))
        loader.close()
        loader.source.close()
        return loader

    use()  # what libraries start once and keep is there from now on
    before, memory = held(), resident()
    closed = [use() for _ in range(5)]
    assert settled(before), (before, held())
    closed.clear()
    assert resident() - memory < MARGIN
