"""What all tests share: a cache folder of their own, and no look over the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for a newer release when it is imported
os.environ.setdefault("MPLBACKEND", "agg")

from penstock.augment import jit

# Compiled code is worth keeping between sessions: it lies under a hash of the sources, unlike the data below.
os.environ["NUMBA_CACHE_DIR"] = jit.cache_folder()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`$PENSTOCK_CACHE` for this session, also for the processes it starts: nothing stale, nothing left behind."""
    folder = tmp_path_factory.mktemp("penstock-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE", str(folder))
        yield folder
