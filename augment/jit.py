"""The one way this package compiles functions: numba, without the GIL, cached on disk.

numba's cache does not notice an edit in a function that a cached one calls, so the cache folder is named after a hash
of every source file that compiled code comes from: an edit in any compiles anew, and nothing stale is ever run.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from numba.core import config

ROOT = Path(__file__).resolve().parents[1]
WAYS_IN = (b"njit", b"emitted")  # what a file outside of `augment` must mention to have a part in compiled code


@cache
def cache_folder() -> str:
    """Where compiled code is kept: `NUMBA_CACHE_DIR` if set, else a folder of ours keyed by the sources.

    And by where they lie, as numba has it: what is in the folder is this clone's, which `compile_views` asks for.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return os.environ["NUMBA_CACHE_DIR"]
    key = hashlib.sha256(b"".join([str(ROOT).encode(), *_sources()])).hexdigest()[:16]
    home = Path(os.environ.get("PENSTOCK_CACHE") or Path.home() / ".cache" / "penstock")
    folder = home / f"numba-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: for this process alone. numba unpickles what it finds, so no shared name
        return tempfile.mkdtemp(prefix="penstock-")
    return str(folder)


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
