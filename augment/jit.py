"""The one way this package compiles functions: numba, without the GIL, cached on disk.

numba's cache does not notice an edit in a function that a cached one calls, so the cache folder is named after a hash
of every source file that compiled code comes from: an edit in any compiles anew, and nothing stale is ever run. What
no version has used for a month goes when a new one is compiled.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from numba.core import config

from penstock import files

ROOT = Path(__file__).resolve().parents[1]
WAYS_IN = (b"njit", b"emitted")  # what a file outside of `augment` must mention to have a part in compiled code
KEPT = 30 * 24 * 3600  # seconds without use


@cache
def cache_folder() -> str:
    """Where compiled code is kept: a folder keyed by the sources, in `$NUMBA_CACHE_DIR` or the cache folder.

    And by where they lie, as numba has it: what is in the folder is this clone's, which `compile_views` asks for.
    """
    key = hashlib.sha256(b"".join([str(ROOT).encode(), *_sources()])).hexdigest()[:16]
    home = Path(os.environ.get("NUMBA_CACHE_DIR") or files.cache_folder())
    folder = home / f"numba-{key}"
    with suppress(OSError):  # a read-only home
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _remove_unused(home)
        os.utime(folder)
    return str(folder) if os.access(folder, os.W_OK) else _for_this_process(folder)


def _remove_unused(home: Path) -> None:
    """A folder's time is that of its last use."""
    for folder in home.glob("numba-" + 16 * "[0-9a-f]"):
        if time.time() - folder.stat().st_mtime > KEPT:
            shutil.rmtree(folder, ignore_errors=True)


def _for_this_process(ready: Path) -> str:
    """A folder for this process alone, with what is compiled. numba unpickles what it finds, so no shared name."""
    folder = tempfile.mkdtemp(prefix="penstock-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if os.access(ready, os.R_OK | os.X_OK):  # numba does not read where it cannot write
        shutil.copytree(ready, folder, dirs_exist_ok=True)
    return folder


def _sources() -> list[bytes]:
    """All of `augment`, and what is compiled in `loaders`."""
    augment = [path.read_bytes() for path in sorted(ROOT.glob("augment/**/*.py"))]
    loaders = [path.read_bytes() for path in sorted(ROOT.glob("loaders/**/*.py"))]
    return augment + [source for source in loaders if any(word in source for word in WAYS_IN)]


def njit(function: Callable | None = None, *, inline: bool = False) -> Any:
    """Compile on first call, release the GIL, divide as C does (no ZeroDivisionError checks in the loops).

    `@njit(inline=True)` is for small functions in hot loops: LLVM left to itself calls them, and a loop with a call in
    it is not vectorised.
    """
    if function is None:
        return partial(njit, inline=inline)
    before, config.CACHE_DIR = config.CACHE_DIR, cache_folder()  # type: ignore[attr-defined]
    try:  # numba reads the folder when it decorates; other users of numba keep theirs
        return numba.njit(function, cache=True, nogil=True, error_model="numpy", forceinline=inline)
    finally:
        config.CACHE_DIR = before  # type: ignore[attr-defined]
