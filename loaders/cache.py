"""Where downloads, generated sets and converted shards are kept: `$PENSTOCK_CACHE`, or `~/.cache/penstock`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder, which need not exist yet; read anew at each call, so that a test may move it."""
    return Path(os.environ.get("PENSTOCK_CACHE") or "~/.cache/penstock").expanduser()
