"""What tests share: a cache folder of their own, no look over the network, one thread for small networks, loaders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for a newer release when it is imported
os.environ.setdefault("MPLBACKEND", "agg")

from penstock.files import cache_folder

if TYPE_CHECKING:
    from penstock.loaders import Source
    from tests.shared_loaders import SharedLoaders

# Compiled code is worth keeping between sessions: it lies under a hash of the sources, unlike the data below.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder()))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`$PENSTOCK_CACHE` for this session, also for the processes it starts: nothing stale, nothing left behind."""
    folder = tmp_path_factory.mktemp("penstock-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Here and in the processes started: so small a network gains nothing from more, and loses much if others run."""
    import torch  # takes seconds, which tests without networks need not wait for

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick_checkpoints() -> Iterator[None]:
    """Ones that wait for no disk: some tests write one every few milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.engine.checkpoint.os.fsync", lambda file: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A few small images of three classes."""
    from penstock.loaders import open_source  # here and below: imports that take seconds, too
    from tests.shared_loaders import write_images

    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return open_source(str(folder))


@pytest.fixture(scope="module")
def make(data: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedLoaders]:
    """Makes loaders of them, which a module's tests share."""
    from tests.shared_loaders import SharedLoaders

    with closing(SharedLoaders(data, tmp_path_factory.mktemp("cache"))) as loaders:
        yield loaders
