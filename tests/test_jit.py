"""Compiled code is cached under a name that changes with the sources, and nobody else's cache is moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import config

from penstock.augment import jit


@pytest.fixture(autouse=True)
def asked_anew():
    jit.cache_folder.cache_clear()
    yield
    jit.cache_folder.cache_clear()


def test_the_user_s_own_folder_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert jit.cache_folder() == str(tmp_path)


def test_the_folder_is_named_after_the_sources(monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    first = jit.cache_folder()
    assert Path(first).parent == tmp_path and Path(first).is_dir()
    jit.cache_folder.cache_clear()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "philox.py" else b""))
    assert jit.cache_folder() != first


def test_other_packages_keep_their_cache():
    before = config.CACHE_DIR
    jit.njit(lambda x: x)
    assert before == config.CACHE_DIR


def test_a_folder_that_cannot_be_made_falls_back_to_the_temporary_one(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache should be")
    code = "from penstock.augment.jit import cache_folder; print(cache_folder())"
    environment = {"PENSTOCK_CACHE": str(blocked), "TMPDIR": str(tmp_path), "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "penstock-"))
