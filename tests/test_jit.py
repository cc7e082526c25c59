"""Compiled code is cached under a name that changes with the sources, and nobody else's cache is moved."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numba.core import config

from penstock.augment import jit

HEX = "0123456789abcdef"


@pytest.fixture
def home(monkeypatch, tmp_path):
    """The cache folder, in which the folder is asked for anew."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    jit.cache_folder.cache_clear()
    yield tmp_path
    jit.cache_folder.cache_clear()


def edit_a_source(monkeypatch):
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "philox.py" else b""))
    jit.cache_folder.cache_clear()


@pytest.mark.parametrize("variable", ["PENSTOCK_CACHE", "NUMBA_CACHE_DIR"])
def test_the_folder_is_named_after_the_sources(monkeypatch, home, variable):
    monkeypatch.setenv(variable, str(home / "mine"))
    first = jit.cache_folder()
    assert Path(first).parent == home / "mine" and Path(first).is_dir()
    edit_a_source(monkeypatch)
    assert jit.cache_folder() != first


def test_what_was_not_used_for_a_month_goes_with_a_new_version(monkeypatch, home):
    unused, used, another = home / f"numba-{HEX}", home / f"numba-{HEX[::-1]}", home / "numba-scipy"
    for folder, days in ((unused, 31), (used, 29), (another, 99)):
        folder.mkdir()
        (folder / "function.nbi").touch()
        os.utime(folder, (0, time.time() - days * 24 * 3600))
    ours = Path(jit.cache_folder())
    assert set(home.iterdir()) == {ours, used, another}
    os.utime(ours, (0, 0))
    jit.cache_folder.cache_clear()
    jit.cache_folder()  # is a use
    edit_a_source(monkeypatch)
    new = Path(jit.cache_folder())
    assert set(home.iterdir()) == {ours, new, used, another}


def test_other_packages_keep_their_cache():
    before = config.CACHE_DIR
    jit.njit(lambda x: x)
    assert before == config.CACHE_DIR


def test_what_is_compiled_is_copied_where_it_cannot_be_added_to(monkeypatch, home):
    """Else numba would not read it, and write beside the sources."""
    ready = Path(jit.cache_folder())
    (ready / "draw").mkdir()
    (ready / "draw" / "function.nbi").write_text("compiled")
    jit.cache_folder.cache_clear()
    monkeypatch.setattr(jit.os, "access", lambda path, mode: Path(path) != ready or mode != os.W_OK)
    copy = Path(jit.cache_folder())
    assert copy != ready and (copy / "draw" / "function.nbi").read_text() == "compiled"


def test_a_folder_that_cannot_be_looked_into_is_none(monkeypatch, home):
    """Another user's home, say, as containers that run as somebody else than they were built for have it."""

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(jit.os, "access", lambda path, mode: False)
    assert list(Path(jit.cache_folder()).iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_temporary_one_of_the_process(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache should be")
    code = "from penstock.augment.jit import cache_folder; print(cache_folder())"
    environment = {"PENSTOCK_CACHE": str(blocked), "TMPDIR": str(tmp_path), "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "penstock-"))
    assert list(tmp_path.iterdir()) == [blocked]
